"""What every stage's command line shares: `python -m stages.NAME [--config FILE] [section.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hoi.config import PipelineConfig, load_config
from hoi.errors import UserError


class Parser(argparse.ArgumentParser):
    """Says a wrong option like every other mistake."""

    shape = "[--config FILE] [section.key=value ...]"
    """What the command line looks like."""

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"the command line is not understood: {message}",
            expected=self.shape,
            fix=f"{self.prog} --help",
        )


def stage_parser(description: str, file: str = "pipeline file", default: str = "pipeline.yaml") -> Parser:
    """The options that every stage has, for a stage that adds its own or reads another kind of file."""
    parser = Parser(description=description)
    parser.add_argument("--config", default=default, help=f"{file} (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    return parser


def stage_config(description: str, arguments: Sequence[str] | None = None) -> PipelineConfig:
    """Command line arguments to the checked config of the run.

    Args:
        description: One sentence for `--help`.
        arguments: What to parse in place of the process's own arguments.

    Raises:
        UserError: the pipeline file or an override is wrong.
    """
    parsed = stage_parser(description).parse_args(arguments)
    return load_config(parsed.config, parsed.overrides)
