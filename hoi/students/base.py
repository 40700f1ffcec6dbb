"""What training and scoring ask of a student; each method is one file beside this one.

Letters: P pairs, K interactions, R images or pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from hoi.matching import LabelTargets
from hoi.records import BranchScores, PairBatch


@dataclass(frozen=True)
class StepLosses:
    """What one batch says of a student.

    Args:
        losses: Scalars by name, weighted already: training minimises their sum.
        agreement: bool [R] by name: whether student and teacher put the same interaction first. Empty where no
            teacher is asked.
        counts: What a loss was divided by, a scalar by name, and 1 was taken for 0; a loss that is not named here is a
            mean over the batch's images. With them, losses of a batch's parts add up to the batch's.
    """

    losses: dict[str, Tensor]
    agreement: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum, a scalar."""
        first, *others = self.losses.values()
        return sum(others, first)


class Student(nn.Module, ABC):
    """A network that scores the pairs of a batch from cached signals alone.

    It may be called inside of `hoi.machine.mixed`; logits and losses are float32 all the same.
    """

    @property
    def extra_fields(self) -> tuple[str, ...]:
        """Cached fields beyond those of every `PairBatch` that the student reads, out of `PairBatch.extra`."""
        return ()

    @property
    def scoring_fields(self) -> tuple[str, ...]:
        """Those of them that scores need; the others only teach."""
        return self.extra_fields

    def prepare(self, batches: Iterable[PairBatch], labels: LabelTargets | None) -> None:
        """Looks once at what it is about to learn from, before a new run's first step; does nothing where not needed.

        What it finds goes into parameters and buffers of the state, so that a run that goes on need not look again. It
        must not depend on the order of the batches: several processes may each look for themselves.

        Args:
            batches: All training images once, with `extra_fields`.
            labels: As in `losses`.
        """

    @abstractmethod
    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        """Batch to what training minimises.

        Args:
            batch: On the student's device.
            labels: The split's labels for `supervision: labels`, else None.
        """

    @abstractmethod
    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to [P, K] scores in [0, 1]: `student` first, then each part alone."""

    def variants(self) -> dict[str, Student]:
        """Return the same weights scored in other ways, by a text for the report; none where a method has none."""
        return {}
