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

from hoi.cache.build.run import build_cache
from hoi.cache.manifest import WORKERS_NAME
from tests.fakes.extractors import DrawnSignals
from tests.fakes.pipelines import small_pipeline, write_pipeline

ROOT = Path(__file__).parents[2]


SAID = "interrupted: finished parts are kept; run the same command again to go on"


def interrupted(words: list[str], moment: Callable[[], bool], pause_s: float = 0) -> tuple[int, list[str]]:
    """Run the program, interrupt all its processes some time after a moment; its exit code and what it said."""
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
    while not moment():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(pause_s)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    said = stderr.replace("\r", "\n").splitlines()
    return process.returncode, [line for line in said if line and not line.startswith("teacher cache: ")]


# While it imports, while it starts its workers (one file there), and while it asks them (a file each).
@pytest.mark.parametrize(("num_files", "pause_s"), [(0, 0.25), (1, 0.5), pytest.param(2, 0.0, marks=pytest.mark.slow)])
def test_an_interruption_of_stage_one_with_workers_is_one_line(tmp_path: Path, num_files: int, pause_s: float) -> None:
    cache = tmp_path / "cache"
    words = ["teacher-cache", f"cache.folder={cache}", "cache.device=cpu"]
    workers = cache / WORKERS_NAME
    code, said = interrupted(words, lambda: len(list(workers.glob("*"))) >= num_files, pause_s)
    # Before `run_program` stands guard the signal itself ends the process, which a shell calls 130, too.
    assert code in (130, -signal.SIGINT)
    # While workers start or answer, dask may add a line of its own on a busy machine.
    assert said.count(SAID) == 1, said
    assert "Traceback" not in str(said)
    assert num_files or said == [SAID]
    assert not list(cache.glob("*/manifest.json"))


def test_an_interruption_of_stage_two_leaves_a_checkpoint(tmp_path: Path) -> None:
    config = small_pipeline(tmp_path, students={"student": {"width": 16}})
    build_cache(config, DrawnSignals)
    endless = {"seeds": [0], "epochs": 100_000, "batch_images": 8, "checkpoint_every": 1, "device": "cpu"}
    config = small_pipeline(tmp_path, students={"student": {"width": 16}}, train=endless)
    path = write_pipeline(config, tmp_path / "pipeline.yaml")
    folder = tmp_path / "outputs" / "runs" / "student" / "seed-0"
    found = interrupted(["train", "--config", str(path)], (folder / "state.safetensors").exists)
    assert found == (130, [SAID])
    assert sorted(file.name for file in folder.iterdir() if file.name != ".lock") == [
        "metrics.jsonl",
        "state.safetensors",
    ]
