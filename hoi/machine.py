"""What this machine offers: a device, free memory, threads beside one's own, and precisions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from hoi.errors import UserError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, where: str = "train.device") -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` names; processes of torchrun get a GPU each.

    Raises UserError: the name is unknown, or there is no such GPU; `where` is the key or option that asks.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise UserError("an unknown device", where=where, expected="auto, cpu or cuda", got=name)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no GPU can be used here", where=where, got=name, fix=f"ask for auto or cpu with {where}")
    local_rank = os.environ.get("LOCAL_RANK")
    if name != "cuda" or local_rank is None:
        return torch.device(name)
    if int(local_rank) >= torch.cuda.device_count():
        raise UserError(
            "more processes than GPUs were started",
            where="torchrun --nproc_per_node",
            expected=f"at most {torch.cuda.device_count()}",
            got=f"process {int(local_rank) + 1} on this machine",
        )
    return torch.device("cuda", int(local_rank))


class _Controller(NamedTuple):
    mount: str
    limit: str
    used: str
    reclaimable: str


_V1 = _Controller("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Controller("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that may be taken now, within the limits of this process's control groups.

    Files that the system keeps in memory count as free. (psutil tells what is free whatever a job's limit is.)
    """
    try:
        of_machine = _named(root / "proc/meminfo", "MemAvailable:") << 10
    except (OSError, KeyError):
        of_machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([of_machine, *_of_groups(root)]))


def _of_groups(root: Path) -> Iterator[int]:
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
    lines = (line.split() for line in path.read_text().splitlines())
    return int({words[0]: words[1] for words in lines if len(words) > 1}[name])


_allowed: ContextVar[bool] = ContextVar("side_threads", default=True)


def may_have_side_threads() -> bool:
    """Return whether the code that runs here may start threads beside its own."""
    return _allowed.get()


@contextmanager
def keeping_to_own_threads() -> Iterator[None]:
    """Forbid that code inside starts threads beside this one."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


Precision = Literal["fp32", "bf16"]


def choose_precision(name: Literal["fp32", "bf16", "auto"], device: torch.device) -> Precision:
    """Return what layers compute in on a device; `auto` takes bf16 on a GPU that has it, a UserError where none has it.

    Parameters, optimizer, similarities and losses are float32 in any case.
    """
    import torch

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


def mixed(precision: Literal["fp32", "bf16", "fp16"], device: torch.device) -> torch.autocast:
    """Multiply the matrices of layers that are called inside in this precision."""
    import torch

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def full_precision(device: torch.device) -> torch.autocast:
    """Compute in float32 inside of `mixed`: at a logit scale of 100, cosines in bf16 would be off by 0.2 in logits."""
    import torch

    return torch.autocast(device.type, enabled=False)


def worker_environment(number: int, devices: list[str]) -> dict[str, str]:
    """Return the environment that is a worker's own: one GPU, taken in turn, where there are any."""
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}


def visible_devices(device: str) -> list[str]:
    """Return the GPUs of this machine as `CUDA_VISIBLE_DEVICES` names them; none where the CPU is asked for."""
    if device == "cpu":
        return []
    import torch

    # The variable may name what is no GPU: `-1`, or SLURM's `NoDevFiles`.
    number = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:number] or [str(index) for index in range(number)]
