"""Tasks for worker processes, for tests of the scheduling."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from hoi.cache.build.pool import give_up_slot
from hoi.errors import UserError


def double(number: int) -> dict[str, Any]:
    return {"number": 2 * number, "process": os.getpid(), "environment": dict(os.environ)}


def break_until(marks: str, number: int) -> dict[str, Any]:
    """Raise at the first `number` calls."""
    calls = len(list(Path(marks).iterdir()))
    (Path(marks) / str(calls)).touch()
    if calls < number:
        raise RuntimeError(f"call {calls}")
    return {"calls": calls}


def die_once(mark: str) -> dict[str, Any]:
    """Kill the worker at the first call."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def complain(marks: str) -> dict[str, Any]:
    """Raise a user's mistake."""
    (Path(marks) / str(len(list(Path(marks).iterdir())))).touch()
    raise UserError("the folder is gone", where="worker", fix="bring it back")


def leave_mark(mark: str) -> None:
    """For a worker that is still alive at the end."""
    Path(mark).touch()


def write_while_another_computes(mine: str, others: str, patience_s: float = 20) -> dict[str, Any]:
    """Give the slot up, then wait until another task of the same worker has started."""
    Path(mine).touch()
    give_up_slot()
    end = time.monotonic() + patience_s
    while not Path(others).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return {"met": Path(others).exists(), "process": os.getpid()}
