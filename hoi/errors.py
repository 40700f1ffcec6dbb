"""Mistakes that a user can mend, and the commands that mend them."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TextIO

INTERRUPTED = "interrupted: finished parts are kept; run the same command again to go on"
MAX_PART = 600
"""Characters of a part of a message: a file may hold a value of any length."""
CALLED_BY, CALLED_WITH = "HOI_CALLED_BY", "HOI_CALLED_WITH"
"""Environment variables, so that processes which this one starts speak of the same commands."""


class UserError(Exception):
    """A mistake that its user can mend: printed as one line, without a traceback, and the exit code is 2.

    Args:
        what: What is wrong, in a few words, naming the thing.
        where: File, key or record in which it stands.
        expected: What would have been right.
        got: What is there instead.
        fix: What to do next: a command or an edit.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        fix: str | None = None,
    ) -> None:
        named = (("where", where), ("expected", expected), ("got", got), ("next", fix))
        parts = [what, *(f"{name}: {value}" for name, value in named if value is not None)]
        parts = [" ".join(part.split()) for part in parts]
        super().__init__(" · ".join(p if len(p) <= MAX_PART else f"{p[: MAX_PART - 3]}..." for p in parts))
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix

    def __reduce__(self) -> tuple[Callable[..., UserError], tuple[object, ...]]:
        return partial(type(self), self.what, where=self.where, expected=self.expected, got=self.got, fix=self.fix), ()


def nearest(name: str, names: Iterable[str], number: int = 5) -> str:
    """Return the known names most like an unknown one, as the `expected` of a message."""
    known = sorted(set(names))
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=number, cutoff=0.4)
    shown = [by_lower[c] for c in close] or known[:number]
    return f"one of {len(known)} known, the nearest: {', '.join(shown)}"


@contextmanager
def called_with(config: str | None = None, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Let `command` name this pipeline file (None for the default one) and these overrides until the block ends."""
    before = os.environ.get(CALLED_WITH)
    os.environ[CALLED_WITH] = json.dumps([config, *overrides])
    try:
        yield
    finally:
        del os.environ[CALLED_WITH]
        if before is not None:
            os.environ[CALLED_WITH] = before


def command(verb: str, *words: str, **options: object) -> str:
    """Return a command as its user would type it: `hoi VERB ...`, or `make VERB ...` for whoever came by make.

    The pipeline file and the overrides of the command that runs now are repeated, so that it works as printed.

    Args:
        verb: Such as `train` or `cache verify`.
        words: What else stands on the line: overrides (which replace those of this command) or a subject.
        options: By their names on the command line; None or False leaves one out, True is a flag. `config` replaces
            the pipeline file of this command, and its overrides, too.
    """
    config, *overrides = json.loads(os.environ.get(CALLED_WITH, "[null]"))
    if "config" in options:
        config, overrides = options.pop("config"), []
    replaced = {word.partition("=")[0] for word in words}
    words = (*(word for word in overrides if word.partition("=")[0] not in replaced), *words)
    given = {"config": config, **options}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if os.environ.get(CALLED_BY) == "make":
        named = [f"{name.upper()}={1 if value is True else value}" for name, value in given.items()]
        parts = ["make", verb.replace(" ", "-"), *named, *words]
    else:
        parts = ["hoi", *verb.split()]
        for name, value in given.items():
            parts += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        parts += words
    return shlex.join(parts)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does."""


TERMINATED = 128 + signal.SIGTERM
UNREAD = 141
"""Exit code where nobody reads what is printed, as in `hoi ... | head`: what a shell says of SIGPIPE."""
SAME_SIGNAL_S = 5.0
"""A second SIGTERM within this time is taken for the first: `timeout` and job schedulers send it to a process twice."""


def run_program(main: Callable[[], int | None]) -> None:
    """Run a program's main function and exit; what ends it early is at most one line on stderr.

    The exit code is 2 after a user's mistake, 130 after Ctrl-C, 143 after SIGTERM and 141 where the output is closed.
    """
    for stream in (sys.stdout, sys.stderr):
        # In UTF-8 a broken file name alone cannot be written: there the escapes of stderr say more.
        is_escaped = stream is sys.stderr and stream.encoding.lower() == "utf-8"
        if isinstance(stream, io.TextIOWrapper) and not is_escaped:
            stream.reconfigure(errors="replace")
    line = None
    with _sigterm_as_interruption() as received:
        try:
            code = main() or 0
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            code, line = 130, INTERRUPTED
        except Exception as error:
            if received:
                # Libraries turn an interruption into errors of their own.
                code, line = TERMINATED, INTERRUPTED
            elif isinstance(error, BrokenPipeError) and any(map(_is_closed, (sys.stdout, sys.stderr))):
                code = UNREAD
            elif isinstance(error, OSError) and error.errno is not None:
                fix = "free space or mend the permissions, then run the same command again"
                where = error.filename or "writing a file"
                code, line = 2, f"error: {UserError(str(error.strerror), where=where, fix=fix)}"
            elif isinstance(error, UserError):
                code, line = 2, f"error: {error}"
            else:
                raise
        if received and code in (0, 130):
            code = TERMINATED
        with contextlib.suppress(OSError):
            if line is not None:
                print(line, file=sys.stderr)
        _drop_unwritten()
        sys.exit(code)


@contextmanager
def _sigterm_as_interruption() -> Iterator[list[float]]:
    """Let SIGTERM raise `Terminated` in the main thread; yield when it came."""
    received: list[float] = []

    def terminate(*_: object) -> None:
        now = time.monotonic()
        if not received or now - received[-1] > SAME_SIGNAL_S:
            received.append(now)
            raise Terminated

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Terminated):
            received.clear()
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            report_lost(lost)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield received
        return
    signal.signal(signal.SIGTERM, terminate)
    # What is raised in a weak reference's callback or in `__del__` goes no further.
    report_lost, sys.unraisablehook = sys.unraisablehook, send_again
    try:
        yield received
    finally:
        sys.unraisablehook = report_lost
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_closed(stream: TextIO | None) -> bool:
    """Return whether a stream is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(stream, 0)  # type: ignore[arg-type]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, TypeError):
        return False


def _drop_unwritten() -> None:
    # Else the interpreter, which writes it at its end, would complain of it and change the exit code.
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
