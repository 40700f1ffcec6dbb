"""Ctrl-C in a terminal reaches every process of a program; at any moment it is one line and a quick end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hoi.cache.manifest import WORKERS_NAME

ROOT = Path(__file__).parents[2]


def _hear_interrupts() -> None:
    """A shell's background jobs are started deaf to SIGINT, and so would be what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def importing(cache: Path) -> bool:
    """Always: the program has just been started."""
    return True


def starting_workers(cache: Path) -> bool:
    return (cache / WORKERS_NAME / "driver.json").exists()


def asking_workers(cache: Path) -> bool:
    return len(list((cache / WORKERS_NAME).glob("*"))) > 1


@pytest.mark.parametrize(
    ("moment", "pause_s"),
    [(importing, 0.25), (starting_workers, 0.5), pytest.param(asking_workers, 0.0, marks=pytest.mark.slow)],
)
def test_an_interruption_of_stage_one_with_workers_is_one_line(
    tmp_path: Path, moment: Callable[[Path], bool], pause_s: float
) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "hoi", "teacher-cache", f"cache.folder={cache}", "cache.device=cpu"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_hear_interrupts
    )
    while not moment(cache):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(pause_s)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    # Before `run_program` stands guard the signal itself ends the process, which a shell calls 130, too.
    assert process.returncode in (130, -signal.SIGINT)
    said = [line for line in stderr.replace("\r", "\n").splitlines() if line and not line.startswith("teacher cache: ")]
    assert said == ["interrupted: finished parts are kept; run the same command again to go on"]
    assert not list(cache.glob("*/manifest.json"))
