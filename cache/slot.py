"""A worker's slot: a task gives it up when only writing is left, so that the next one computes meanwhile.

Whoever runs tasks says how (`giving_up`); where nobody does, as without dask, nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_give_up: ContextVar[Callable[[], None] | None] = ContextVar("give_up", default=None)


@contextmanager
def giving_up(how: Callable[[], None]) -> Iterator[None]:
    """The task that runs here may call `give_up_slot` once."""
    token = _give_up.set(how)
    try:
        yield
    finally:
        _give_up.reset(token)


def give_up_slot() -> None:
    """Called by a task whose computing is done; it goes on in its own thread."""
    how = _give_up.get()
    if how is not None:
        _give_up.set(None)
        how()
