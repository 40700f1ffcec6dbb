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
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from hoi.config.loading import parse_section, read_yaml
from hoi.config.section import Section
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.errors import UserError, nearest
from hoi.files import read_lines
from hoi.prompts import a_object, spaced, verb_ing
from hoi.vocabulary import NO_OBJECT, PERSON, Vocabulary

MAX_LINE = 2000
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
"""COCO class → other names of such objects. [choice]"""
COCO_NAME_OF = {other: name for name, others in EVERYDAY_NAMES.items() for other in others}
KNOWN_OBJECTS = frozenset({*COCO_OBJECTS, *COCO_NAME_OF})


def usual_name(name: str) -> str:
    """Return COCO's name of an object, with underscores; the name itself if COCO has none.

    "park bench", which COCO does not have, is a bench, as its last word says.
    """
    words = singular(spaced(name).lower())
    if words in COCO_OBJECTS:
        return name if words == spaced(name).lower() else words.replace(" ", "_")
    head = singular(words.split(" ")[-1])
    known = COCO_NAME_OF.get(words) or (head if head in COCO_OBJECTS else None)
    return name if known is None else known.replace(" ", "_")


def singular(words: str) -> str:
    """Return the singular of a plural that is known; anything else as it is."""
    endings = [("ies", "y"), ("ves", "fe"), ("es", ""), ("s", "")]
    forms = [words.removesuffix(end) + other for end, other in endings if words.endswith(end)]
    return next((form for form in (words, *forms) if form in KNOWN_OBJECTS), words)


ARTICLES = frozenset({"a", "an", "the", "his", "her", "their", "its", "my", "your", "our", "some"})
_PEOPLE = re.compile(
    r"^((a|an|the|one|some) )?(person|people|someone|somebody|man|woman|human)( who)?( (is|are))? ", re.IGNORECASE
)
_PARTS = re.compile(r"^(pair|piece|slice) of ")
_LIST_MARK = re.compile(r"^(?:[-*+•·–—]|\(?\d{1,3}[.)])\s+")
_QUOTED = re.compile(r"""^(["'`“”„«‘’])(.*)(["'`“”«»‘’])$""")
_ODD = re.compile(r"""(?:^|\s)[-*+•·–—"“”„«»‘`(\[]|["“”„«»)\]](?:\s|$)""")


class Phrase(NamedTuple):
    """What a line says: verb (`sit_on`), object (`park_bench`), and its own words if the prompt's would differ."""

    verb: str
    object_name: str
    wording: str | None


def parse_phrase(line: str, where: str) -> Phrase:
    """Return the verb and object of a line, or raise a UserError if it has none."""
    said = _PEOPLE.sub("", " ".join(_bare(line).split()))
    verb, object_name = _parts(said.replace("_", " ").lower())
    if _ODD.search(said.replace(",", " ")):
        fix = "take the marks out of the line; a comment starts with #"
        raise UserError("a phrase has marks in it", where=where, expected="words", got=line.strip(), fix=fix)
    if not verb or not object_name:
        expected = "riding a bicycle, or ride bicycle, or ride, bicycle"
        problem, fix = "a phrase needs a verb and an object", "for what a person does alone, write 'walking, no_object'"
        raise UserError(problem, where=where, expected=expected, got=line.strip(), fix=fix)
    first, *rest = verb.split(" ")
    base = " ".join([base_form(first), *rest])
    usual = f"{verb_ing(base)} {a_object(object_name)}"
    wording = said if _is_ing(first) and "," not in said and said.lower() != usual else None
    return Phrase(base.replace(" ", "_"), object_name.replace(" ", "_"), wording)


def _bare(line: str) -> str:
    """Return a line without the mark of a list, quotation marks around it all, and a full stop at its end."""
    text = _LIST_MARK.sub("", line.strip()).rstrip(".!; ")
    quoted = _QUOTED.match(text)
    return quoted.group(2).strip().rstrip(".!") if quoted else text


def foreign_phrases(path: str) -> list[str]:
    """Return the lines of a file of phrases in which nothing is English, if they are half of them or more.

    English is an -ing form, an article, a known verb or a known object; YAML, which has verbs and objects, is not
    looked at.
    """
    if Path(path).suffix.lower() in (".yaml", ".yml"):
        return []
    texts = (line.partition("#")[0].partition("|")[0].strip() for line in read_lines(path, "phrases, one a line"))
    said = [text for text in texts if text and "=" not in text]
    foreign = [text for text in said if not _has_english(_bare(text).replace(",", " ").replace("_", " ").lower())]
    return foreign if 2 * len(foreign) >= len(said) else []


def _has_english(said: str) -> bool:
    words = said.split()
    verbs = set(_known_ing_forms().values())
    return bool(ARTICLES & {*words}) or any(
        _is_ing(word) or (place == 0 and base_form(word) in verbs) or singular(word) in COCO_OBJECTS
        for place, word in enumerate(words)
    )


def _parts(said: str) -> tuple[str, str]:
    if "," in said:
        verb, _, obj = (part.strip() for part in said.partition(","))
        first, _, rest = obj.partition(" ")
        return verb, _object(rest if first in ARTICLES and rest else obj)
    words = said.split(" ")
    articles = [place for place, word in enumerate(words) if word in ARTICLES and 0 < place < len(words) - 1]
    if articles:
        return " ".join(words[: articles[-1]]), _object(" ".join(words[articles[-1] + 1 :]))
    starts = (start for start in range(1, len(words)) if singular(" ".join(words[start:])) in KNOWN_OBJECTS)
    start = next(starts, len(words) - 1)
    return " ".join(words[:start]), _object(" ".join(words[start:]))


def _object(words: str) -> str:
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
    return {verb_ing(verb): verb for verb in (name.split("_")[0] for name in hicodet_vocabulary().verbs)}


def _candidates(stem: str) -> list[str]:
    """Return possible base forms, likely ones first: `sitt` may be sit, `danc` dance, `hold` hold."""
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsfz":
        return [stem[:-1], stem, stem + "e"]
    if stem.endswith("y") and len(stem) <= 2:
        return [stem[:-1] + "ie", stem]
    silent = re.search(r"([cvuz]|[^aeiou]l|dg|rg|[aeiouw]s|chang|rrang)$", stem) is not None and not stem.endswith("ll")
    return [stem + "e", stem] if silent else [stem, stem + "e"]


class Entry(Section):
    """One interaction of a file; without `detector_class` the object is detected under its usual name."""

    verb: Annotated[str, Field(min_length=1)]
    object: Annotated[str, Field(min_length=1)]
    phrase: str | None = None
    synonyms: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    detector_class: str | None = None


Entries = dict[str, Entry]  # place in the file → what it says there


def read_vocabulary(path: str) -> Vocabulary:
    """Return the vocabulary of a file; `person` is always an object.

    `.yaml` and `.yml` hold a list of `{verb, object, phrase?, synonyms?, detector_class?}`; an object without a class
    is its own. Any other file holds one phrase a line, synonyms after `|`, and lines like `kick scooter = skateboard`
    for a thing that the detector calls otherwise; everyday names of COCO's classes are known. `#` starts a comment.

    Raises UserError: an entry is not understood, or is there twice; named by its position.
    """
    is_yaml = Path(path).suffix.lower() in (".yaml", ".yml")
    if is_yaml:
        plain = read_yaml(path)
        if not isinstance(plain, list) or not plain:
            expected = "a list of {verb, object, phrase, synonyms, detector_class}, the last three optional"
            raise UserError("this is no vocabulary", where=path, expected=expected)
        places = {f"{path}, entry {position}": entry for position, entry in enumerate(plain, start=1)}
        entries = {where: parse_section(Entry, entry, where) for where, entry in places.items()}
    else:
        entries = _read_lines(path)
    if not entries:
        raise UserError("the vocabulary holds no phrase", where=path, expected="at least one, as 'riding a bicycle'")
    first_place: dict[tuple[str, str], str] = {}
    for where, entry in entries.items():
        first = first_place.setdefault((verb_ing(entry.verb), spaced(entry.object).lower()), where)
        if first != where:
            problem = f"the interaction '{entry.verb} {entry.object}' is there twice"
            fix = "keep one; another wording of it is a synonym"
            raise UserError(problem, where=f"{first} and {where}", fix=fix)
    class_of = _classes(entries, (lambda name: name) if is_yaml else usual_name)
    try:
        return Vocabulary(
            (PERSON, *dict.fromkeys(seen for seen in class_of.values() if seen != PERSON)),
            tuple(dict.fromkeys(entry.verb for entry in entries.values())),
            tuple((entry.verb, entry.object) for entry in entries.values()),
            tuple(entry.phrase for entry in entries.values()),
            tuple(tuple(entry.synonyms) for entry in entries.values()),
            tuple((name, seen) for name, seen in class_of.items() if name != seen),
        )
    except UserError as error:
        raise UserError(error.what, where=path, expected=error.expected, got=error.got, fix=error.fix) from None


def _classes(entries: Entries, usual: Callable[[str], str]) -> dict[str, str]:
    """Return the class of each object name. A thing and its everyday name are one class, spelt as in the file."""
    spelt = {spaced(entry.object).lower(): entry.object for entry in entries.values()}
    said: dict[str, tuple[str, str]] = {}
    for where, entry in entries.items():
        if entry.detector_class is not None:
            seen, first = said.setdefault(entry.object, (entry.detector_class, where))
            if seen != entry.detector_class:
                what, got = f"'{entry.object}' has two detector classes", f"{seen} and {entry.detector_class}"
                raise UserError(what, where=f"{first} and {where}", got=got, fix="keep one of the two")
    class_of: dict[str, str] = {}
    for name in dict.fromkeys(entry.object for entry in entries.values()):
        seen = name if name == NO_OBJECT else said[name][0] if name in said else usual(name)
        class_of[name] = spelt.get(spaced(seen).lower(), seen)
    # A class may itself be seen as another one: the last of the chain is what a detector gives.
    for name in class_of:
        chain = [name]
        while (after := class_of.get(chain[-1], chain[-1])) != chain[-1]:
            if after in chain:
                raise UserError("detector classes go round in a circle", where=said[name][1], got=" = ".join(chain))
            chain.append(after)
        class_of[name] = chain[-1]
    return class_of


def _read_lines(path: str) -> Entries:
    plain: dict[str, dict[str, Any]] = {}
    classes: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(read_lines(path, "phrases, one a line"), start=1):
        text, where = line.partition("#")[0].strip(), f"{path}, line {number}"
        if len(text) > MAX_LINE:
            raise UserError("a line is too long", where=where, expected=f"at most {MAX_LINE} letters", got=len(text))
        if "=" in text:
            name, seen = (" ".join(part.split()).replace(" ", "_").lower() for part in text.split("=", 1))
            if not name or not seen or "=" in seen:
                raise UserError("a line is not understood", where=where, expected="scooter = motorcycle", got=text)
            classes[name] = (seen, where)
        elif text:
            said, *others = (part.strip() for part in text.split("|"))
            verb, name, wording = parse_phrase(said, where)
            synonyms = [other for other in others if other]
            plain[where] = {"verb": verb, "object": name, "phrase": wording, "synonyms": synonyms}
    named = {entry["object"] for entry in plain.values()}
    for name, (_, where) in classes.items():
        if name not in named:
            what, got = "a line gives a class to an unknown object", f"'{name}', which no phrase speaks of"
            raise UserError(what, where=where, expected=nearest(name, named), got=got)
    seen_as = {name: seen for name, (seen, _) in classes.items()}
    return {where: Entry(**entry, detector_class=seen_as.get(entry["object"])) for where, entry in plain.items()}
