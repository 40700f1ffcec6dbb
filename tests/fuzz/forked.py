"""Run cases in forked processes: models are loaded once, and a case that dies takes no other with it."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hoi.errors import UserError

TIMEOUT_S = 30.0
MAX_BYTES = 4 << 30
"""What a case may allocate."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `read`, `refused`, `raw exception`, `hang` or `signal`, and the details."""

    kind: str
    text: str = ""
    seconds: float = 0.0


def outcome_of(call: Callable[[], object]) -> Outcome:
    """Run a case here, and say what it ended with; a refusal that is not one short line counts as raw."""
    start = time.monotonic()
    try:
        call()
        kind, text = "read", ""
    except UserError as error:
        text = str(error)
        kind = "refused" if "\n" not in text and len(text) < 3000 else "raw exception"
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/hoi/" in frame.filename]
        last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        kind = "raw exception"
        text = f"{type(error).__name__}: {str(error)[:150]} at {Path(last.filename).name}:{last.lineno} {last.name}"
    return Outcome(kind, text, time.monotonic() - start)


def run_forked(cases: Sequence[Callable[[], object]]) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcome of every case, each in a process forked from this one, many cases a process."""
    start = 0
    while start < len(cases):
        done = start
        for number, outcome in _run_from(cases, start):
            yield number, outcome
            done = number + 1
        start = done


def _run_from(cases: Sequence[Callable[[], object]], start: int) -> Iterator[tuple[int, Outcome]]:
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(cases, start, writing)
    os.close(writing)
    number, buffer, is_hung = start, b"", False
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], TIMEOUT_S)
            if not ready:
                is_hung = True
                os.kill(child, signal.SIGKILL)
                break
            block = pipe.read(1 << 16)
            if not block:
                break
            buffer += block
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                yield number, Outcome(*json.loads(line))
                number += 1
    _, status = os.waitpid(child, 0)
    if is_hung:
        yield number, Outcome("hang", f"no answer in {TIMEOUT_S:.0f} s", TIMEOUT_S)
    elif os.WIFSIGNALED(status):
        yield number, Outcome("signal", signal.Signals(os.WTERMSIG(status)).name)
    elif number < len(cases):
        yield number, Outcome("signal", f"the process ended with {os.WEXITSTATUS(status)}")


def _child(cases: Sequence[Callable[[], object]], start: int, writing: int) -> None:
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        # Pytest's has a stream of its own: a death that is counted would fill the screen.
        faulthandler.disable()
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (now + MAX_BYTES, now + MAX_BYTES))
        for call in cases[start:]:
            outcome = outcome_of(call)
            os.write(writing, json.dumps([outcome.kind, outcome.text, round(outcome.seconds, 3)]).encode() + b"\n")
    finally:
        os._exit(0)
