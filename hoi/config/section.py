"""What every section of the pipeline file is made of: strictness, and types that several of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from hoi.errors import nearest
from hoi.registry import METHODS, Registry

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=8192)]
"""Of a layer, or how many layers there are."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
Exponent = Annotated[float, Field(ge=0, le=100)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=1e30)]
Place = Annotated[str, Field(min_length=1, max_length=4096)]
"""A file or folder."""


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("a folder will have this name: letters, digits, - _ and . only, the first a letter or a digit")
    return name


def _own_row(name: str) -> str:
    if name in reserved_rows():
        raise ValueError("the result table has another row of this name")
    return name


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is there twice")
    return seeds


def _with_weight(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        raise ValueError("every teacher has the weight 0, so none is left to learn from")
    return {name: weight for name, weight in weights.items() if weight > 0}


FolderName = Annotated[str, AfterValidator(_folder_name)]
"""Of a split, or of a student."""
StudentName = Annotated[FolderName, AfterValidator(_own_row)]
TeacherWeights = Annotated[dict[FolderName, Weight], AfterValidator(_with_weight)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
BASELINE_ROWS = frozenset(
    {"detector_prior", "direct_clip", "direct_clip_image", "direct_clip_product", "direct_clip_tuned"}
    | {"direct_clip_gated", "vlm_image", "vlm_pairs", "labels_on_detections"}
)
"""Rows of the result table that no student has part in: `hoi.evaluation.baselines`, and labels on the detections."""


def reserved_rows() -> frozenset[str]:
    """Return the rows of the result table that no student may be called."""
    return BASELINE_ROWS.union(*(METHODS[name].ROWS for name in METHODS))


class Section(BaseModel):
    """A strict part of the pipeline file: unknown keys, and numbers written as strings, are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_max_length=10_000)
    MOVED: ClassVar[dict[str, str]] = {}
    """Keys of earlier versions → where they are now."""

    def by_key(self, plain: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return plain data of this section by dotted key: some of its keys, or None for all of its own."""
        found: dict[str, Any] = {}
        for key, value in (self.model_dump(mode="json") if plain is None else plain).items():
            inner = getattr(self, key, None)
            if isinstance(inner, Section) and isinstance(value, dict):
                found |= {f"{key}.{name}": leaf for name, leaf in inner.by_key(value).items()}
            else:
                found[key] = value
        return found

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = [field.alias or name for name, field in cls.model_fields.items()]
        # A word may have become the name of a section.
        moved = {key for key in cls.MOVED if key not in known or not isinstance(data.get(key), dict | Section)}
        errors = [
            _error("unknown_key", f"the key '{key}' is now '{cls.MOVED[key]}'", key, value, cls.MOVED[key])
            if key in moved
            else _error("unknown_key", "unknown key", str(key), value, nearest(str(key), known))
            for key, value in data.items()
            if key in moved or key not in known
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return data


def _error(kind: str, what: str, key: str, value: Any, expected: str) -> InitErrorDetails:
    return InitErrorDetails(type=PydanticCustomError(kind, what, {"expected": expected}), loc=(key,), input=value)


def looked_up(registry: Registry[Any], key: str, default: str | None = None) -> WrapValidator:
    """Return the validator of a section whose class a registry names, by one of the section's own keys.

    Only the module of that class is imported. Errors lie where they would if the field were of the class itself.
    Without a default name the key must be there.
    """

    def validate(value: Any, of_base: Callable[[Any], Any]) -> Any:
        if not isinstance(value, dict):
            return of_base(value)
        name = value.get(key, default)
        if name is not None and name in registry:
            return registry[name].model_validate(value)
        error = InitErrorDetails(type="missing", loc=(key,), input=value)
        if name is not None:
            what = f"there is no {registry.kind} of this name"
            error = _error("unknown_name", what, key, name, nearest(str(name), registry))
        raise ValidationError.from_exception_data(registry.kind, [error])

    return WrapValidator(validate)


class GateSettings(Section):
    """The competition gate of a student's score (`hoi.scoring.competition_gate`)."""

    kind: Literal["both", "object", "human", "best"] = "both"
    """Among whom a pair's share is taken: the pairs of its object, then those of its human (`both`), or one of the two
    alone; `best` divides by the largest mass instead of the sum, so that people who share an object may all keep it.
    [choice]"""
    exponent: Exponent = 0.0
    """Real interactions are multiplied by the pair's share of the mass to this power; 0 for no gate."""


class StudentSettings(Section):
    """One student of the pipeline file; each method has a section of its own."""

    IMPLEMENTATION: ClassVar[str]
    """`module:attribute` of a `hoi.students.base.Student`."""
    ROWS: ClassVar[Mapping[str, str]] = {}
    """Rows of the result table that the student brings besides its own → what they are."""
    BRANCHES: ClassVar[tuple[str, ...]] = ()
    """Those of them with the best of which the student is compared."""
    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset({"score_exponent"})
    """Keys, dotted, that do not change the weights, so changing them needs no new training."""
    MOVED: ClassVar[dict[str, str]] = {"gate": "gate.kind", "gate_exponent": "gate.exponent"}

    method: str
    """The method's name, which says what the other keys are."""
    supervision: Literal["teacher", "labels"] = "teacher"
    """`teacher`: cached scores only. `labels`: annotated pairs matched to cached boxes."""
    zero_shot: str | None = None
    """With `supervision: labels`: a split whose unseen interactions are hidden from training, prototypes and the choice
    of checkpoints and of the prior's exponent: `rare_first`, `non_rare_first`, `unseen_object` or `unseen_verb`
    (docs/zero-shot.md)."""
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """With `supervision: labels`: share of the training images that are learned from, the first of one shuffled order,
    as `train.max_images`; null for all. Checkpoints are chosen by all labels of `evaluation.tune_split` even so."""
    learning_rate: Rate | None = None
    """null for `train.learning_rate`."""
    epochs: Count | None = None
    """null for `train.epochs`."""
    score_exponent: Exponent = 1.0
    """γ of (s_h · s_o)^γ in the final score. [choice]"""

    @model_validator(mode="after")
    def _labels_for_what_is_about_labels(self) -> StudentSettings:
        for key in ("zero_shot", "label_fraction"):
            if getattr(self, key) is not None and self.supervision != "labels":
                raise ValueError(f"{key} is about labels, and supervision is {self.supervision}")
        return self

    @property
    def vlm_names(self) -> frozenset[str]:
        """The passes of `vlms` whose fields the student reads."""
        return frozenset()

    def training_settings(self) -> dict[str, Any]:
        """Return the settings that decide the weights, as plain data: all but `READ_WHEN_SCORING`."""
        plain = self.model_dump(mode="json")
        for key in self.READ_WHEN_SCORING:
            *parents, last = key.split(".")
            del reduce(getitem, parents, plain)[last]
        return plain
