"""What every section of the pipeline file is made of: strictness, and types that several of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from hoi.errors import nearest
from hoi.registry import Registry

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("a folder will have this name: letters, digits, - _ and . only, the first a letter or a digit")
    return name


def _own_row(name: str) -> str:
    if name in TABLE_NAMES:
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
TeacherWeights = Annotated[dict[FolderName, Annotated[float, Field(ge=0)]], AfterValidator(_with_weight)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)]
TABLE_NAMES = frozenset(
    {"detector_prior", "direct_clip", "direct_clip_image", "direct_clip_product", "direct_clip_tuned"}
    | {"vlm_image", "vlm_pairs", "interaction"}
    | {"direct_clip_gated", "global", "union", "human_object", "spatial", "ungated"}
    | {"labels_on_detections"}
)
"""Rows of the result table that are not a student's own, so no student may be called so."""


class Section(BaseModel):
    """A strict part of the pipeline file: unknown keys, and numbers written as strings, are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        unknown = [key for key in data if key not in cls.model_fields] if isinstance(data, dict) else []
        if unknown:
            errors = [_error("unknown_key", "unknown key", str(key), data[key], cls.model_fields) for key in unknown]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return data


def _error(kind: str, what: str, key: str, value: Any, known: Iterable[str]) -> InitErrorDetails:
    expected = nearest(key if kind == "unknown_key" else str(value), known)
    return InitErrorDetails(type=PydanticCustomError(kind, what, {"expected": expected}), loc=(key,), input=value)


def looked_up(registry: Registry[Any], key: str, default: str | None = None) -> WrapValidator:
    """Return the validator of a section whose class a registry names, by one of the section's own keys.

    Only the module of that class is imported. Errors lie where they would if the field were of the class itself.

    Args:
        registry: Of settings classes.
        key: The key that names the class.
        default: The name where the key is left out; None where it must be there.
    """

    def validate(value: Any, of_base: Callable[[Any], Any]) -> Any:
        name = value.get(key, default) if isinstance(value, dict) else None
        if name is None:
            return of_base(value)
        if name not in registry:
            error = _error("unknown_name", f"there is no {registry.kind} of this name", key, name, registry)
            raise ValidationError.from_exception_data(registry.kind, [error])
        return registry[name].model_validate(value)

    return WrapValidator(validate)


class StudentSettings(Section):
    """One student of the pipeline file; each method has a section of its own."""

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset({"score_exponent"})
    """Keys that leave the weights alone, so changing them asks for no new training."""

    IMPLEMENTATION: ClassVar[str]
    """`module:attribute` of a `hoi.students.base.Student`."""

    method: str
    """Which of the sections this is."""
    supervision: Literal["teacher", "labels"] = "teacher"
    """`teacher`: cached scores only. `labels`: annotated pairs matched to cached boxes."""
    zero_shot: str | None = None
    """With `supervision: labels`: a split whose unseen interactions are hidden from training, prototypes and the choice
    of checkpoints and of the prior's exponent: `rare_first`, `non_rare_first`, `unseen_object` or `unseen_verb`
    (docs/zero-shot.md)."""
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """With `supervision: labels`: share of the training images that are learned from, the first of one shuffled order,
    as `train.max_images`; null for all. Checkpoints are chosen by all labels of `evaluation.tune_split` even so."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """null for `train.learning_rate`."""
    epochs: Count | None = None
    """null for `train.epochs`."""
    score_exponent: Annotated[float, Field(ge=0)] = 1.0
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
