"""The command line: `hoi VERB`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hoi.errors import run_program


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the verb that the command line names, and exit: code 2 after a mistake of its user."""
    run_program(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    # Imported here, so that an interruption of the imports is one line, too.
    from hoi.cli import stages, data, students, cache, program  # noqa: F401, I001 (in the order of `hoi --help`)

    return program.run(arguments)
