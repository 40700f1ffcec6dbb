"""Trains a student on a split's cached signals, going on from the last checkpoint. Read it from `fit` downwards.

Every epoch draws its order and its dropout from (seed, epoch) alone, so a run that was interrupted and resumed ends
with the same weights, bit for bit, as one that was not. Several processes end with the weights of one except for the
order of sums, and except for dropout, which each of them draws for itself.
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
from hoi.training.runs import RunFolder, TensorBoardLogger

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises."""
AGREEING, COUNTED = "agreeing/", "counted/"
"""Prefixes of two figures of a step: on how many images or pairs student and teacher agree, and of how many."""


@runtime_checkable
class BatchSource(Protocol):
    """A split that yields its images in batches, or one process's share of each batch."""

    @property
    def num_images(self) -> int:
        """Images of the whole split."""

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        """Yield every image once, shuffled by `rng` or in order, with the `extra` fields."""


@dataclass
class Progress:
    """Where a run stands, besides the weights: epochs done, and the best epoch so far if a quality is measured."""

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
    """Train a student in place (AdamW, a short linear warm-up, cosine to zero), and return it and where the run stands.

    Args:
        seed: Of order and dropout.
        labels: For `supervision: labels` only.
        quality: Measured of the student in evaluation mode at every checkpoint; the best checkpoint's weights are
            kept. Without it the last epoch's are.
        run: Where metrics and checkpoints go, and where an interrupted run is resumed from; None keeps nothing.
        title: Of the progress bar; empty for no bar.

    Raises UserError: the loss is no longer finite.
    """
    student.to(device)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    state = group.ask_first(lambda: run.load_state() if run is not None and run.status() == "started" else None)
    progress = Progress() if state is None else _resume(*state, student, optimizer)
    group.copy_first(student)
    if not group.is_first:
        run, quality, title = None, None, ""
    logger = None
    if run is not None:
        run.keep_metrics(progress.epoch)
        logger = TensorBoardLogger(run.path / "tensorboard", progress.epoch) if config.tensorboard else None
    precision = choose_precision(config.precision, device)
    trainer = Trainer(student, optimizer, source, config, seed, device, labels, group, precision)
    done = progress.epoch * trainer.steps_per_epoch
    start, first_epoch = time.monotonic(), progress.epoch
    with tqdm(total=trainer.num_steps, initial=done, desc=title, unit="step", disable=None if title else True) as bar:
        for epoch in range(progress.epoch, config.epochs):
            epoch_start = time.monotonic()
            record = trainer.run_epoch(epoch, bar)
            progress.epoch = epoch + 1
            at_checkpoint = progress.epoch % config.checkpoint_every == 0 or progress.epoch == config.epochs
            if quality is not None and at_checkpoint:
                record["quality"] = value = quality(student.eval())
                if value > progress.best_quality:
                    progress.best_epoch, progress.best_quality = progress.epoch, value
                    progress.best = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
            if run is not None:
                now = time.monotonic()
                record["images_per_s"] = source.num_images / (now - epoch_start)
                record["eta_s"] = (now - start) / (progress.epoch - first_epoch) * (config.epochs - progress.epoch)
                run.log({"epoch": progress.epoch, **record})
                if logger is not None:
                    logger.log(progress.epoch, record)
                if at_checkpoint:
                    _save(run, student, optimizer, progress)
    if logger is not None:
        logger.close()
    if progress.best_epoch is not None and group.is_first:
        student.load_state_dict(progress.best)
    group.copy_first(student)
    return student.eval(), progress


@dataclass(frozen=True)
class Trainer:
    """Runs epochs; student and optimizer are changed in place."""

    student: Student
    optimizer: torch.optim.Optimizer
    source: BatchSource
    config: TrainConfig
    seed: int
    device: torch.device
    labels: LabelTargets | None
    group: Group
    precision: Precision

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.source.num_images / self.config.batch_images)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def run_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """Train for one pass over the split, and return what metrics.jsonl keeps of it."""
        self.student.train()
        sums: dict[str, float] = {}
        num_steps = 0
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # Processes of one group draw the same order, and each its own dropout.
            dropout_seed = (self.seed, epoch) if self.group.is_first else (self.seed, epoch, self.group.rank)
            torch.manual_seed(int(np.random.SeedSequence(dropout_seed).generate_state(1)[0]))
            shuffle = np.random.default_rng((self.seed, epoch))
            for batch, is_counted in self._batches(shuffle):
                step = epoch * self.steps_per_epoch + num_steps
                rate = _learning_rate(self.config.learning_rate, step, self.num_steps)
                figures = self._step(batch, is_counted, rate)
                # All at once, since each transfer waits for the device.
                for name, value in zip(figures, torch.stack(list(figures.values())).tolist(), strict=True):
                    sums[name] = sums.get(name, 0.0) + value
                num_steps += 1
                bar.set_postfix(loss=f"{sums['loss'] / num_steps:.3f}", refresh=False)
                bar.update()
                if not math.isfinite(sums["loss"]):
                    raise UserError(
                        "the loss is no longer finite",
                        where=f"seed {self.seed}, epoch {epoch + 1}",
                        fix="lower train.learning_rate",
                    )
        agreements = [name.removeprefix(AGREEING) for name in sums if name.startswith(AGREEING)]
        means = {name: value / num_steps for name, value in sums.items() if not name.startswith((AGREEING, COUNTED))}
        means |= {f"agreement_{name}": sums[AGREEING + name] / max(sums[COUNTED + name], 1) for name in agreements}
        return {**means, "learning_rate": rate}

    def _batches(self, shuffle: np.random.Generator) -> Iterator[tuple[PairBatch, bool]]:
        """Yield batches and whether they count; if this process's share is empty, an earlier one stands in for it."""
        stand_in = None
        for batch in self.source.batches(self.config.batch_images, shuffle, self.student.extra_fields):
            is_empty = batch.num_images == 0
            if not is_empty:
                stand_in = batch
            if stand_in is None:
                raise UserError(
                    "a batch has fewer images than there are processes to share it",
                    where=f"process {self.group.rank} of {self.group.size}",
                    expected=f"at least {self.group.size} images and train.batch_images={self.group.size}",
                    fix="raise train.batch_images, or start fewer processes",
                )
            yield stand_in, not is_empty

    def _step(self, batch: PairBatch, is_counted: bool, rate: float) -> dict[str, Tensor]:
        """Take one step and return its figures over the whole batch: scalars on the student's device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with mixed(self.precision, self.device):
            result = self.student.losses(batch.to(self.device), self.labels)
        total = result.total
        losses = {f"loss_{name}": loss.detach() for name, loss in result.losses.items()}
        counts = {AGREEING + name: agrees.sum().to(total) for name, agrees in result.agreement.items()}
        counts |= {COUNTED + name: total.new_tensor(agrees.numel()) for name, agrees in result.agreement.items()}
        if self.group.size == 1:
            total.backward()
        else:
            losses, counts = self._share(result, batch.num_images if is_counted else 0, losses, counts)
            total = torch.stack(list(losses.values())).sum()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_gradient)
        self.optimizer.step()
        return {"loss": total.detach(), **losses, "gradient_norm": norm, **counts}

    def _share(
        self, result: StepLosses, num_images: int, losses: dict[str, Tensor], counts: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Turn the losses and counts of this process's share into gradients and figures of the whole batch."""
        has_images = num_images > 0
        own_counts = torch.stack(
            [result.counts.get(name, torch.tensor(num_images)).to(result.total) for name in result.losses]
        )
        all_counts = self.group.add(own_counts * has_images)
        weights = has_images * own_counts.clamp(min=1) / all_counts.clamp(min=1)
        weighted = weights * torch.stack(list(result.losses.values()))
        weighted.sum().backward()
        figures = torch.stack([*weighted.detach(), *(has_images * count for count in counts.values())])
        summed = self.group.add_gradients(list(self.student.parameters()), figures)
        return dict(zip(losses, summed, strict=False)), dict(zip(counts, summed[len(losses) :], strict=True))


def _learning_rate(highest: float, step: int, num_steps: int) -> float:
    # Linear from near zero over the first `WARM_UP` of all steps, then half a cosine to zero.
    warm_up = max(1, round(WARM_UP * num_steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


def _save(run: RunFolder, student: Student, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    tensors = {f"student/{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"best/{name}": tensor.clone() for name, tensor in progress.best.items()}
    for row, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{row}/{name}": tensor for name, tensor in state.items()}
    run.save_state(tensors, {name: str(getattr(progress, name)) for name in ("epoch", "best_epoch", "best_quality")})


def _resume(
    tensors: dict[str, Tensor], header: dict[str, str], student: Student, optimizer: torch.optim.Optimizer
) -> Progress:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    student.load_state_dict(part("student/"))
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimizer/").items():
        row, _, key = name.partition("/")
        states.setdefault(int(row), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    best_epoch = None if header["best_epoch"] == "None" else int(header["best_epoch"])
    return Progress(int(header["epoch"]), best_epoch, float(header["best_quality"]), part("best/"))
