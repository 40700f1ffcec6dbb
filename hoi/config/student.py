"""What the settings of all students share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hoi.config.section import Count, Section


class StudentSettings(Section):
    """One student of the pipeline file; each method has a section of its own."""

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset({"score_exponent"})
    """Keys that leave the weights alone, so changing them asks for no new training."""

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
    def vllm_names(self) -> frozenset[str]:
        """The passes of `vllms` whose fields the student reads."""
        return frozenset()
