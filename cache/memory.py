"""Memory that this process may still take: what the machine has free, and what its control groups leave of it.

A container, or a job of a cluster, has a limit of its own, and is killed without a word beyond it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


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
