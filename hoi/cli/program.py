"""The frame of `hoi VERB`: groups of verbs, the options that many share, and one line for each mistake."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hoi.errors import CALLED_BY, UserError, called_with, command, nearest
from hoi.files import at_home

if TYPE_CHECKING:
    from hoi.config import PipelineConfig

PIPELINE = "pipeline.yaml"
FILES = {name: f"examples/{name}.yaml" for name in ("hicodet", "vcoco", "bench")} | {"sweep": "examples/ablation.yaml"}
"""What verbs read without --config, where that is another file."""
DEFAULTS = Path(__file__).parent / "defaults"
"""Pipeline files for a folder without one of this name."""
OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")
VARIABLE = re.compile(r"([A-Z][A-Za-z_]*)=(.*)", re.DOTALL)
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What every mistake on a command line is; typer does not name it."""


def option(help: str, metavar: str | None = None, name: str | None = None, least: int | None = None) -> Any:
    """Return a typer option; `name` where it is not the parameter's."""
    return typer.Option(*([name] if name else []), help=help, metavar=metavar, min=least)


def path_option(help: str, metavar: str = "FILE") -> Any:
    """Return a typer option that is a path."""
    return typer.Option(parser=Path, help=help, metavar=metavar)


Config = Annotated[str | None, option(f"pipeline file (default: {PIPELINE}, else the world's)", "FILE", "--config")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="values that replace the file's")
]
Student = Annotated[str | None, option("its name in the pipeline file (default: best, or the first)", "NAME")]
Device = Annotated[str, option("auto, cpu or cuda", "DEVICE")]
Checkpoint = Annotated[Path | None, path_option("what `hoi checkpoint` wrote (default: made from --config)", "FOLDER")]
Host = Annotated[str, option("where to listen; the default is this machine only", "ADDRESS")]
Port = Annotated[int, option("0 takes a free one", "N")]
AllowHost = Annotated[list[str] | None, option("another name the page may be called by", "NAME")]


class Verb(TyperCommand):
    """A verb whose options that may be repeated also take several values: `--images a b c`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        many = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        with _one_line(ctx):
            if os.environ.get(CALLED_BY) == "make":
                args = _from_make(self, args)
            args = list(map(_at_home, args))
            rest: list[str] = super().parse_args(ctx, list(_repeated(args, many)))
            for word in ctx.params.get("overrides") or ():
                if not OVERRIDE.match(word):
                    raise UserError("there is a word too many", expected="section.key=value", got=word)
        return rest


class Verbs(TyperGroup):
    """Verbs by name; an unknown one is told the nearest."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _one_line(ctx):
            rest: list[str] = super().parse_args(ctx, args or ["--help"])
        return rest

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-"):
            expected = nearest(args[0], self.commands)
            raise UserError("there is no such verb", expected=expected, got=args[0], fix=f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: isinstance(self.commands[name], TyperGroup))


def group(help: str) -> typer.Typer:
    """Return an empty group of verbs."""
    return typer.Typer(
        cls=Verbs,
        help=help,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


app = group("Detectors of human-object interactions without HOI labels, distilled from frozen vision-language models.")


def verb(name: str, *examples: str, of: typer.Typer = app) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function the verb `name`; its help ends with the examples."""
    text = "\b\nExample:" + "".join(f"\n  {example}" for example in examples)
    return of.command(name, cls=Verb, epilog=text)


def run(verbs: TyperGroup, arguments: Sequence[str]) -> int:
    """Run the verb that the arguments name; see `hoi.cli.run_verb`."""
    try:
        with verbs.make_context("hoi", list(arguments)) as context:
            return context.command.invoke(context) or 0
    except typer.Exit as end:
        return end.exit_code


@contextmanager
def _one_line(context: Any) -> Iterator[None]:
    """Say what is wrong on a command line; of the processes of torchrun, which all see it, the first says it."""
    message, expected, got = "", None, None
    place, fix = context.command_path, f"{context.command_path} --help"
    if os.environ.get(CALLED_BY) == "make":
        place, fix = f"make {context.info_name}", "make help"
    try:
        yield
        return
    except UserError as error:
        message, expected, got = error.what, error.expected, error.got
    except UsageError as error:
        known = [name for param in context.command.params for name in param.opts if name.startswith("--")]
        option = getattr(error, "option_name", None)
        if option is None or option in known:
            message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        else:
            message, expected = f"there is no option {option}", nearest(option, known)
    if os.environ.get("RANK", "0") != "0":
        # torchrun ends all processes when one has ended: the first has to have said it by then.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)
        raise SystemExit(2)
    raise UserError(message, where=place, expected=expected, got=got, fix=fix)


def _at_home(word: str) -> str:
    # A shell leaves the tilde of `--out=~/x` as it is, and `make OUT=~/x` that of any.
    option, equals, value = word.partition("=")
    return f"{option}={at_home(value)}" if equals and option.startswith("--") else at_home(word)


def _repeated(args: Sequence[str], many: set[str]) -> Iterator[str]:
    """Turn `--images a b` into `--images a --images b`; an override ends the list, if no file has its name."""
    current: str | None = None
    is_first = False
    for word in args:
        if word.startswith("-"):
            current, is_first = (word if word in many else None), True
        elif current is not None and not is_first:
            if OVERRIDE.match(word) and not Path(word).exists():
                current = None
            else:
                yield current
        else:
            is_first = False
        yield word


def _from_make(verb: TyperCommand, args: Sequence[str]) -> list[str]:
    """Turn make's NAME=value into options; other names must be those that the pipeline file reads as ${NAME}."""
    options = {
        name.removeprefix("--").replace("-", "_").upper(): (name, param)
        for param in verb.params
        for name in param.opts
        if name.startswith("--") or param.nargs == 1
    }
    given = [match.groups() if (match := VARIABLE.fullmatch(word)) else (None, word) for word in args]
    file = next((value for name, value in given if name == "CONFIG"), FILES.get(str(verb.name), PIPELINE))
    text = _text_of(file)
    text += "".join(map(_text_of, re.findall(r"^base: *(\S+)", text, re.MULTILINE)))
    read = set(re.findall(r"\$\{([A-Za-z_]\w*)\}", text))
    words: list[str] = []
    for name, value in given:
        if name is None:
            words.append(value)
        elif name in options and value:
            option, param = options[name]
            if not option.startswith("--"):
                words.insert(0, value)
            else:
                words += [option] if getattr(param, "is_flag", False) else [option, value]
        elif name not in options and name not in read:
            raise UserError(
                f"there is no variable {name}",
                expected=nearest(name, {*options, *read} - {"HELP"}),
                got=f"{name}={value}",
            )
    return words


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def pipeline_file(config: str | None, verb: str = "") -> str:
    """Return the file that `--config` names; without it the verb's, of this folder or else of the package."""
    default = FILES.get(verb, PIPELINE)
    if config is not None or Path(default).exists() or not (DEFAULTS / Path(default).name).exists():
        return config or default
    packaged = DEFAULTS / Path(default).name
    print(f"no {default} in this folder: {packaged} is used", file=sys.stderr)
    return str(packaged)


@contextmanager
def pipeline(config: str | None, overrides: Sequence[str] | None, verb: str = "") -> Iterator[PipelineConfig]:
    """Load a pipeline file, and let messages repeat it and its overrides in the commands that they name."""
    from hoi.config import load_config

    with called_with(FILES.get(verb) if config in (None, PIPELINE) else config, overrides or ()):
        yield load_config(pipeline_file(config, verb), list(overrides or ()))


def say_next(verb: str, *words: str, **options: object) -> None:
    """Print the command that comes next."""
    print(f"next: {command(verb, *words, **options)}", flush=True)
