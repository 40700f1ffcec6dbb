"""Stage one in a process of its own that can be killed, forked so that nothing has to be imported again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.build.run import CacheReport, build_cache
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.records import ImageSignals
from tests.fakes.extractors import PASS, RandomSignals, VlmSignalsOf
from tests.fakes.pipelines import photo_pipeline

NUM_PAIRS = (2, 0, 1, 5, 3, 1, 0, 4) * 5
SECONDS_PER_IMAGE = 0.04
EXTRA = "coca"
"""Name of the extra pass."""


class SlowSignals(RandomSignals):
    """Takes its time, as a teacher does, so that a kill finds a worker at work."""

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        records = super().extract_stream(images)
        time.sleep(SECONDS_PER_IMAGE * len(records))
        return records


def small_build(images: Path, cache: Path, **keys: Any) -> PipelineConfig:
    """A pipeline over forty photographs in twenty shards, and in twenty more of an extra pass.

    Args:
        images: Where photographs and vocabulary are to lie; the same for all builds that are compared.
        cache: Folder of the cache.
        keys: Of the cache section.
    """
    return photo_pipeline(images, NUM_PAIRS, cache={"folder": str(cache), **keys}, vlms={EXTRA: PASS})


def build(config: PipelineConfig, factory: type[RandomSignals] = RandomSignals) -> CacheReport:
    """Stage one of such a pipeline, in this process."""
    return build_cache(config, factory, VlmSignalsOf(EXTRA))


@dataclass
class Driver:
    """A run of stage one that was started.

    Args:
        process: Its id.
        report: File that will hold what it said: its report, or the user's mistake.
    """

    process: int
    report: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Exit code (0: done, 2: a user's mistake, negative: a signal), or None while it runs."""
        if self.code is None:
            found, status = os.waitpid(self.process, os.WNOHANG)
            if found:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, timeout_s: float = 120) -> int:
        """Exit code, when it has ended."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"stage one runs for more than {timeout_s:g} s")
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.poll() is None:
            os.kill(self.process, signal.SIGKILL)
            self.wait()

    def workers(self) -> list[int]:
        """Ids of its worker processes."""
        children = Path(f"/proc/{self.process}/task").glob("*/children")
        found = [int(child) for path in children for child in _text(path).split()]
        return [child for child in found if "multiprocessing-fork" in _text(Path(f"/proc/{child}/cmdline"))]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def start(config: PipelineConfig, factory: type[RandomSignals] = RandomSignals) -> Driver:
    """Stage one of a config, in a forked process."""
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
