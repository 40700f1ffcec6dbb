"""Processes that train one student together: what they sum up, and how they end together.

    torchrun --nproc_per_node=2 -m hoi train --config pipeline.yaml

Each process computes on its share of every batch. Gradients are summed over all of them, so that each takes the step
that one process would take on the whole batch; only the first process writes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from hoi.errors import UserError

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another; `supervision: labels` judges checkpoints on the first alone."""
ENDED_WITH_ANOTHER = 1
"""Exit code of a process that ends because another one failed, which is the one that says why."""

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that train together, as this one sees them."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def own(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's share of a batch's images, which may be empty."""
        return rows[len(rows) * self.rank // self.size : len(rows) * (self.rank + 1) // self.size]

    def add(self, values: Tensor) -> Tensor:
        """All-reduce (sum) in place."""
        if self.size > 1:
            self._together(lambda: dist.all_reduce(values))
        return values

    def add_gradients(self, parameters: list[nn.Parameter], figures: Tensor) -> Tensor:
        """All-reduce (sum) the gradients in place, and return the sums of the figures [F].

        Which parameters have a gradient depends on the student's settings alone, so it is the same everywhere.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = self.add(torch.cat([*(gradient.flatten() for gradient in gradients), figures]))
        *sums, figures = together.split([*(gradient.numel() for gradient in gradients), len(figures)])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        return figures

    def ask_first(self, ask: Callable[[], T]) -> T:
        """Call `ask` on the first process, and return its result on all."""
        if self.size == 1:
            return ask()
        results = [ask() if self.is_first else None]
        self._together(lambda: dist.broadcast_object_list(results, src=0))
        return results[0]  # type: ignore[return-value]

    def copy_first(self, student: nn.Module) -> None:
        """Give every process the first one's weights."""
        if self.size > 1:
            for tensor in student.state_dict().values():
                self._together(lambda tensor=tensor: dist.broadcast(tensor, src=0))  # type: ignore[misc]

    def _together(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise UserError(
                "another process of this training ended without an error message",
                where=f"process {self.rank} of {self.size}",
                got=(str(error).splitlines() or [type(error).__name__])[0],
                fix="look for the reason (killed, out of memory), then run the same command again to go on",
            ) from error


ALONE = Group()


@contextmanager
def join(device: torch.device) -> Iterator[Group]:
    """Join the group that torchrun's environment describes; without one, the process is alone."""
    if not _has_others():
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Group(dist.get_rank(), dist.get_world_size())
    # Not after a failure: this would wait for others, and the process ends in any case.
    dist.destroy_process_group()


@contextmanager
def one_voice() -> Iterator[None]:
    """Let only the first process that fails raise; the others, which fail because it is gone, exit silently."""
    if not _has_others():
        yield
        return
    try:
        store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    except ValueError as error:
        raise UserError(
            "RANK and WORLD_SIZE say that others train with this process, and not where they are",
            where="the environment",
            expected="RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun sets them",
            got=str(error).rpartition(": ")[2],
            fix="unset RANK WORLD_SIZE, or start it with torchrun",
        ) from None
    try:
        yield
    except (Exception, KeyboardInterrupt):
        try:
            is_first_to_fail = store.add("failed", 1) == 1
        except RuntimeError:
            # The store ended with the process that kept it, which may not have reported its error.
            is_first_to_fail = True
        if not is_first_to_fail:
            # torchrun ends all processes when one has ended: the first to fail has to have said why by then.
            time.sleep(2)
            raise SystemExit(ENDED_WITH_ANOTHER) from None
        raise


def _has_others() -> bool:
    size = os.environ.get("WORLD_SIZE", "1")
    return "RANK" in os.environ and not (size.isdecimal() and int(size) < 2)


def end_with_group() -> None:
    """End a process of a group that has done its work, at once: gloo's threads may still run, and would abort it."""
    if _has_others():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def is_first_process() -> bool:
    """Return whether this process is the one that reports."""
    return os.environ.get("RANK", "0") == "0"
