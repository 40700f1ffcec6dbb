"""The one exception a user may meet: what is wrong, where, what was expected and got, and what to do next."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

INTERRUPTED = "interrupted: finished parts are kept; run the same command again to go on"


class UserError(Exception):
    """A mistake that its user can mend: printed as one line, without a traceback, and the exit code is 2.

    Args:
        what: What is wrong, in a few words, naming the thing.
        where: File, key or record in which it stands.
        expected: What would have been right.
        got: What was found instead.
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
        parts = [what]
        parts += [
            f"{name}: {value}"
            for name, value in (("where", where), ("expected", expected), ("got", got))
            if value is not None
        ]
        if fix is not None:
            parts.append(f"next: {fix}")
        super().__init__(" · ".join(" ".join(part.split()) for part in parts))
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix

    def __reduce__(self) -> tuple[Callable[..., UserError], tuple[object, ...]]:
        """Survives the trip from a dask worker to the driver with its fields."""
        return _rebuild, (type(self), self.what, self.where, self.expected, self.got, self.fix)


def _rebuild(
    kind: type[UserError], what: str, where: object, expected: object, got: object, fix: str | None
) -> UserError:
    return kind(what, where=where, expected=expected, got=got, fix=fix)


def nearest(name: str, names: Iterable[str], number: int = 5) -> str:
    """An unknown name to the known ones most like it, as the `expected` of a message."""
    known = sorted(set(names))
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=number, cutoff=0.4)
    by_lower = {k.lower(): k for k in known}
    found = [by_lower[c] for c in close] or known[:number]
    return f"one of {len(known)} known, the nearest: {', '.join(found)}"


def run_program(main: Callable[[], int | None]) -> None:
    """Runs a program's main function; a user's mistake ends it with one line on stderr and exit code 2."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno is None:
            raise
        problem = UserError(
            str(error.strerror),
            where=error.filename or "writing a file",
            fix="free space or mend the permissions, then run the same command again",
        )
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)
