"""One epoch of training after the other: batches to steps, alone or with other processes, and to the epoch's means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hoi.config import TrainConfig
from hoi.distributed import ALONE, Group
from hoi.errors import UserError
from hoi.matching import LabelTargets
from hoi.precision import Precision, mixed
from hoi.records import PairBatch
from hoi.students import StepLosses, Student

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises."""


@runtime_checkable
class BatchSource(Protocol):
    """A split that hands out its images in batches, or one process's share of each batch."""

    @property
    def num_images(self) -> int:
        """Of the whole split."""
        ...

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        """Every image once, shuffled by `rng`, or in order where it is None; with the `extra` fields."""
        ...


@dataclass(frozen=True)
class Step:
    """What one step says of the whole batch, on the student's device.

    Args:
        total: What was minimised.
        losses: Its parts by name.
        agreeing: By name, on how many images or pairs student and teacher agree, and of how many.
        norm: Of the gradient, before it is clipped.
    """

    total: Tensor
    losses: dict[str, Tensor]
    agreeing: dict[str, tuple[Tensor, Tensor]]
    norm: Tensor


@dataclass
class Sums:
    """What the steps of an epoch add up to."""

    num_steps: int = 0
    values: dict[str, float] = field(default_factory=dict)
    agreeing: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Takes one step in; waits for the device once."""
        values = {
            "loss": step.total,
            **{f"loss_{name}": value for name, value in step.losses.items()},
            "gradient_norm": step.norm,
        }
        counts = [count for pair in step.agreeing.values() for count in pair]
        found = torch.stack([*values.values(), *(count.to(step.total) for count in counts)]).tolist()
        for name, value in zip(values, found, strict=False):
            self.values[name] = self.values.get(name, 0.0) + value
        for name, agrees, of in zip(step.agreeing, found[len(values) :: 2], found[len(values) + 1 :: 2], strict=True):
            before = self.agreeing.get(name, (0.0, 0.0))
            self.agreeing[name] = (before[0] + agrees, before[1] + of)
        self.num_steps += 1

    def means(self) -> dict[str, float]:
        """What metrics.jsonl keeps of an epoch."""
        means = {name: value / self.num_steps for name, value in self.values.items()}
        return means | {f"agreement_{name}": agrees / max(of, 1) for name, (agrees, of) in self.agreeing.items()}


@dataclass(frozen=True)
class Loop:
    """What stays the same from epoch to epoch.

    Args:
        student, optimizer: Trained in place.
        source: This process's images.
        config: Batch, learning rate, epochs.
        seed: Of order and dropout. Processes of one group draw the same order, and each its own dropout.
        device: Of the student.
        labels: For `supervision: labels` only.
        group: Who trains together.
        precision: Of the layers.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    source: BatchSource
    config: TrainConfig
    seed: int
    device: torch.device
    labels: LabelTargets | None = None
    group: Group = ALONE
    precision: Precision = "fp32"

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.source.num_images / self.config.batch_images)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def run_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass over the split to the means that metrics.jsonl keeps."""
        self.student.train()
        sums = Sums()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            own_dropout = (self.seed, epoch) if self.group.is_first else (self.seed, epoch, self.group.rank)
            torch.manual_seed(int(np.random.SeedSequence(own_dropout).generate_state(1)[0]))
            shuffle = np.random.default_rng((self.seed, epoch))
            for batch in self._batches(shuffle):
                step = epoch * self.steps_per_epoch + sums.num_steps
                rate = _learning_rate(self.config.learning_rate, step, self.num_steps)
                sums.add(self._step(*batch, rate))
                bar.set_postfix(loss=f"{sums.values['loss'] / sums.num_steps:.3f}", refresh=False)
                bar.update()
                if not math.isfinite(sums.values["loss"]):
                    raise UserError(
                        "the loss is no longer finite",
                        where=f"seed {self.seed}, epoch {epoch + 1}",
                        fix="lower train.learning_rate",
                    )
        return {**sums.means(), "learning_rate": rate}

    def _batches(self, shuffle: np.random.Generator) -> Iterator[tuple[PairBatch, bool]]:
        """Batches, and whether they count: one before stands in, for its zeros, where this process's share is empty."""
        stand_in = None
        for batch in self.source.batches(self.config.batch_images, shuffle, self.student.extra_fields):
            is_empty = batch.num_images == 0
            if not is_empty:
                stand_in = batch
            if stand_in is None:
                raise UserError(
                    "a batch has fewer images than processes share it",
                    where=f"process {self.group.rank} of {self.group.size}",
                    expected=f"at least {self.group.size} images and train.batch_images={self.group.size}",
                    fix="raise train.batch_images, or start fewer processes",
                )
            yield stand_in, not is_empty

    def _step(self, batch: PairBatch, counts: bool, rate: float) -> Step:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with mixed(self.precision, self.device):
            found = self.student.losses(batch.to(self.device), self.labels)
        agreeing = {
            name: (agrees.sum(), agrees.new_tensor(agrees.numel(), dtype=torch.int64))
            for name, agrees in found.agreement.items()
        }
        if self.group.size == 1:
            found.total.backward()
            total, losses = found.total.detach(), {name: loss.detach() for name, loss in found.losses.items()}
        else:
            total, losses, agreeing = self._share(found, batch.num_images if counts else 0, agreeing)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_gradient)
        self.optimizer.step()
        return Step(total, losses, agreeing, norm)

    def _share(
        self, found: StepLosses, num_images: int, agreeing: dict[str, tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
        """Losses of this share of the batch to gradients and figures of the whole batch.

        Args:
            found: Each loss was divided by its own count.
            num_images: Of the share that count; 0 for none.
            agreeing: Of the share.
        """
        has_images = num_images > 0
        own = torch.stack([found.counts.get(name, torch.tensor(num_images)).to(found.total) for name in found.losses])
        whole = self.group.add(own * has_images)
        weights = has_images * own.clamp(min=1) / whole.clamp(min=1)
        weighted = weights * torch.stack(list(found.losses.values()))
        weighted.sum().backward()
        figures = [*weighted.detach(), *(has_images * count.to(own) for pair in agreeing.values() for count in pair)]
        summed = self.group.add_gradients(list(self.student.parameters()), torch.stack(figures))
        losses, counts = summed[: len(weighted)], summed[len(weighted) :]
        pairs = zip(counts[::2], counts[1::2], strict=True)
        return losses.sum(), dict(zip(found.losses, losses, strict=True)), dict(zip(agreeing, pairs, strict=True))


def _learning_rate(highest: float, step: int, num_steps: int) -> float:
    """Linear from near zero over the first `WARM_UP` of all steps, then half a cosine to zero."""
    warm_up = max(1, round(WARM_UP * num_steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))
