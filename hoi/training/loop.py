"""A student and a split's cached signals to a trained student, going on from the last checkpoint.

Every epoch draws its order and its dropout from (seed, epoch) alone, so a run that was interrupted and resumed ends
with the same weights, bit for bit, as one that was not. Several processes end with those of one but for the order of
sums, and but for dropout, which each of them draws for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hoi.config import TrainConfig
from hoi.errors import UserError
from hoi.machine import Precision, choose_precision, mixed
from hoi.matching import LabelTargets
from hoi.records import PairBatch
from hoi.students.base import StepLosses, Student
from hoi.training.distributed import ALONE, Group
from hoi.training.runs import Board, RunFolder

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


__all__ = ["BatchSource", "Progress", "fit"]


@dataclass
class Progress:
    """Where a run stands, besides the weights.

    Args:
        epoch: Epochs done.
        best_epoch: The epoch whose weights were best so far, where a quality is asked.
        best_quality: Its quality.
        best: Its weights.
    """

    epoch: int = 0
    best_epoch: int | None = None
    best_quality: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)


def fit(
    student: Student,
    source: BatchSource,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
    labels: LabelTargets | None = None,
    quality: Callable[[Student], float] | None = None,
    run: RunFolder | None = None,
    title: str = "",
    group: Group = ALONE,
) -> tuple[Student, Progress]:
    """Trains a student for `config.epochs` epochs: AdamW, a short linear warm-up, cosine to zero.

    Args:
        student: Untrained; it is trained in place.
        source: The training split, or this process's share of its batches.
        config: Epochs, batch, learning rate.
        seed: Of order and dropout.
        device: Where to compute.
        labels: For `supervision: labels` only.
        quality: Student in evaluation mode to a figure of merit, asked at every checkpoint; the best one's weights are
            kept. Without it the last epoch's are.
        run: Where metrics and checkpoints go, and whence an interrupted run goes on; None keeps nothing.
        title: Stands before the progress bar; empty for no bar.
        group: Who trains together; the first process alone asks for quality and writes.

    Returns:
        The student in evaluation mode, and where the run stands.

    Raises:
        UserError: the loss is no longer finite.
    """
    student.to(device)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    kept = group.ask_first(lambda: run.load_state() if run is not None and run.status() == "started" else None)
    progress = Progress() if kept is None else _resume(*kept, student, optimizer)
    group.copy_first(student)
    if not group.is_first:
        run, quality, title = None, None, ""
    if run is not None:
        run.keep_metrics(progress.epoch)
    board = Board(run.path / "tensorboard", progress.epoch) if run is not None and config.tensorboard else None
    precision = choose_precision(config.precision, device)
    loop = Loop(student, optimizer, source, config, seed, device, labels, group, precision)
    done = progress.epoch * loop.steps_per_epoch
    start, first_epoch = time.monotonic(), progress.epoch
    with tqdm(total=loop.num_steps, initial=done, desc=title, unit="step", disable=None if title else True) as bar:
        for epoch in range(progress.epoch, config.epochs):
            epoch_start = time.monotonic()
            record = loop.run_epoch(epoch, bar)
            progress.epoch = epoch + 1
            at_checkpoint = progress.epoch % config.checkpoint_every == 0 or progress.epoch == config.epochs
            if quality is not None and at_checkpoint:
                record["quality"] = _choose(progress, student, quality)
            if run is not None:
                now = time.monotonic()
                record["images_per_s"] = source.num_images / (now - epoch_start)
                record["eta_s"] = (now - start) / (progress.epoch - first_epoch) * (config.epochs - progress.epoch)
                run.log({"epoch": progress.epoch, **record})
                if board is not None:
                    board.log(progress.epoch, record)
                if at_checkpoint:
                    _save(run, student, optimizer, progress)
    if board is not None:
        board.close()
    if progress.best_epoch is not None and group.is_first:
        student.load_state_dict(progress.best)
    group.copy_first(student)
    return student.eval(), progress


def _choose(progress: Progress, student: Student, quality: Callable[[Student], float]) -> float:
    value = quality(student.eval())
    if value > progress.best_quality:
        progress.best_epoch, progress.best_quality = progress.epoch, value
        progress.best = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
    return value


def _save(run: RunFolder, student: Student, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    tensors = {f"student/{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"best/{name}": tensor.clone() for name, tensor in progress.best.items()}
    for row, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{row}/{name}": tensor for name, tensor in state.items()}
    header = {
        "epoch": str(progress.epoch),
        "best_epoch": str(progress.best_epoch),
        "best_quality": repr(progress.best_quality),
    }
    run.save_state(tensors, header)


def _resume(
    tensors: dict[str, Tensor], header: dict[str, str], student: Student, optimizer: torch.optim.Optimizer
) -> Progress:
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    student.load_state_dict(parts["student"])
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        row, _, key = name.partition("/")
        states.setdefault(int(row), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    best_epoch = None if header["best_epoch"] == "None" else int(header["best_epoch"])
    return Progress(int(header["epoch"]), best_epoch, float(header["best_quality"]), parts["best"])
