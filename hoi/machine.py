"""What students compute in. Parameters, optimizer, similarities and losses are float32 in any case."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hoi.errors import UserError


@dataclass(frozen=True)
class _Controller:
    """How a version of control groups names things: its mount, and files in a group's folder."""

    mount: str
    limit: str
    used: str
    reclaimable: str


_V1 = _Controller("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Controller("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that may be taken now; files that the system keeps in memory count as free.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return max(0, min([_of_machine(root), *_of_groups(root)]))


def _of_machine(root: Path) -> int:
    try:
        return _named(root / "proc/meminfo", "MemAvailable:") << 10
    except (OSError, KeyError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> Iterator[int]:
    """What each group has left that this process is in; those above have limits, too."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and "memory" not in names.split(","):
            continue
        controller = _V1 if names else _V2
        top = root / controller.mount
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                left = int((folder / controller.limit).read_text()) - int((folder / controller.used).read_text())
                yield left + _named(folder / "memory.stat", controller.reclaimable)
            except (OSError, ValueError, KeyError):
                # No such file here, or no limit: `max`.
                continue


def _named(path: Path, name: str) -> int:
    """The number behind a name, in a file of such lines."""
    lines = (line.split() for line in path.read_text().splitlines())
    return int({words[0]: words[1] for words in lines if len(words) > 1}[name])


_allowed: ContextVar[bool] = ContextVar("side_threads", default=True)


def may_have_side_threads() -> bool:
    """Whether what runs here may start threads beside its own."""
    return _allowed.get()


@contextmanager
def keeping_to_own_threads() -> Iterator[None]:
    """What runs inside starts none, in this thread."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


Precision = Literal["fp32", "bf16"]


def choose_precision(name: Literal["fp32", "bf16", "auto"], device: torch.device) -> Precision:
    """`train.precision` and a device to what the layers compute in; `auto` takes bf16 on a GPU that has it.

    Raises:
        UserError: bf16 is asked of a GPU that does not have it.
    """
    if name == "fp32" or (name == "auto" and device.type != "cuda"):
        return "fp32"
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise UserError(
            "this GPU does not compute in bf16",
            where="train.precision",
            expected="auto or fp32",
            got=f"bf16 on {torch.cuda.get_device_name(device)}",
            fix="set train.precision: auto",
        )
    return "bf16" if has_bf16 else "fp32"


def mixed(precision: Precision, device: torch.device) -> torch.autocast:
    """Where layers are called: their matrices are multiplied in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> torch.autocast:
    """Inside of `mixed`, what stays float32: at a logit scale of 100, cosines in bf16 would be off by 0.2 in logits."""
    return torch.autocast(device.type, enabled=False)
