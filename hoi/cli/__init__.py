"""The command line: `hoi VERB`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hoi.errors import run_program

if TYPE_CHECKING:
    from typer.core import TyperGroup


def main() -> None:
    """Run the verb that the command line names, and exit: code 2 after a mistake of its user."""
    run_program(lambda: run_verb(sys.argv[1:]))


def run_verb(arguments: Sequence[str]) -> int:
    """Run a verb with its options and return the exit code.

    Raises UserError: the arguments are not understood, or what the verb raises.
    """
    # Imported here, so that an interruption of the imports is one line, too.
    from hoi.cli import program

    return program.run(load_verbs(), arguments)


def load_verbs() -> TyperGroup:
    """Return `hoi` with all its verbs, in the order of its help."""
    import typer

    from hoi.cli import program

    for name in ("stages", "data", "students", "cache"):
        importlib.import_module(f"hoi.cli.{name}")
    group: TyperGroup = typer.main.get_command(program.app)  # type: ignore[assignment]
    return group
