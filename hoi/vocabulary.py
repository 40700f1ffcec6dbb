"""The vocabulary: objects, verbs and interactions (verb + object).

Shapes: K interactions, O object classes, V verbs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hoi.errors import UserError
from hoi.files import convert

MAX_NAMES = 10_000
"""Objects, interactions, synonyms: each text is embedded, and every pair of an image is compared with it."""
NO_INTERACTION = "no_interaction"
PERSON = "person"
NO_OBJECT = "no_object"
"""The object of interactions without one, such as standing: each human is paired with itself."""


@dataclass(frozen=True)
class Vocabulary:
    """The closed set of names of a run; every `_idx` is a row of one of these tuples.

    Args:
        objects: O classes a detector may return, `person` among them; may include `no_object`.
        verbs: V names; may include `no_interaction`.
        interactions: K (verb, object) pairs.
        phrases: K texts that replace the prompt's wording of the interaction; None keeps it.
        synonyms: K lists of more phrases for the same interaction; empty if there is none at all.
        seen_as: (object, class) for objects of interactions that a detector returns as another class, such as a
            scooter as a motorcycle. The class is one of `objects`, the object is not.
    """

    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    interactions: tuple[tuple[str, str], ...]
    phrases: tuple[str | None, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()
    seen_as: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.phrases:
            object.__setattr__(self, "phrases", (None,) * len(self.interactions))
        if not any(self.synonyms):
            object.__setattr__(self, "synonyms", ())
        synonyms = sum(map(len, self.synonyms))
        for name, number in (("objects", len(self.objects)), ("interactions", len(self)), ("synonyms", synonyms)):
            if number > MAX_NAMES:
                raise UserError(f"the vocabulary has too many {name}", expected=f"at most {MAX_NAMES}", got=number)
        for name, values in (("objects", self.objects), ("verbs", self.verbs), ("interactions", self.interactions)):
            if not values:
                raise UserError(f"the vocabulary has no {name}")
            doubled = sorted(str(value) for value, number in Counter(values).items() if number > 1)
            if doubled:
                raise UserError(f"the vocabulary has duplicate {name}", got=", ".join(doubled))
        if PERSON not in self.objects:
            raise UserError("the vocabulary has no human class", expected=PERSON, got=", ".join(self.objects))
        for name, seen in self.seen_as:
            if name in self.objects or seen not in self.objects:
                expected = "an object that is no class, seen as one of the classes"
                raise UserError("`seen_as` is not understood", where=f"{name} seen as {seen}", expected=expected)
        for verb, object_name in self.interactions:
            if verb not in self.verbs or self.class_of(object_name) not in self.objects:
                what, expected = "an interaction has an unknown verb or object", "names of the vocabulary"
                raise UserError(what, where=f"{verb} {object_name}", expected=expected)
        for name, texts in (("phrases", self.phrases), ("synonyms", self.synonyms)):
            if texts and len(texts) != len(self):
                raise UserError(f"{name} and interactions differ in number", expected=len(self), got=len(texts))

    def __len__(self) -> int:
        return len(self.interactions)

    @cached_property
    def person_idx(self) -> int:
        """Row of the human class in `objects`."""
        return self.objects.index(PERSON)

    @property
    def has_no_object(self) -> bool:
        return NO_OBJECT in self.objects

    @cached_property
    def no_object_idx(self) -> int | None:
        """Row of `no_object` in `objects`, if present."""
        return self.objects.index(NO_OBJECT) if self.has_no_object else None

    def class_of(self, object_name: str) -> str:
        """Return the class that a detector returns for an interaction's object."""
        return dict(self.seen_as).get(object_name, object_name)

    @cached_property
    def object_of(self) -> np.ndarray:
        """int64 [K]: the object class of each interaction."""
        return np.array([self.objects.index(self.class_of(o)) for _, o in self.interactions], dtype=np.int64)

    @cached_property
    def verb_of(self) -> np.ndarray:
        """int64 [K]: the verb of each interaction."""
        return np.array([self.verbs.index(v) for v, _ in self.interactions], dtype=np.int64)

    @cached_property
    def object_mask(self) -> np.ndarray:
        """bool [O, K]: the interactions of each object class."""
        return self.object_of[None, :] == np.arange(len(self.objects))[:, None]

    @cached_property
    def is_no_interaction(self) -> np.ndarray:
        """bool [K]."""
        return np.array([v == NO_INTERACTION for v, _ in self.interactions])

    @cached_property
    def names(self) -> list[str]:
        """K readable names such as `ride bicycle`."""
        return [f"{v} {o}" for v, o in self.interactions]

    def to_dict(self) -> dict[str, list]:
        """Return the JSON form; optional parts only where used."""
        plain: dict[str, list] = {
            "objects": list(self.objects),
            "verbs": list(self.verbs),
            "interactions": [list(pair) for pair in self.interactions],
            "phrases": list(self.phrases),
        }
        if self.synonyms:
            plain["synonyms"] = [list(texts) for texts in self.synonyms]
        if self.seen_as:
            plain["seen_as"] = [list(pair) for pair in self.seen_as]
        return plain

    @classmethod
    def from_dict(cls, plain: Any) -> Vocabulary:
        """Return the vocabulary that `to_dict` made plain; a UserError where it is none."""
        try:
            return convert(plain, cls)
        except ValueError as error:
            raise UserError("this is no vocabulary", expected="objects, verbs and interactions", got=error) from None

    def digest(self) -> str:
        """Return the SHA-256 over all names and phrases in their order."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
