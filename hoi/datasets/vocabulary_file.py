"""A user's vocabulary, as lines like "riding a bicycle" or as YAML.

How a line is understood, in this order:

1. A comma separates verb and object: "ride, bicycle".
2. Otherwise the last article or possessive does: "sitting on a park bench" is "sitting on" and "park bench".
3. Otherwise the object is the longest known thing that the line ends with, as in "hold cell phone"; if none is known,
   the last word.

The verb is kept in its base form ("sit_on"), and the object in the singular where that is known. If a line has an -ing
form, its own words are the phrase that the teacher reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hoi.config.loading import read_yaml
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.errors import UserError, nearest
from hoi.files import read_text
from hoi.prompts import a_object, spaced, verb_ing
from hoi.vocabulary import NO_OBJECT, PERSON, Vocabulary

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
    """Return COCO's name of a thing, with underscores; the name itself if COCO has none.

    "park bench", which COCO does not have, is a bench, as its last word says.
    """
    words = singular(spaced(name).lower())
    if words in COCO_OBJECTS:
        return name if words == spaced(name).lower() else words.replace(" ", "_")
    head = singular(words.split(" ")[-1])
    known = _by_name().get(words) or (head if head in COCO_OBJECTS else None)
    return name if known is None else known.replace(" ", "_")


def singular(words: str) -> str:
    """Return the singular of a plural that is known; anything else as it is."""
    known = {*COCO_OBJECTS, *_by_name()}
    endings = [("ies", "y"), ("ves", "fe"), ("es", ""), ("s", "")]
    forms = [words.removesuffix(end) + other for end, other in endings if words.endswith(end)]
    return words if words in known else next((form for form in forms if form in known), words)


def known_things() -> frozenset[str]:
    return frozenset({*COCO_OBJECTS, *_by_name()})


ARTICLES = frozenset({"a", "an", "the", "his", "her", "their", "its", "my", "your", "our", "some"})
_PEOPLE = re.compile(
    r"^((a|an|the|one|some) )?(person|people|someone|somebody|man|woman|human)( who)?( (is|are))? ", re.IGNORECASE
)
_PARTS = re.compile(r"^(pair|piece|slice) of ")


@dataclass(frozen=True)
class Phrase:
    """What a line says: verb (`sit_on`), object (`park_bench`), and its own words if the prompt's would differ."""

    verb: str
    object_name: str
    wording: str | None


def parse_phrase(line: str, where: str) -> Phrase:
    """Return the verb and object of a line, or raise a UserError if it has none."""
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
    """Return the base form of one word, as `ride` of `riding` or `rides`; other words stay as they are."""
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
    """Return possible base forms, likely ones first: `sitt` may be sit, `danc` dance, `hold` hold."""
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsfz":
        return [stem[:-1], stem, stem + "e"]
    if stem.endswith("y") and len(stem) <= 2:
        return [stem[:-1] + "ie", stem]
    silent = re.search(r"([cvuz]|[^aeiou]l|dg|rg|[aeiouw]s|chang|rrang)$", stem) is not None and not stem.endswith("ll")
    return [stem + "e", stem] if silent else [stem, stem + "e"]


YAML_SUFFIXES = (".yaml", ".yml")
ENTRY = "{verb: text, object: text, phrase: text, synonyms: [text, ...], detector_class: text}, the last three optional"


@dataclass(frozen=True)
class Entry:
    """One interaction of a file; without `detector_class` the object is detected under its usual name."""

    where: str
    verb: str
    object_name: str
    phrase: str | None = None
    synonyms: tuple[str, ...] = ()
    detector_class: str | None = None


def read_vocabulary(path: str) -> Vocabulary:
    """Return the vocabulary of a file; `person` is always an object.

    `.yaml` and `.yml` hold a list of `{verb, object, phrase?, synonyms?, detector_class?}`; an object without a class
    is its own. Any other file holds one phrase a line, synonyms after `|`, and lines like `kick scooter = skateboard`
    for a thing that the detector calls otherwise; everyday names of COCO's classes are known. `#` starts a comment.

    Raises:
        UserError: an entry is not understood, or is there twice; named by its position.
    """
    in_keys = Path(path).suffix.lower() in YAML_SUFFIXES
    entries = _read_entries(path) if in_keys else _read_lines(path)
    if not entries:
        raise UserError("the vocabulary holds no phrase", where=path, expected="at least one, as 'riding a bicycle'")
    _refuse_repeated(entries)
    class_of = _classes(entries, (lambda name: name) if in_keys else usual_name)
    objects = (PERSON, *dict.fromkeys(seen for seen in class_of.values() if seen != PERSON))
    try:
        return Vocabulary(
            objects,
            tuple(dict.fromkeys(entry.verb for entry in entries)),
            tuple((entry.verb, entry.object_name) for entry in entries),
            tuple(entry.phrase for entry in entries),
            tuple(entry.synonyms for entry in entries),
            tuple((name, seen) for name, seen in class_of.items() if name != seen),
        )
    except UserError as error:
        raise UserError(error.what, where=path, expected=error.expected, got=error.got, fix=error.fix) from None


def _classes(entries: list[Entry], usual: Callable[[str], str]) -> dict[str, str]:
    """Return the class of each object name. A thing and its everyday name are one class, spelt as in the file."""
    class_of: dict[str, str] = {}
    said: dict[str, Entry] = {}
    own = {spaced(entry.object_name).lower(): entry.object_name for entry in entries}
    for entry in entries:
        name = entry.object_name
        seen = name if name == NO_OBJECT else entry.detector_class or usual(name)
        if entry.detector_class is not None:
            first = said.setdefault(name, entry)
            if first.detector_class != entry.detector_class:
                raise UserError(
                    f"the object '{name}' has two detector classes",
                    where=f"{first.where} and {entry.where}",
                    got=f"{first.detector_class} and {entry.detector_class}",
                    fix="keep one of the two",
                )
            class_of[name] = own.get(spaced(seen).lower(), seen)
        elif name not in said:
            class_of[name] = own.get(spaced(seen).lower(), seen)
    # A class may itself be seen as another one: the last of the chain is what a detector gives.
    for name in class_of:
        chain = [name]
        while (after := class_of.get(chain[-1], chain[-1])) != chain[-1]:
            if after in chain:
                raise UserError("detector classes go round in a circle", where=said[name].where, got=" = ".join(chain))
            chain.append(after)
        class_of[name] = chain[-1]
    return class_of


def _refuse_repeated(entries: list[Entry]) -> None:
    first: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        key = (verb_ing(entry.verb), spaced(entry.object_name).lower())
        other = first.setdefault(key, entry)
        if other is not entry:
            raise UserError(
                f"the interaction '{entry.verb} {entry.object_name}' is there twice",
                where=f"{other.where} and {entry.where}",
                fix="keep one; another wording of it is a synonym",
            )


def _read_lines(path: str) -> list[Entry]:
    lines = read_text(path, "phrases, one a line", encoding="utf-8-sig").splitlines()
    entries, classes = [], {}
    for number, line in enumerate(lines, start=1):
        text, where = line.partition("#")[0].strip(), f"{path}, line {number}"
        if "=" in text:
            name, seen = (" ".join(part.split()).replace(" ", "_").lower() for part in text.split("=", 1))
            if not name or not seen or "=" in seen:
                raise UserError("a line is not understood", where=where, expected="scooter = motorcycle", got=text)
            classes[name] = (seen, where)
        elif text:
            said, *others = (part.strip() for part in text.split("|"))
            phrase = parse_phrase(said, where)
            entries.append(Entry(where, phrase.verb, phrase.object_name, phrase.wording, tuple(filter(None, others))))
    named = {entry.object_name for entry in entries}
    for name, (_, where) in classes.items():
        if name not in named:
            got = f"'{name}', which no phrase speaks of"
            raise UserError(
                "a line gives a class to an unknown object", where=where, expected=nearest(name, named), got=got
            )
    return [
        Entry(e.where, e.verb, e.object_name, e.phrase, e.synonyms, classes.get(e.object_name, (None,))[0])
        for e in entries
    ]


def _read_entries(path: str) -> list[Entry]:
    plain = read_yaml(path)
    if not isinstance(plain, list) or not plain:
        raise UserError("this is no vocabulary", where=path, expected=f"a list of {ENTRY}")
    return [_entry(entry, f"{path}, entry {position}") for position, entry in enumerate(plain, start=1)]


def _entry(entry: Any, where: str) -> Entry:
    if not isinstance(entry, dict):
        raise UserError("a vocabulary entry is not understood", where=where, expected=ENTRY, got=repr(entry))
    unknown = set(entry) - {"verb", "object", "phrase", "synonyms", "detector_class"}
    wrong = [key for key in ("verb", "object") if not isinstance(entry.get(key), str) or not entry[key]]
    wrong += [key for key in ("phrase", "detector_class") if not isinstance(entry.get(key, ""), str)]
    synonyms = entry.get("synonyms", [])
    if not isinstance(synonyms, list) or not all(isinstance(text, str) and text for text in synonyms):
        wrong.append("synonyms")
    if unknown or wrong:
        raise UserError("a vocabulary entry has wrong keys", where=where, expected=ENTRY, got=repr(entry))
    return Entry(
        where, entry["verb"], entry["object"], entry.get("phrase"), tuple(synonyms), entry.get("detector_class")
    )
