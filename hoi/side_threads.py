"""Threads beside the one that computes: images that are decoded, and crops that are cut, before they are asked for.

A process that has the machine to itself wants them. One of several workers, each of which was given its share of the
cores, does not: there they would only take the cores of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_allowed: ContextVar[bool] = ContextVar("side_threads", default=True)


def may_have_side_threads() -> bool:
    """Whether what runs here may start threads beside its own."""
    return _allowed.get()


@contextmanager
def keeping_to_own_threads() -> Iterator[None]:
    """What runs inside starts none, in this thread."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)
