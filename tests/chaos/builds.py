"""Stage one in processes of their own that are killed at random moments, and what a cache must hold in the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.build.run import CacheReport, build_cache
from hoi.cache.tools.verify import verify_split
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.records import ImageSignals
from tests.fakes.extractors import PASS, RandomSignals, VlmSignalsOf
from tests.fakes.pipelines import photo_pipeline

NUM_PAIRS = (2, 0, 1, 5, 3, 1, 0, 4) * 5
SECONDS_PER_IMAGE = 0.04
MAX_RESUMES = 20
EXTRA = "coca"
"""Name of the extra pass."""
ABOUT_THE_RUN = (".lock", "*journal.jsonl", "*shard-*.json")


class SlowSignals(RandomSignals):
    """Takes its time, as a teacher does, so that a kill finds a worker at work."""

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        records = super().extract_stream(images)
        time.sleep(SECONDS_PER_IMAGE * len(records))
        return records


def small_build(images: Path, cache: Path, **keys: Any) -> PipelineConfig:
    """Return a pipeline over forty photographs in twenty shards, and in twenty more of an extra pass.

    Args:
        images: Folder of photographs and vocabulary; the same for all builds that are compared.
        keys: Of the cache section.
    """
    return photo_pipeline(images, NUM_PAIRS, cache={"folder": str(cache), **keys}, vlms={EXTRA: PASS})


def build(config: PipelineConfig, factory: type[RandomSignals] = RandomSignals) -> CacheReport:
    return build_cache(config, factory, VlmSignalsOf(EXTRA))


def content_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that is content; of manifests without what they say of the run."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(path.match(pattern) for pattern in ABOUT_THE_RUN):
            continue
        data = path.read_bytes()
        if path.match("*manifest.json"):
            data = json.dumps({**json.loads(data), "made_with": None}, sort_keys=True).encode()
        hashes[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return hashes


def check_content(cache: Path, expected: dict[str, str]) -> None:
    """Fail unless the cache is, to the byte, what an undisturbed run gives."""
    here = content_of(cache)
    differing = sorted(name for name in here.keys() | expected.keys() if here.get(name) != expected.get(name))
    assert not differing, f"{', '.join(differing)} differ from an undisturbed run"
    problems = verify_split(cache / "test")
    assert not problems, "; ".join(map(str, problems))


class NotHere(Exception):
    """A case that this machine does not permit; the text says why."""


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.002)


@dataclass
class Driver:
    """A run of stage one that was started; the file `report` will hold its report, or the user's mistake."""

    process: int
    report: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (0: done, 2: a user's mistake, negative: a signal), or None while it runs."""
        if self.code is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self) -> int:
        try:
            wait_for(lambda: self.poll() is not None, "stage one to end")
        except TimeoutError:
            os.kill(self.process, signal.SIGKILL)
            raise
        return self.code or 0

    def wait_for(self, cache: Path, pattern: str) -> None:
        """Return once the cache holds such a file."""
        wait_for(lambda: list(cache.glob(pattern)) or self.poll() is not None, f"stage one to write {pattern}")
        assert self.poll() is None, self.report.read_text()

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.process, signal.SIGKILL)
            self.wait()

    def workers(self) -> list[int]:
        """Return the ids of its worker processes."""
        children = Path(f"/proc/{self.process}/task").glob("*/children")
        ids = [int(child) for path in children for child in _text(path).split()]
        return [child for child in ids if "multiprocessing-fork" in _text(Path(f"/proc/{child}/cmdline"))]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def start(config: PipelineConfig, factory: type[RandomSignals] = RandomSignals) -> Driver:
    """Start stage one in a forked process, so that nothing has to be imported again."""
    folder = Path(config.cache.folder).parent
    process = os.fork()
    if process:
        return Driver(process, folder / f"{process}.said")
    report, code = folder / f"{os.getpid()}.said", 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            report.write_text(str(build(config, factory)))
            code = 0
        except UserError as error:
            report.write_text(str(error))
            code = 2
        except BaseException as error:
            report.write_text(repr(error))
    finally:
        os._exit(code)


@dataclass
class Kills:
    """How many were killed, and in which states the cache was found after it."""

    number: int = 0
    states: dict[str, int] = field(default_factory=dict)

    def note(self, split: Path) -> None:
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


def undisturbed(folder: Path) -> tuple[dict[str, str], float]:
    """Return the content every disturbed run has to come to, and the seconds a run takes."""
    contents, seconds = [], []
    for number in range(3):
        config = small_build(folder, folder / f"undisturbed-{number}")
        begin = time.monotonic()
        assert start(config).wait() == 0
        seconds.append(time.monotonic() - begin)
        contents.append(content_of(folder / f"undisturbed-{number}"))
    assert contents[0] == contents[1] == contents[2]
    return contents[0], sorted(seconds)[1]


def finish(config: PipelineConfig, factory: type[RandomSignals] = RandomSignals) -> None:
    """Run stage one again and again until it ends well."""
    for _ in range(MAX_RESUMES):
        driver = start(config, factory)
        if driver.wait() == 0:
            return
    raise AssertionError(f"not complete after {MAX_RESUMES} runs: {driver.report.read_text()}")


def kill_drivers(folder: Path, number: int, seed: int) -> Kills:
    """Kill drivers that build in their own process, each at a random moment of its run, and resume every time."""
    expected, seconds = undisturbed(folder)
    kills, rng, cache = Kills(), random.Random(seed), folder / "killed"
    while kills.number < number:
        shutil.rmtree(cache, ignore_errors=True)
        config = small_build(folder, cache)
        driver = start(config)
        time.sleep(rng.uniform(0, seconds))
        if driver.poll() is None:
            driver.kill()
            kills.note(cache / "test")
            finish(config)
            check_content(cache, expected)
    return kills


def kill_drivers_with_workers(folder: Path, number: int, seed: int) -> Kills:
    """Kill drivers that have two workers, which are on their own while the next driver begins."""
    expected, _ = undisturbed(folder)
    kills, rng, cache = Kills(), random.Random(seed), folder / "killed"
    for _ in range(number):
        shutil.rmtree(cache, ignore_errors=True)
        driver = start(small_build(folder, cache, scheduler="local", workers=2), SlowSignals)
        driver.wait_for(cache, "test/shard-*.h5")
        time.sleep(rng.uniform(0, 1))
        driver.kill()
        kills.note(cache / "test")
        finish(small_build(folder, cache), SlowSignals)
        check_content(cache, expected)
    return kills


def kill_workers(folder: Path, number: int, seed: int) -> Kills:
    """Kill workers of builds with two of them, at random moments of starting, computing and writing."""
    expected, _ = undisturbed(folder)
    kills, rng, cache = Kills(), random.Random(seed), folder / "killed"
    while kills.number < number:
        shutil.rmtree(cache, ignore_errors=True)
        driver = start(small_build(folder, cache, scheduler="local", workers=2), SlowSignals)
        driver.wait_for(cache, "test/bank.h5")
        while driver.poll() is None and kills.number < number:
            time.sleep(rng.uniform(0, 1.0))
            if workers := driver.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    kills.note(cache / "test")
        if driver.wait() != 0:
            finish(small_build(folder, cache), SlowSignals)
        check_content(cache, expected)
    return kills
