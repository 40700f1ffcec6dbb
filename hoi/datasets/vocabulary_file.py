"""A vocabulary file of one's own, in YAML or as plain lines, to a Vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hoi.config.yaml import read_yaml
from hoi.datasets.phrases import parse_phrase, usual_name
from hoi.errors import UserError, nearest
from hoi.prompts import spaced, verb_ing
from hoi.vocabulary import NO_OBJECT, PERSON, Vocabulary

YAML_SUFFIXES = (".yaml", ".yml")
ENTRY = "{verb: text, object: text, phrase: text, synonyms: [text, ...], detector_class: text}, the last three optional"


@dataclass(frozen=True)
class Entry:
    """One interaction of a file.

    Args:
        where: For messages.
        verb, object_name: Its names.
        phrase: In place of the prompt's wording.
        synonyms: Further wordings.
        detector_class: What a detector calls the object; None for the object's usual name.
    """

    where: str
    verb: str
    object_name: str
    phrase: str | None = None
    synonyms: tuple[str, ...] = ()
    detector_class: str | None = None


def read_vocabulary(path: str) -> Vocabulary:
    """Vocabulary file to a Vocabulary; `person` is always an object.

    `.yaml` and `.yml` hold a list of `{verb, object, phrase?, synonyms?, detector_class?}`; an object without a class
    is its own. Any other file holds one phrase a line (`hoi.datasets.phrases`), synonyms behind it after `|`, and lines
    like `kick scooter = skateboard` for a thing that the detector calls otherwise; everyday names of COCO's classes are
    known. `#` starts a comment.

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
    """Object names to classes. A thing and its everyday name are one class, spelt as the file spells it.

    Args:
        entries: Of the file.
        usual: What a thing is called by detectors, where the file does not say.
    """
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
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError("there is no such file of phrases", where=path, fix="check the path") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=path, expected="a file of phrases, one a line") from None
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected="phrases in UTF-8, one a line") from None
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
