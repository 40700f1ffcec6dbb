"""A student and a split's cached signals to a trained student, going on from the last checkpoint.

Every epoch draws its order and its dropout from (seed, epoch) alone, so a run that was interrupted and resumed ends
with the same weights, bit for bit, as one that was not. Several processes end with those of one but for the order of
sums, and but for dropout, which each of them draws for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from hoi.boards import Board
from hoi.config import TrainConfig
from hoi.distributed import ALONE, Group, local_gpu
from hoi.errors import UserError
from hoi.matching import LabelTargets
from hoi.precision import choose_precision
from hoi.runs import RunFolder
from hoi.steps import BatchSource, Loop
from hoi.students import Student

__all__ = ["BatchSource", "Progress", "choose_device", "fit"]


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
    """`auto`, `cpu` or `cuda` to the device to compute on; each process that torchrun started has its own.

    Raises:
        UserError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UserError("an unknown device", where="train.device", expected="auto, cpu or cuda", got=name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no GPU can be used here", where="train.device", got=name, fix="set train.device: auto")
    own = local_gpu()
    if name != "cuda" or own is None:
        return torch.device(name)
    if own >= torch.cuda.device_count():
        raise UserError(
            "more processes than GPUs were started",
            where="torchrun --nproc_per_node",
            expected=f"at most {torch.cuda.device_count()}",
            got=f"process {own + 1} on this machine",
        )
    return torch.device("cuda", own)


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
