"""Which objects, verbs and interactions (verb + object) exist, and which interactions an object admits.

Letters: K interactions, O object classes, V verbs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hoi.errors import UserError

NO_INTERACTION = "no_interaction"
PERSON = "person"
NO_OBJECT = "no_object"
"""The object of what a person does alone, as standing: no detector gives it, and each human is paired with itself."""


@dataclass(frozen=True)
class Vocabulary:
    """The closed set of names that a run speaks of; row order is the meaning of every `_idx`.

    Args:
        objects: O names of the classes that a detector may give; `person` is among them, and `no_object` may be.
        verbs: V names; `no_interaction` may be among them.
        interactions: K (verb name, object name) pairs, without duplicates.
        phrases: K texts that name the interaction in place of the prompt's own wording, or None for that wording.
        synonyms: K lists of further texts for the same interaction, each as a phrase; empty where nobody has one.
        seen_as: (object name, class) of interactions whose object a detector gives under another name, as a scooter
            among motorcycles. The class is one of `objects`, the name is none.
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
        for name, values in (("objects", self.objects), ("verbs", self.verbs), ("interactions", self.interactions)):
            if not values:
                raise UserError(f"the vocabulary has no {name}", expected=f"at least one of its {name}", got="none")
            doubled = sorted({str(v) for v in values if values.count(v) > 1})
            if doubled:
                raise UserError(
                    f"the vocabulary's {name} hold duplicates", got=", ".join(doubled), fix="keep one of each"
                )
        if PERSON not in self.objects:
            raise UserError(
                "the vocabulary's objects lack the human class", expected=PERSON, got=", ".join(self.objects)
            )
        for name, seen in self.seen_as:
            if name in self.objects or seen not in self.objects:
                raise UserError(
                    "an object is seen as another one that is no class",
                    where=f"{name}, seen as {seen}",
                    expected="a name that is no class, seen as one that is",
                )
        for verb, object_name in self.interactions:
            if verb not in self.verbs or self.class_of(object_name) not in self.objects:
                raise UserError(
                    "an interaction names an unknown verb or object",
                    where=f"{verb} {object_name}",
                    expected="names out of the vocabulary's verbs and objects",
                )
        for name, texts in (("phrases", self.phrases), ("synonyms", self.synonyms)):
            if texts and len(texts) != len(self.interactions):
                raise UserError(
                    f"{name} and interactions differ in number", expected=len(self.interactions), got=len(texts)
                )

    def __len__(self) -> int:
        """K, the number of interactions."""
        return len(self.interactions)

    @cached_property
    def person_idx(self) -> int:
        """Row of the human class in `objects`."""
        return self.objects.index(PERSON)

    @property
    def has_no_object(self) -> bool:
        """Whether there are interactions without object, for which each human is paired with itself."""
        return NO_OBJECT in self.objects

    @cached_property
    def no_object_idx(self) -> int | None:
        """Row of `no_object` in `objects`, if it is there."""
        return self.objects.index(NO_OBJECT) if self.has_no_object else None

    def class_of(self, object_name: str) -> str:
        """An interaction's object to the class that a detector gives it."""
        return dict(self.seen_as).get(object_name, object_name)

    @cached_property
    def object_of(self) -> np.ndarray:
        """int64 [K]: the object class of each interaction."""
        rows = {name: i for i, name in enumerate(self.objects)}
        return np.array([rows[self.class_of(o)] for _, o in self.interactions], dtype=np.int64)

    @cached_property
    def verb_of(self) -> np.ndarray:
        """int64 [K]: the verb of each interaction."""
        rows = {name: i for i, name in enumerate(self.verbs)}
        return np.array([rows[v] for v, _ in self.interactions], dtype=np.int64)

    @cached_property
    def object_mask(self) -> np.ndarray:
        """bool [O, K]: which interactions an object class admits; all False for a class without any."""
        return self.object_of[None, :] == np.arange(len(self.objects))[:, None]

    @cached_property
    def is_no_interaction(self) -> np.ndarray:
        """bool [K]."""
        return np.array([v == NO_INTERACTION for v, _ in self.interactions])

    @cached_property
    def names(self) -> list[str]:
        """K readable names, as `ride bicycle`."""
        return [f"{v} {o}" for v, o in self.interactions]

    def to_dict(self) -> dict[str, list]:
        """The plain form that goes into JSON; what was added later stands there only where it is used."""
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
    def from_dict(cls, plain: dict[str, Sequence]) -> Vocabulary:
        """Back from `to_dict`'s form."""
        return cls(
            tuple(plain["objects"]),
            tuple(plain["verbs"]),
            tuple((v, o) for v, o in plain["interactions"]),
            tuple(plain["phrases"]),
            tuple(tuple(texts) for texts in plain.get("synonyms", ())),
            tuple((name, seen) for name, seen in plain.get("seen_as", ())),
        )

    def digest(self) -> str:
        """SHA-256 over every name, phrase and order."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()
