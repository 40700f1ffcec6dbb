"""What is run, what came of it, and the plainest way to run it: one task after the other, in this process.

A task is a function of a module and a few strings and numbers; its result is small. Arrays never come this way.
`hoi.cache.build.pool` runs the same tasks on other processes and machines.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

from hoi.errors import UserError

_give_up: ContextVar[Callable[[], None] | None] = ContextVar("give_up", default=None)
_writing = Lock()


@contextmanager
def giving_up(how: Callable[[], None]) -> Iterator[None]:
    """The task that runs here may call `give_up_slot` once."""
    with ExitStack() as until_done:

        def give_up() -> None:
            until_done.enter_context(_writing)
            how()

        token = _give_up.set(give_up)
        try:
            yield
        finally:
            _give_up.reset(token)


def give_up_slot() -> None:
    """Called by a task whose computing is done; it goes on beside the next, once no other task of its process does."""
    give_up = _give_up.get()
    if give_up is not None:
        _give_up.set(None)
        give_up()


RETRIES = 2


@dataclass(frozen=True)
class Task:
    """One call on a worker.

    Args:
        group: What the task belongs to.
        name: Readable key, unique within its group.
        function: A function that workers can import.
        arguments: A few strings and numbers.
    """

    group: str
    name: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result and the seconds it took, or the traceback of its last attempt."""

    task: Task
    result: dict[str, Any] | None
    seconds: float | None
    error: str | None


class Pool(Protocol):
    """Runs tasks, in any order of completion."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Tasks to outcomes as they come. A task that fails is tried `RETRIES` times more, then given up.

        Raises:
            UserError: a task met a user's mistake; no further task is begun.
        """
        ...


class SynchronousPool:
    """One task after the other, in this process and thread."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Pool.run`."""
        for task in tasks:
            yield _attempt_here(task)


def _attempt_here(task: Task) -> Outcome:
    error = ""
    for _ in range(1 + RETRIES):
        try:
            attempt = timed_call(task.function, task.arguments)
        except Exception:
            error = traceback.format_exc()
        else:
            return outcome_of(task, attempt)
    return Outcome(task, None, None, error)


Attempt = tuple[float, dict[str, Any] | UserError]
"""Seconds, and the result or the user's mistake, which travels as a value: so it is neither retried nor logged."""


def timed_call(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> Attempt:
    """One attempt at a task, where it runs."""
    start = time.monotonic()
    try:
        result = function(*arguments)
        return time.monotonic() - start, result
    except UserError as error:
        return time.monotonic() - start, error


def outcome_of(task: Task, attempt: Attempt) -> Outcome:
    """An attempt that came back to its outcome.

    Raises:
        UserError: it met a user's mistake.
    """
    seconds, result = attempt
    if isinstance(result, UserError):
        raise result
    return Outcome(task, result, seconds, None)
