"""What every stage's command line shares: `python -m stages.NAME [--config FILE] [section.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Says a wrong option like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"the command line is not understood: {message}",
            expected="[--config FILE] [section.key=value ...]",
            fix=f"{self.prog} --help",
        )


def stage_config(description: str, arguments: Sequence[str] | None = None) -> PipelineConfig:
    """Command line arguments to the checked config of the run.

    Args:
        description: One sentence for `--help`.
        arguments: What to parse in place of the process's own arguments.

    Raises:
        UserError: the pipeline file or an override is wrong.
    """
    parser = _Parser(description=description)
    parser.add_argument("--config", default="pipeline.yaml", help="pipeline file (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    parsed = parser.parse_args(arguments)
    return load_config(parsed.config, parsed.overrides)
