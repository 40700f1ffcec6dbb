"""Ctrl-C in a terminal reaches every process of a program; at any moment it is one line and a quick end.

So is SIGTERM, which may reach the first process alone, or all of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hoi.cache.build.run import build_cache
from hoi.cache.manifest import WORKERS_NAME
from tests.fakes.extractors import DrawnSignals
from tests.fakes.pipelines import small_pipeline, write_pipeline

ROOT = Path(__file__).parents[2]


SAID = "interrupted: finished parts are kept; run the same command again to go on"


def interrupted(
    words: list[str], moment: Callable[[], bool], pause_s: float = 0, by: int = signal.SIGINT, alone: bool = False
) -> tuple[int, list[str]]:
    """Run the program, interrupt all its processes some time after a moment; its exit code and what it said.

    With `alone`, the signal goes to the first of them, and none may be left when that one has ended.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "hoi", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs are started deaf to SIGINT, and so would be what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not moment() or not handles(process.pid, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(pause_s)
    (os.kill if alone else os.killpg)(process.pid, by)
    _, stderr = process.communicate(timeout=60)
    wait_until_gone(process.pid)
    said = stderr.replace("\r", "\n").splitlines()
    return process.returncode, [line for line in said if line and not line.startswith("teacher cache: ")]


def handles(pid: int, number: int) -> bool:
    """Whether a process has a handler of a signal: until then its start is interrupted."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def wait_until_gone(group: int) -> None:
    """Fail if processes of a group live on for longer than a moment."""
    deadline = time.monotonic() + 10
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


# While it imports, while it starts its workers (one file there), and while it asks them (a file each).
@pytest.mark.parametrize(("num_files", "pause_s"), [(0, 0.25), (1, 0.5), pytest.param(2, 0.0, marks=pytest.mark.slow)])
def test_an_interruption_of_stage_one_with_workers_is_one_line(tmp_path: Path, num_files: int, pause_s: float) -> None:
    check_stage_one(tmp_path / "cache", num_files, pause_s, signal.SIGINT, False)


@pytest.mark.parametrize(("num_files", "alone"), [(1, True), pytest.param(2, False, marks=pytest.mark.slow)])
def test_sigterm_ends_stage_one_and_its_workers(tmp_path: Path, num_files: int, alone: bool) -> None:
    check_stage_one(tmp_path / "cache", num_files, 0.5, signal.SIGTERM, alone)


def check_stage_one(cache: Path, num_files: int, pause_s: float, by: int, alone: bool) -> None:
    words = ["teacher-cache", f"cache.folder={cache}", "cache.device=cpu"]
    workers = cache / WORKERS_NAME
    code, said = interrupted(words, lambda: len(list(workers.glob("*"))) >= num_files, pause_s, by, alone)
    # Python itself ends by SIGINT where the handler runs while a module is imported; a shell calls either 130.
    assert code in (128 + by, -by)
    # While workers start or answer, dask may add a line of its own on a busy machine.
    assert said.count(SAID) == 1, said
    assert "Traceback" not in str(said)
    assert num_files or said == [SAID]
    assert not list(cache.glob("*/manifest.json"))


@pytest.mark.parametrize("by", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interruption_of_stage_two_leaves_a_checkpoint(tmp_path: Path, by: int) -> None:
    config = small_pipeline(tmp_path, students={"student": {"width": 16}})
    build_cache(config, DrawnSignals)
    endless = {"seeds": [0], "epochs": 100_000, "batch_images": 8, "checkpoint_every": 1, "device": "cpu"}
    config = small_pipeline(tmp_path, students={"student": {"width": 16}}, train=endless)
    path = write_pipeline(config, tmp_path / "pipeline.yaml")
    folder = tmp_path / "outputs" / "runs" / "student" / "seed-0"
    found = interrupted(["train", "--config", str(path)], (folder / "state.safetensors").exists, by=by)
    assert found == (128 + by, [SAID])
    assert sorted(file.name for file in folder.iterdir() if file.name != ".lock") == [
        "metrics.jsonl",
        "state.safetensors",
    ]
