"""A worker's slot: a task gives it up when only writing is left, so that the next one computes meanwhile.

Whoever runs tasks says how (`giving_up`); where nobody does, as without dask, nothing happens. One task of a process
writes at a time. The next that has computed keeps its slot until that one is done: were it not so, a worker with a slow
disk, which seems to be idle, would be given one task after the other, and hold all their shards in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock

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
