"""What training and evaluation ask of a student: losses of a batch, and scores of its pairs.

Shapes: P pairs, K interactions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hoi.config.section import StudentSettings
from hoi.matching import LabelTargets
from hoi.records import BranchScores, PairBatch, TextBank
from hoi.registry import load_target
from hoi.scoring import gated
from hoi.vocabulary import Vocabulary


@dataclass(frozen=True)
class StepLosses:
    """Losses of one batch."""

    losses: dict[str, Tensor]  # scalars by name, weighted already: training minimises their sum
    # bool by name, of images or pairs: whether student and teacher rank the same interaction first
    agreement: dict[str, Tensor] = field(default_factory=dict)
    # By name, what a loss was divided by (0 taken as 1; default: its images), so that losses of a batch's parts add up
    counts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        first, *others = self.losses.values()
        return sum(others, first)


class Student(nn.Module, ABC):
    """A network that scores the pairs of a batch from cached signals alone.

    It may be called inside `hoi.machine.mixed`; logits and losses are float32 all the same.
    """

    admitted: Tensor
    is_real: Tensor

    def __init__(self, config: Any, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.by_labels = config.supervision == "labels"
        self.register_buffer("admitted", torch.as_tensor(vocabulary.object_mask), persistent=False)
        self.register_buffer("is_real", torch.as_tensor(~vocabulary.is_no_interaction), persistent=False)

    @property
    def extra_fields(self) -> tuple[str, ...]:
        """Cached fields that the student reads from `PairBatch.extra`."""
        return ()

    @property
    def scoring_fields(self) -> tuple[str, ...]:
        """Those of `extra_fields` that scores need; the others are only learned from."""
        return self.extra_fields

    def prepare(self, batches: Iterable[PairBatch], labels: LabelTargets | None) -> None:
        """Look at all training images once before a new run's first step; by default, do nothing.

        Results go into the state, so that a resumed run need not look again. They must not depend on the order of the
        batches: every process of a group looks for itself.
        """

    @abstractmethod
    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        """Return what training minimises; labels are the split's with `supervision: labels`, else None."""

    @abstractmethod
    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return scores [P, K] in [0, 1] by row name: `student`, and the rows in the settings' `ROWS`."""

    def variants(self) -> dict[str, Student]:
        """Return the same weights scored in other ways, each with a description; by default, none."""
        return {}

    def real(self, batch: PairBatch) -> Bool[Tensor, "P K"]:
        """Return which interactions each pair's object admits, `no_interaction` left out."""
        return self.is_real & self.admitted[batch.labels_o]

    def gate(self, scores: Float[Tensor, "P K"], batch: PairBatch) -> BranchScores:
        """Return row `student`, the scores through the competition gate, and `ungated` if the settings have one."""
        gate = self.config.gate
        if gate.exponent == 0:
            return {"student": scores}
        passed = gated(scores, self.real(batch), batch.rows_h, batch.rows_o, gate.exponent, gate.kind)
        return {"student": passed, "ungated": scores}


def build_student(
    config: StudentSettings, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int], seed: int = 0
) -> Student:
    """Return an untrained student on the CPU; torch's own random state is left as it was.

    `axes` are the sizes of the cache's axes (`CacheSplit.axes`).

    Raises UserError: the settings ask for what the teacher or the cache does not have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student: Student = load_target(config.IMPLEMENTATION)(config, bank, vocabulary, axes)
        return student
