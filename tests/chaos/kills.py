"""SIGKILL of drivers and workers at random moments; then the same command again, until the cache is complete."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from hoi.cache.tools.verify import verify_split
from hoi.config import PipelineConfig
from tests.chaos.content import content_of
from tests.chaos.drivers import EXTRA, SlowSignals, small_build, start
from tests.fakes.extractors import RandomSignals

MAX_RESUMES = 20


@dataclass
class Kills:
    """What was killed, and in which state a cache was found after it."""

    number: int = 0
    states: dict[str, int] = field(default_factory=dict)

    def note(self, split: Path) -> None:
        """Counts a kill by how far the build had come."""
        shards, parts = len(list(split.glob("shard-*.h5"))), len(list(split.glob(".*.part")))
        state = "unsealed" if shards else "no shard yet"
        if (split / "manifest.json").exists():
            is_extra_sealed = (split / f"{EXTRA}-manifest.json").exists()
            state = "sealed" if is_extra_sealed else "in the extra pass"
        self.number += 1
        for name in [state, *(["with temporary files"] if parts else [])]:
            self.states[name] = self.states.get(name, 0) + 1

    def __str__(self) -> str:
        states = ", ".join(f"{number} {state}" for state, number in sorted(self.states.items()))
        return f"{self.number} kills ({states})"


def undisturbed(folder: Path, factory: type[RandomSignals] = RandomSignals) -> tuple[dict[str, str], float]:
    """The content that every disturbed run has to come to, and the seconds that a run takes."""
    seconds = []
    for number in range(3):
        config = small_build(folder, folder / f"undisturbed-{number}")
        begin = time.monotonic()
        assert start(config, factory).wait() == 0
        seconds.append(time.monotonic() - begin)
    contents = [content_of(folder / f"undisturbed-{number}") for number in range(3)]
    assert contents[0] == contents[1] == contents[2]
    return contents[0], sorted(seconds)[1]


def finish(config: PipelineConfig, factory: type[RandomSignals] = RandomSignals) -> None:
    """Runs stage one again and again until it is content."""
    for _ in range(MAX_RESUMES):
        driver = start(config, factory)
        if driver.wait() == 0:
            return
    raise AssertionError(f"not complete after {MAX_RESUMES} runs: {driver.report.read_text()}")


def check_content(cache: Path, expected: dict[str, str]) -> None:
    """Nothing, if a cache is what an undisturbed run gives, to the byte."""
    found = content_of(cache)
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    assert not differing, f"{', '.join(differing)} differ from an undisturbed run"
    problems = verify_split(cache / "test")
    assert not problems, "; ".join(map(str, problems))


def kill_drivers(folder: Path, number: int, seed: int) -> Kills:
    """Kills so many drivers that build in their own process, each at a moment of its run, and resumes every time."""
    expected, seconds = undisturbed(folder)
    kills, draw = Kills(), random.Random(seed)
    while kills.number < number:
        cache = folder / "killed"
        shutil.rmtree(cache, ignore_errors=True)
        config = small_build(folder, cache)
        driver = start(config)
        time.sleep(draw.uniform(0, seconds))
        if driver.poll() is not None:
            continue
        driver.kill()
        kills.note(cache / "test")
        finish(config)
        check_content(cache, expected)
    return kills


def kill_drivers_with_workers(folder: Path, number: int, seed: int) -> Kills:
    """The same of drivers that have two workers, which are on their own then, while the next driver begins."""
    expected, _ = undisturbed(folder)
    kills, draw = Kills(), random.Random(seed)
    cache = folder / "killed"
    for _ in range(number):
        shutil.rmtree(cache, ignore_errors=True)
        config = small_build(folder, cache, scheduler="local", workers=2)
        driver = start(config, SlowSignals)
        while not list(cache.glob("test/shard-*.h5")):
            assert driver.poll() is None, driver.report.read_text()
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1))
        driver.kill()
        kills.note(cache / "test")
        finish(small_build(folder, cache), SlowSignals)
        check_content(cache, expected)
    return kills


def kill_workers(folder: Path, number: int, seed: int) -> Kills:
    """Kills so many workers of builds with two of them, at random moments of starting, computing and writing."""
    expected, _ = undisturbed(folder)
    kills, draw = Kills(), random.Random(seed)
    cache = folder / "killed"
    while kills.number < number:
        shutil.rmtree(cache, ignore_errors=True)
        config = small_build(folder, cache, scheduler="local", workers=2)
        driver = start(config, SlowSignals)
        while not list(cache.glob("test/bank.h5")):
            assert driver.poll() is None, driver.report.read_text()
            time.sleep(0.01)
        while driver.poll() is None and kills.number < number:
            time.sleep(draw.uniform(0, 1.0))
            if workers := driver.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    kills.note(cache / "test")
        if driver.wait() != 0:
            finish(small_build(folder, cache), SlowSignals)
        check_content(cache, expected)
    return kills
