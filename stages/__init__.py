"""The programs, one per stage."""

from __future__ import annotations

import sys
from types import TracebackType

from hoi.errors import INTERRUPTED


def _say_interruption(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# `python -m stages.NAME` passes here first. The imports that follow take seconds, in which `run_program` does not
# stand guard yet.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _say_interruption
