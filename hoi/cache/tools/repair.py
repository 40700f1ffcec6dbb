"""Repair a cache: bad files go into quarantine, and what is missing is built again."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi.cache.build.run import build_missing, mending
from hoi.cache.manifest import (
    Manifest,
    complete_manifest,
    read_bank_receipt,
    read_manifest,
    read_receipt,
    sole_builder,
)
from hoi.cache.plan import SplitPlan, begun_with, is_complete, plan_over, plan_split, splits_of
from hoi.cache.schema import BASE, Pass, extra_passes
from hoi.cache.tools.verify import Problem, verify_pass, verify_split
from hoi.config import PipelineConfig
from hoi.files import append_line, sync_folder, write_json

if TYPE_CHECKING:
    from hoi.cache.build.worker import ModelFactory

QUARANTINE_NAME = "quarantine"
REASONS_NAME = "reasons.jsonl"


def set_aside(folder: Path, problems: Sequence[Problem], of: Pass = BASE) -> list[str]:
    """Move every file of a pass that has a problem, and its receipt, into quarantine; return the names.

    Missing files and temporary ones need no move. The caller keeps other builders out of the split's folder.
    """
    reasons: dict[str, str] = {}
    for problem in problems:
        if problem.kind not in ("stray", "incomplete"):
            for name in _belonging(problem.name, of):
                reasons.setdefault(name, f"{problem.kind}: {problem.text}")
    moved = [name for name in reasons if (folder / name).is_file()]
    for name in moved:
        _move(folder, name, reasons[name])
    return moved


def _belonging(name: str, of: Pass) -> list[str]:
    # The bank and its receipt are only made together.
    bank = [of.bank_name, of.bank_receipt_name]
    if name in bank:
        return bank
    if name in (of.manifest_name, of.index_name) or name.endswith(".json"):
        return [name]
    return [name, Path(name).with_suffix(".json").name]


def _move(folder: Path, name: str, reason: str) -> None:
    quarantine = folder / QUARANTINE_NAME
    quarantine.mkdir(exist_ok=True)
    place = next(p for number in itertools.count(1) if not (p := quarantine / f"{name}.{number}").exists())
    line = {"file": place.name, "reason": reason, "time": time.time()}
    append_line(quarantine / REASONS_NAME, json.dumps(line))
    os.replace(folder / name, place)
    sync_folder(quarantine)
    sync_folder(folder)


def restore_receipts(folder: Path, of: Pass = BASE) -> list[str]:
    """Write the receipts that are missing beside the shards of a complete pass; return the names of the files."""
    written = []
    for receipt in complete_manifest(folder, of).shards:
        if read_receipt(folder / receipt.name) is None:
            beside = (folder / receipt.name).with_suffix(".json")
            write_json(beside, receipt.to_dict())
            written.append(beside.name)
    return written


@dataclass(frozen=True)
class RepairReport:
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines or ("nothing to repair",))


def repair(
    config: PipelineConfig, factory: ModelFactory | None = None, extra_factory: ModelFactory | None = None
) -> RepairReport:
    """Make a cache whole: move bad files into quarantine, then build what is missing as always.

    Shards whose unreadable images can be read by now are made again as well, and shards of extra passes whose base
    shard is another one by now. All else stays as it is, to the byte. Raises a UserError as `build_cache` does.
    """
    base, lines = BASE.content.request(config), list[str]()
    for split in splits_of(config):
        folder = Path(config.cache.folder) / split
        manifest, problems = _problems(folder, BASE)
        bank = manifest.bank if manifest is not None else read_bank_receipt(folder)
        # What is made again must have the size of what stays.
        same_size = config if bank is None else config_with_cache(config, images_per_shard=bank.images_per_shard)
        lines += _repair_pass(same_size, plan_split(same_size, split), base, manifest, problems, factory)
    for of in extra_passes(config):
        request = of.content.request(config, base)
        for split in splits_of(config):
            folder = Path(config.cache.folder) / split
            plan = plan_over(complete_manifest(folder), folder, of)
            lines += _repair_pass(config, plan, request, *_problems(folder, of), extra_factory)
    return RepairReport(tuple(lines))


def _problems(folder: Path, of: Pass) -> tuple[Manifest | None, list[Problem]]:
    if not folder.is_dir():
        return None, verify_split(folder)
    problems = verify_pass(folder, of)
    is_bad = of.manifest_name in {problem.name for problem in problems}
    return None if is_bad else read_manifest(folder, of), problems


def _repair_pass(
    config: PipelineConfig,
    plan: SplitPlan,
    request: dict[str, Any],
    manifest: Manifest | None,
    problems: list[Problem],
    factory: ModelFactory | None,
) -> list[str]:
    folder, of = plan.folder, plan.of
    # Nothing is moved away for a config that is not the cache's.
    if manifest is not None:
        is_complete(plan, request)
    elif not {of.bank_name, of.bank_receipt_name} & {problem.name for problem in problems}:
        begun_with(plan, request)
    if manifest is not None:
        mended = mending(config, plan)
        for receipt in manifest.shards:
            if receipt.failed and (images := mended(receipt)):
                text = f"unreadable when it was built, and readable now: {', '.join(images)}"
                problems.append(Problem(plan.split, receipt.name, "failed", text))
    if not problems:
        return []
    with sole_builder(Path(config.cache.folder)):
        moved = set_aside(folder, problems, of) if folder.is_dir() else []
    num_built = build_missing(config, [plan], request, factory)[plan.split]
    written = restore_receipts(folder, of)
    return [
        *map(str, problems),
        *(f"{plan.split}/{file}: moved to {plan.split}/{QUARANTINE_NAME}" for file in moved),
        f"{of.label(plan.split)}: {num_built} shards built, {len(written)} receipts written, complete again",
    ]


def config_with_cache(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    return config.model_copy(update={"cache": config.cache.model_copy(update=changes)})
