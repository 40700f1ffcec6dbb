"""Bad files of a split out of the way, so that the usual build makes exactly these again. Nothing is deleted.

What is set aside goes to `quarantine/` in the split's folder, under its own name with a number behind, and a line in
`quarantine/reasons.jsonl` says why.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cache.atomic import append_line, sync_folder, write_json
from cache.manifest import Manifest, Receipt, read_manifest, read_receipt
from cache.passes import BASE, Pass
from cache.verify import Problem
from hoi.datasets import ImageSource, UnreadableImage

QUARANTINE_NAME = "quarantine"
REASONS_NAME = "reasons.jsonl"


def mended_images(split: str, receipts: Sequence[Receipt], source: ImageSource) -> list[Problem]:
    """Images that the cache calls unreadable and that can be read now, as one problem per shard."""
    row_of = {image_id: row for row, image_id in enumerate(source.image_ids)}
    problems = []
    for receipt in receipts:
        mended = mended_of(receipt, source, row_of)
        if mended:
            text = f"unreadable when it was built, and readable now: {', '.join(mended)}"
            problems.append(Problem(split, receipt.name, "failed", text))
    return problems


def mended_of(receipt: Receipt, source: ImageSource, row_of: Mapping[str, int]) -> list[str]:
    """Images of one shard that could not be read when it was built, and can be now.

    Args:
        receipt: Of the shard.
        source: The split's images.
        row_of: Image id to row, for those of the shard at least; one that is not there any more stays unreadable.
    """
    return [image_id for image_id, _ in receipt.failed if image_id in row_of and _can_be_read(source, row_of[image_id])]


def _can_be_read(source: ImageSource, row: int) -> bool:
    try:
        source.read(row)
    except UnreadableImage:
        return False
    return True


def set_aside(folder: Path, problems: Sequence[Problem], of: Pass = BASE) -> list[str]:
    """Moves every file that has a problem, and the receipts that belong to it, into quarantine.

    Args:
        folder: The split's folder; the caller keeps other builders out of it.
        problems: Of one pass over this split. Missing files and temporary ones need no move.
        of: Which pass.

    Returns:
        Names of the files that were moved.
    """
    reasons: dict[str, str] = {}
    for problem in problems:
        if problem.kind not in ("stray", "incomplete"):
            for name in _belonging(problem.name, of):
                reasons.setdefault(name, f"{problem.kind}: {problem.text}")
    return [name for name, reason in reasons.items() if _move(folder, name, reason)]


def _belonging(name: str, of: Pass) -> list[str]:
    """A bad file and what is of no use without it; the bank and its receipt are only made together."""
    bank = [of.bank_name, of.bank_receipt_name]
    if name in bank:
        return bank
    if name in (of.manifest_name, of.index_name) or name.endswith(".json"):
        return [name]
    return [name, Path(name).with_suffix(".json").name]


def _move(folder: Path, name: str, reason: str) -> bool:
    if not (folder / name).is_file():
        return False
    quarantine = folder / QUARANTINE_NAME
    quarantine.mkdir(exist_ok=True)
    place = next(p for number in itertools.count(1) if not (p := quarantine / f"{name}.{number}").exists())
    line = {"file": place.name, "reason": reason, "time": time.time()}
    append_line(quarantine / REASONS_NAME, json.dumps(line))
    os.replace(folder / name, place)
    sync_folder(quarantine)
    sync_folder(folder)
    return True


def restore_receipts(folder: Path, of: Pass = BASE) -> list[str]:
    """Writes the receipts that are missing beside the shards of a complete pass, from its manifest.

    Returns:
        Names of the files that were written.
    """
    manifest: Manifest | None = read_manifest(folder, of)
    written = []
    for receipt in manifest.shards if manifest is not None else ():
        if read_receipt(folder / receipt.name) is None:
            beside = (folder / receipt.name).with_suffix(".json")
            write_json(beside, receipt.to_dict())
            written.append(beside.name)
    return written
