"""What else can be done with a teacher cache, and the command line of it.

python -m hoi.cache.build.run VERB [options] [--config FILE] [section.key=value ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hoi.cache.build.run import complete_manifest
from hoi.cache.fingerprint import request_parts
from hoi.cache.manifest import BANK_NAME, BASE, Pass, sole_builder
from hoi.cache.plan import splits_of
from hoi.cache.tools.upkeep import config_with_cache, repair, verify
from hoi.cli.command_line import stage_parser
from hoi.config import PipelineConfig, load_config
from hoi.datasets import check_split, load_vocabulary
from hoi.errors import UserError, nearest
from hoi.files import write_atomically
from hoi.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hoi.cache.tools.pull import Pulled
    from hoi.cache.tools.rescore import Rescored


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


def rescore(config: PipelineConfig, to: Path) -> list[Rescored]:
    """A complete cache to another one with the config's prompts and vocabulary; no image is read.

    Args:
        config: The new prompts or vocabulary; its `cache.folder` is the old cache.
        to: Folder of the new one. A pipeline file with these settings and this `cache.folder` accepts it.

    Raises:
        UserError: the old cache is not complete or not of this teacher, the config differs in more than texts, or the
            vocabulary has objects that the cache was made without.
    """
    import torch

    from hoi.cache.build.worker import as_begun
    from hoi.cache.shard import read_header
    from hoi.cache.tools.rescore import encode_texts, refuse_other_request, rescore_split
    from hoi.machine import choose_device
    from hoi.teachers import build_teacher

    source, request = Path(config.cache.folder), request_parts(config)
    if to.resolve() == source.resolve():
        raise UserError("the new cache would overwrite the old one", where=to, fix="choose another --to FOLDER")
    manifests = {split: complete_manifest(source / split) for split in splits_of(config)}
    for split, manifest in manifests.items():
        refuse_other_request(source / split, manifest.bank.request, request)
    torch.set_num_threads(config.cache.threads)
    device = choose_device(config.cache.device, "cache.device").type
    begun = PipelineConfig.model_validate_json(as_begun(config.model_dump_json(), source / next(iter(manifests))))
    texts = encode_texts(build_teacher(begun.teacher, device), load_vocabulary(config.dataset), device)
    done = []
    total = sum(manifest.num_images for manifest in manifests.values())
    with sole_builder(to), tqdm(total=total, unit="image", desc="rescore") as bar:
        for split, manifest in manifests.items():
            old = Vocabulary.from_dict(read_header(source / split / BANK_NAME).json("vocabulary"))
            own = config_with_cache(config, folder=str(to), images_per_shard=manifest.bank.images_per_shard)
            done.append(rescore_split(source / split, manifest, old, texts, own, request, bar.update))
    return done


def pull(url: str, to: Path, splits: Sequence[str], passes: Sequence[str] = ()) -> list[Pulled]:
    """Splits of a finished cache somewhere, with further passes by name, to a folder here."""
    from hoi.cache.tools.pull import pull_split

    with sole_builder(to), tqdm(unit="B", unit_scale=True, desc="pull") as bar:
        wanted = [BASE, *map(Pass, passes)]
        return [pull_split(url, split, to, bar.update, of) for split in splits for of in wanted]


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
    folder = Path(config.cache.folder)
    if verb == "plan":
        from hoi.cache.tools.describe import plan

        estimate = plan(config, parsed.sample)
        print(estimate)
        return 0 if estimate.fits else FOUND
    if verb == "info":
        from hoi.cache.tools.describe import info

        print(info(folder))
    elif verb == "verify":
        found = verify(config, parsed.recompute, parsed.seed)
        print(found)
        return 0 if found.is_good else FOUND
    elif verb == "repair":
        print("\n".join(repair(config) or ["nothing to repair"]))
    elif verb == "rescore":
        print("\n".join(map(str, rescore(config, Path(parsed.to)))))
    elif verb == "export":
        _export(folder, subject, parsed)
    else:
        splits = parsed.split or splits_of(config)
        for split in splits:
            check_split(config.dataset, split)
        passes = list(config.vlms) if parsed.passes is None else parsed.passes
        print("\n".join(map(str, pull(subject, Path(parsed.to), splits, passes))))
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


def _export(folder: Path, image_id: str, parsed: argparse.Namespace) -> None:
    from hoi.cache.tools.export import export_image

    text = json.dumps(export_image(folder, image_id, parsed.top, parsed.split), indent=1, ensure_ascii=False) + "\n"
    if parsed.json is None:
        print(text, end="")
    else:
        write_atomically(Path(parsed.json), text.encode())


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
