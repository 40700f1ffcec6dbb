"""What else can be done with a teacher cache, and the command line of it.

python -m hoi.cache.build.run VERB [options] [--config FILE] [section.key=value ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hoi.cache.tools.describe import export, info
from hoi.cache.tools.estimate import plan
from hoi.cache.tools.pull import pull
from hoi.cache.tools.repair import repair
from hoi.cache.tools.rescore import rescore
from hoi.cache.tools.verify import verify
from hoi.cli.command_line import stage_parser
from hoi.config import load_config
from hoi.errors import UserError, nearest
from hoi.files import write_atomically

VERBS = {
    "plan": "what a build would take: shards, bytes, minutes",
    "info": "what the cache is: fingerprint, counts, unreadable images, versions",
    "verify": "sizes, hashes and tables of every file; with --recompute also images and models",
    "repair": "makes missing, bad and failed parts again, and nothing else",
    "rescore": "other prompts or another vocabulary from the cached embeddings",
    "export": "one image's records as JSON",
    "pull": "a finished cache from any location that fsspec knows, verified",
}
FOUND = 1
"""Exit code where something is wrong with a cache; a mistake on the command line or in a file is 2."""


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """The command line behind a verb to its exit code: 0, or 1 where something is wrong with the cache.

    Raises:
        UserError: an unknown verb or option, or what the verb itself raises.
    """
    if verb not in VERBS:
        raise UserError(
            "there is no such verb", where="hoi.cache.build.run", expected=nearest(verb, ["build", *VERBS]), got=verb
        )
    subject, rest = _subject(verb, list(arguments))
    parser = stage_parser(f"{verb}: {VERBS[verb]}")
    parser.prog = f"python -m hoi.cache.build.run {verb}"
    options = _OPTIONS.get(verb, {})
    parser.shape = " ".join([*(f"[{option} ...]" for option in options), parser.shape])
    for option, settings in options.items():
        parser.add_argument(option, **settings)
    parsed = parser.parse_intermixed_args(rest)
    config = load_config(parsed.config, parsed.overrides)
    if verb == "plan":
        estimate = plan(config, parsed.sample)
        print(estimate)
        return 0 if estimate.fits else FOUND
    if verb == "verify":
        found = verify(config, parsed.recompute, parsed.seed)
        print(found)
        return 0 if found.is_good else FOUND
    if verb == "export":
        report = export(config, subject, parsed.top, parsed.split)
        if parsed.json is not None:
            write_atomically(Path(parsed.json), f"{report}\n".encode())
            return 0
    print(
        info(config)
        if verb == "info"
        else repair(config)
        if verb == "repair"
        else rescore(config, Path(parsed.to))
        if verb == "rescore"
        else report
        if verb == "export"
        else pull(config, subject, Path(parsed.to), parsed.split, parsed.passes)
    )
    return 0


def _subject(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    """What a verb is about, its first argument, and the rest; nothing for verbs that are about the whole cache."""
    if verb not in _SUBJECT or {"-h", "--help"} & set(arguments[:1]):
        return "", arguments
    if not arguments or arguments[0].startswith("-"):
        raise UserError(
            f"{verb} needs to know of what",
            expected=f"python -m hoi.cache.build.run {verb} {_SUBJECT[verb]} ...",
            fix=f"give {_SUBJECT[verb]} right behind the verb",
        )
    return arguments[0], arguments[1:]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


_SUBJECT = {"export": "IMAGE_ID", "pull": "URL"}
_TO: dict[str, Any] = {"required": True, "metavar": "FOLDER", "help": "folder of the new cache"}
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "plan": {"--sample": {"type": _count, "metavar": "N", "help": "run N images through the models to measure"}},
    "verify": {
        "--recompute": {"type": _count, "metavar": "N", "help": "run N images per split through the models again"},
        "--seed": {"type": int, "default": 0, "help": "which images (default: %(default)s)"},
    },
    "rescore": {"--to": _TO},
    "export": {
        "--top": {"type": _count, "default": 5, "metavar": "K", "help": "interactions listed (default: %(default)s)"},
        "--split": {"metavar": "NAME", "help": "where to look; all splits without it"},
        "--json": {"metavar": "FILE", "help": "write there instead of printing"},
    },
    "pull": {
        "--to": _TO,
        "--split": {"action": "append", "metavar": "NAME", "help": "may be repeated; the config's splits without it"},
        "--pass": {
            "action": "append",
            "dest": "passes",
            "metavar": "NAME",
            "help": "a further pass; may be repeated; the config's vlms without it",
        },
    },
}
