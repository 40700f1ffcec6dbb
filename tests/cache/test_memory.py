"""What may be taken is the least of what the machine and the groups of a job leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi.machine import free_memory_bytes

GB = 10**9


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """64 GB free, and a process that is in `/job/step`, under either version of control groups."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {64 * GB >> 10} kB\nHugePages_Total: 0")
    write(tmp_path / "proc/self/cgroup", "5:devices:/\n4:cpu,memory:/job/step\n0::/job/step")
    return tmp_path


def test_without_limits_it_is_what_the_machine_has(machine: Path) -> None:
    assert free_memory_bytes(machine) == 64 * GB
    write(machine / "sys/fs/cgroup/job/step/memory.max", "max")
    assert free_memory_bytes(machine) == 64 * GB
    (machine / "proc/self/cgroup").unlink()
    assert free_memory_bytes(machine) == 64 * GB


@pytest.mark.parametrize(
    ("mount", "limit", "used", "reclaimable"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["version 2", "version 1"],
)
def test_a_job_has_what_is_left_of_the_tightest_limit_above_it(
    machine: Path, mount: str, limit: str, used: str, reclaimable: str
) -> None:
    def group(name: str, limit_gb: int, used_gb: int, files_gb: int) -> None:
        folder = machine / mount / name
        write(folder / limit, str(limit_gb * GB))
        write(folder / used, str(used_gb * GB))
        write(folder / "memory.stat", f"anon 7\n{reclaimable} {files_gb * GB}")

    group("job/step", 40, 10, 4)
    assert free_memory_bytes(machine) == 34 * GB
    group("job", 32, 14, 3)
    assert free_memory_bytes(machine) == 21 * GB
    group("another", 1, 1, 0)
    assert free_memory_bytes(machine) == 21 * GB
    group("job", 32, 33, 0)
    assert free_memory_bytes(machine) == 0


def test_of_this_machine_it_is_some() -> None:
    assert free_memory_bytes() > 0
