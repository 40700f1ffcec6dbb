"""The command line: `hoi VERB`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hoi.errors import run_program

if TYPE_CHECKING:
    from typer.core import TyperGroup


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the verb that the command line names, and exit: code 2 after a mistake of its user."""

    def run() -> int:
        # Imported here, so that an interruption of the imports is one line, too.
        from hoi.cli import program

        return program.run(load_verbs(), sys.argv[1:] if arguments is None else arguments)

    run_program(run)


def load_verbs() -> TyperGroup:
    """Return `hoi` with all its verbs, in the order of its help."""
    import typer

    from hoi.cli import program

    for name in ("stages", "data", "students", "cache"):
        importlib.import_module(f"hoi.cli.{name}")
    group: TyperGroup = typer.main.get_command(program.app)  # type: ignore[assignment]
    return group
