"""One line as people write it, "riding a bicycle", to a verb and an object.

The rule, in this order:

1. A comma parts verb and object: "ride, bicycle".
2. Else the last article or possessive does: "sitting on a park bench" is "sitting on" and "park bench".
3. Else the object is the longest known thing that the line ends with, as in "hold cell phone"; if none is known, the
   last word.

The verb is kept in its base form ("sit_on"), and the object in the singular where that is known. Where a line says it
with an -ing form, its own words are the phrase that the teacher reads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet_classes import hicodet_vocabulary
from hoi.errors import UserError
from hoi.prompts import a_object, spaced, verb_ing
from hoi.vocabulary import PERSON

EVERYDAY_NAMES = {
    "airplane": ("aeroplane", "plane", "aircraft", "jet"),
    "backpack": ("rucksack",),
    "baseball bat": ("bat",),
    "baseball glove": ("baseball mitt",),
    "bicycle": ("bike", "mountain bike", "push bike"),
    "boat": ("sailboat", "rowboat"),
    "car": ("automobile",),
    "cell phone": ("phone", "mobile phone", "cellphone", "smartphone", "mobile", "telephone"),
    "couch": ("sofa",),
    "cow": ("cattle", "bull", "calf"),
    "cup": ("mug",),
    "dining table": ("table",),
    "dog": ("puppy",),
    "donut": ("doughnut",),
    "hair drier": ("hair dryer", "hairdryer"),
    "handbag": ("purse",),
    "horse": ("pony",),
    "keyboard": ("computer keyboard",),
    "laptop": ("laptop computer", "notebook computer"),
    "motorcycle": ("motorbike", "moped", "motor scooter"),
    "mouse": ("computer mouse",),
    PERSON: ("man", "woman", "child", "kid", "boy", "girl", "baby", "people", "men", "women", "children"),
    "potted plant": ("house plant", "houseplant"),
    "refrigerator": ("fridge",),
    "remote": ("remote control",),
    "sheep": ("lamb",),
    "skis": ("ski",),
    "sports ball": ("ball", "football", "soccer ball", "basketball", "volleyball", "baseball", "tennis ball"),
    "suitcase": ("luggage",),
    "teddy bear": ("teddy",),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "tie": ("necktie",),
    "truck": ("lorry", "pickup"),
    "tv": ("television", "tv set", "monitor"),
    "wine glass": ("wineglass",),
}
"""COCO class → other names of such things. [choice]"""


@lru_cache(maxsize=1)
def _by_name() -> dict[str, str]:
    return {other: name for name, others in EVERYDAY_NAMES.items() for other in others}


def usual_name(name: str) -> str:
    """A thing's name to the one that COCO has for it, with underscores; its own where COCO has none.

    "park bench", which COCO does not have, is the kind of bench that its last word says.
    """
    words = singular(spaced(name).lower())
    if words in COCO_OBJECTS:
        return name if words == spaced(name).lower() else words.replace(" ", "_")
    head = singular(words.split(" ")[-1])
    known = _by_name().get(words) or (head if head in COCO_OBJECTS else None)
    return name if known is None else known.replace(" ", "_")


def singular(words: str) -> str:
    """A plural whose singular is known to it; anything else as it is."""
    known = {*COCO_OBJECTS, *_by_name()}
    endings = [("ies", "y"), ("ves", "fe"), ("es", ""), ("s", "")]
    forms = [words.removesuffix(end) + other for end, other in endings if words.endswith(end)]
    return words if words in known else next((form for form in forms if form in known), words)


def known_things() -> frozenset[str]:
    """COCO's classes and their everyday names, in words."""
    return frozenset({*COCO_OBJECTS, *_by_name()})


ARTICLES = frozenset({"a", "an", "the", "his", "her", "their", "its", "my", "your", "our", "some"})
_PEOPLE = re.compile(
    r"^((a|an|the|one|some) )?(person|people|someone|somebody|man|woman|human)( who)?( (is|are))? ", re.IGNORECASE
)
_PARTS = re.compile(r"^(pair|piece|slice) of ")


@dataclass(frozen=True)
class Phrase:
    """What a line says.

    Args:
        verb: As `sit_on`.
        object_name: As `park_bench`.
        wording: The line's own words where the prompt's would differ, else None.
    """

    verb: str
    object_name: str
    wording: str | None


def parse_phrase(line: str, where: str) -> Phrase:
    """A line to its verb and object.

    Args:
        line: Without synonyms and comments.
        where: For the message.

    Raises:
        UserError: there is no verb or no object in it.
    """
    said = " ".join(line.strip().rstrip(".!").split())
    said = _PEOPLE.sub("", said)
    verb, object_name = _parts(said.replace("_", " ").lower())
    if not verb or not object_name:
        raise UserError(
            "a phrase needs a verb and an object",
            where=where,
            expected="riding a bicycle, or ride bicycle, or ride, bicycle",
            got=line.strip(),
            fix="for what a person does alone, write 'walking, no_object'",
        )
    first, *rest = verb.split(" ")
    is_ing = _is_ing(first)
    base = " ".join([base_form(first), *rest])
    usual = f"{verb_ing(base)} {a_object(object_name)}"
    wording = said if is_ing and "," not in said and said.lower() != usual else None
    return Phrase(base.replace(" ", "_"), object_name.replace(" ", "_"), wording)


def _parts(said: str) -> tuple[str, str]:
    if "," in said:
        verb, _, thing = (part.strip() for part in said.partition(","))
        first, _, rest = thing.partition(" ")
        return verb, _thing(rest if first in ARTICLES and rest else thing)
    words = said.split(" ")
    articles = [place for place, word in enumerate(words) if word in ARTICLES and 0 < place < len(words) - 1]
    if articles:
        return " ".join(words[: articles[-1]]), _thing(" ".join(words[articles[-1] + 1 :]))
    known = known_things()
    starts = (start for start in range(1, len(words)) if singular(" ".join(words[start:])) in known)
    start = next(starts, len(words) - 1)
    return " ".join(words[:start]), _thing(" ".join(words[start:]))


def _thing(words: str) -> str:
    return singular(_PARTS.sub("", words))


def base_form(verb: str) -> str:
    """One word, as `riding` or `rides`, to the form that a vocabulary has: `ride`. Other words stay as they are."""
    if _is_ing(verb):
        known = _known_ing_forms().get(verb)
        return known or next((form for form in _candidates(verb[:-3]) if verb_ing(form) == verb), verb)
    if verb.endswith("s") and not verb.endswith("ss"):
        for end, other in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("s", "")):
            if verb.endswith(end):
                return verb.removesuffix(end) + other
    return verb


def _is_ing(word: str) -> bool:
    return re.search("[aeiouy].*ing$", word) is not None


@lru_cache(maxsize=1)
def _known_ing_forms() -> dict[str, str]:
    verbs = {verb.split("_")[0] for verb in hicodet_vocabulary().verbs}
    return {verb_ing(verb): verb for verb in verbs}


def _candidates(stem: str) -> list[str]:
    """Base forms that an -ing form may have, likely ones first: `sitt` may be sit, `danc` dance, `hold` hold."""
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsfz":
        return [stem[:-1], stem, stem + "e"]
    if stem.endswith("y") and len(stem) <= 2:
        return [stem[:-1] + "ie", stem]
    silent = re.search(r"([cvuz]|[^aeiou]l|dg|rg|[aeiouw]s|chang|rrang)$", stem) is not None and not stem.endswith("ll")
    return [stem + "e", stem] if silent else [stem, stem + "e"]
