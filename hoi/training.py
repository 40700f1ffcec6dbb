"""A student and a split's cached signals to a trained student, going on from the last checkpoint.

Every epoch draws its order and its dropout from (seed, epoch) alone, so a run that was interrupted and resumed ends
with the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hoi.config import TrainConfig
from hoi.errors import UserError
from hoi.matching import LabelTargets
from hoi.records import PairBatch
from hoi.runs import RunFolder
from hoi.students import StepLosses, Student

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises."""


@runtime_checkable
class BatchSource(Protocol):
    """A split that hands out its images in batches."""

    @property
    def num_images(self) -> int: ...

    def batches(self, batch_images: int, rng: np.random.Generator | None) -> Iterator[PairBatch]:
        """Every image once, shuffled by `rng`, or in order where it is None."""
        ...


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


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to the device to compute on.

    Raises:
        UserError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UserError("an unknown device", where="train.device", expected="auto, cpu or cuda", got=name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no GPU can be used here", where="train.device", got=name, fix="set train.device: auto")
    return torch.device(name)


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
) -> tuple[Student, Progress]:
    """Trains a student for `config.epochs` epochs: AdamW, a short linear warm-up, cosine to zero.

    Args:
        student: Untrained; it is trained in place.
        source: The training split.
        config: Epochs, batch, learning rate.
        seed: Of order and dropout.
        device: Where to compute.
        labels: For `supervision: labels` only.
        quality: Student in evaluation mode to a figure of merit, asked at every checkpoint; the best one's weights are
            kept. Without it the last epoch's are.
        run: Where metrics and checkpoints go, and whence an interrupted run goes on; None keeps nothing.
        title: Stands before the progress bar; empty for no bar.

    Returns:
        The student in evaluation mode, and where the run stands.

    Raises:
        UserError: the loss is no longer finite.
    """
    student.to(device)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    progress = Progress()
    if run is not None and run.status() == "started":
        progress = _resume(run, student, optimizer)
    if run is not None:
        run.keep_metrics(progress.epoch)
    loop = _Loop(student, optimizer, source, config, seed, device, labels)
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
                if at_checkpoint:
                    _save(run, student, optimizer, progress)
    if progress.best_epoch is not None:
        student.load_state_dict(progress.best)
    return student.eval(), progress


@dataclass(frozen=True)
class _Loop:
    """What stays the same from epoch to epoch."""

    student: Student
    optimizer: torch.optim.Optimizer
    source: BatchSource
    config: TrainConfig
    seed: int
    device: torch.device
    labels: LabelTargets | None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.source.num_images / self.config.batch_images)

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def run_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        """One pass over the split to the means that metrics.jsonl keeps."""
        self.student.train()
        sums: dict[str, float] = {}
        hits: dict[str, list[int]] = {}
        num_steps = 0
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]))
            shuffle = np.random.default_rng((self.seed, epoch))
            for batch in self.source.batches(self.config.batch_images, shuffle):
                rate = _learning_rate(
                    self.config.learning_rate, epoch * self.steps_per_epoch + num_steps, self.num_steps
                )
                _add(sums, hits, *self._step(batch, rate))
                num_steps += 1
                bar.set_postfix(loss=f"{sums['loss'] / num_steps:.3f}", refresh=False)
                bar.update()
                if not math.isfinite(sums["loss"]):
                    raise UserError(
                        "the loss is no longer finite",
                        where=f"seed {self.seed}, epoch {epoch + 1}",
                        fix="lower train.learning_rate",
                    )
        means = {name: value / num_steps for name, value in sums.items()}
        means |= {f"agreement_{name}": found / max(of, 1) for name, (found, of) in hits.items()}
        return {**means, "learning_rate": rate}

    def _step(self, batch: PairBatch, rate: float) -> tuple[StepLosses, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        step = self.student.losses(batch.to(self.device), self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        step.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip_gradient)
        self.optimizer.step()
        return step, norm


def _add(sums: dict[str, float], hits: dict[str, list[int]], step: StepLosses, norm: Tensor) -> None:
    values = {
        "loss": step.total,
        **{f"loss_{name}": value for name, value in step.losses.items()},
        "gradient_norm": norm,
    }
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + float(value.detach())
    for name, agrees in step.agreement.items():
        so_far = hits.setdefault(name, [0, 0])
        so_far[0] += int(agrees.sum())
        so_far[1] += agrees.numel()


def _learning_rate(highest: float, step: int, num_steps: int) -> float:
    """Linear from near zero over the first `WARM_UP` of all steps, then half a cosine to zero."""
    warm_up = max(1, round(WARM_UP * num_steps))
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up)))


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


def _resume(run: RunFolder, student: Student, optimizer: torch.optim.Optimizer) -> Progress:
    tensors, header = run.load_state()
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
