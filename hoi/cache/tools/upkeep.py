"""A teacher cache looked over and mended: the verbs `verify` and `repair`."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hoi.cache.build.run import build_missing, complete_manifest
from hoi.cache.fingerprint import pass_request, request_parts
from hoi.cache.manifest import (
    BASE,
    Manifest,
    Pass,
    Receipt,
    passes_in,
    read_bank_receipt,
    read_manifest,
    read_receipt,
    sole_builder,
)
from hoi.cache.plan import (
    SplitPlan,
    begun_with,
    is_complete,
    plan_over,
    plan_split,
    splits_of,
)
from hoi.cache.tools.verify import (
    Problem,
    cached_splits,
    verify_pass,
    verify_split,
)
from hoi.config import PipelineConfig
from hoi.datasets import ImageSource, UnreadableImage, open_images
from hoi.errors import UserError
from hoi.files import append_line, sync_folder, write_json

if TYPE_CHECKING:
    from hoi.cache.build.models import AskerFactory, ExtractorFactory
    from hoi.cache.tools.recompute import Recomputed


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


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found, by split; `num_shards` counts those of every pass by its title."""

    problems: tuple[Problem, ...]
    recomputed: dict[str, Recomputed]
    num_shards: dict[str, dict[str, int]]
    seconds: float

    @property
    def is_good(self) -> bool:
        return not self.problems and not any(found.problems for found in self.recomputed.values())

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        for split, found in self.recomputed.items():
            lines += [f"{split}: {text}" for text in found.problems]
            largest = ", ".join(f"{name} {value:.2g}" for name, value in found.differences.items())
            lines.append(f"{split}: {len(found.image_ids)} images recomputed, largest absolute difference: {largest}")
        bad = {problem.split for problem in self.problems}
        for split, numbers in self.num_shards.items():
            counts = ", ".join(f"{number} shards of the {title}" for title, number in numbers.items())
            lines += [f"{split}: {counts}, as they were written"] if split not in bad else []
        verdict = "nothing is wrong" if self.is_good else "next: make cache-repair, or see what changed"
        return "\n".join([*lines, f"verified in {self.seconds:.1f} s: {verdict}"])


def verify(
    config: PipelineConfig, recompute: int | None = None, seed: int = 0, factory: ExtractorFactory | None = None
) -> VerifyReport:
    """Every file of a cache against manifest and schema; on request a few images against the models, too.

    Args:
        config: Its cache, with all splits that lie there.
        recompute: Random images per split that go through the models again; None for none.
        seed: Says which.
        factory: As for `hoi.cache.build.run.main`.

    Raises:
        UserError: there is no cache, it is of another schema version, or the models to recompute with are others.
    """
    start, folder = time.monotonic(), Path(config.cache.folder)
    splits = list(dict.fromkeys([*splits_of(config), *cached_splits(folder)]))
    if not cached_splits(folder):
        raise UserError("there is no teacher cache", where=folder, fix="make teacher-cache, or set cache.folder")
    problems: list[Problem] = []
    num_shards: dict[str, dict[str, int]] = {}
    for split in tqdm(splits, unit="split", desc="verify", leave=False):
        problems += verify_split(folder / split)
        passes = (BASE, *passes_in(folder / split))
        manifests = {of.title: None if problems else read_manifest(folder / split, of) for of in passes}
        num_shards[split] = {title: len(m.shards) for title, m in manifests.items() if m is not None}
    recomputed = {}
    if recompute is not None and not problems:
        recomputed = _recompute(config, recompute, seed, factory)
    return VerifyReport(tuple(problems), recomputed, num_shards, time.monotonic() - start)


def _recompute(
    config: PipelineConfig, number: int, seed: int, factory: ExtractorFactory | None
) -> dict[str, Recomputed]:
    from hoi.cache.build.models import hold, load_extractor, release
    from hoi.cache.build.worker import as_begun
    from hoi.cache.tools.recompute import recompute

    request, folder = request_parts(config), Path(config.cache.folder)
    manifests = {split: complete_manifest(folder / split) for split in splits_of(config)}
    for split in manifests:
        is_complete(plan_split(config, split), request)
    try:
        models = factory or load_extractor
        return {
            split: recompute(
                folder / split,
                manifest,
                hold(as_begun(config.model_dump_json(), folder / split), models),
                number,
                seed,
            )
            for split, manifest in tqdm(manifests.items(), unit="split", desc="recompute", leave=False)
        }
    finally:
        release()


def repair(
    config: PipelineConfig, factory: ExtractorFactory | None = None, asker: AskerFactory | None = None
) -> list[str]:
    """A cache to a whole one: bad files into quarantine, then what is missing built as always.

    Shards whose unreadable images can be read by now are made again as well, and shards of further passes whose base
    shard is another one by now. All else stays as it is, to the byte.

    Args:
        config: The pipeline file; of further passes those that it names.
        factory, asker: As for `hoi.cache.build.run.main`.

    Returns:
        What was done, line by line; none if nothing was wrong.

    Raises:
        UserError: the cache was made with other settings, or see `hoi.cache.build.run.main`.
    """
    request, lines = request_parts(config), list[str]()
    for split in splits_of(config):
        lines += _repair_base(config, split, request, factory)
    for name in config.vlms:
        of_pass = pass_request(config, name, request)
        for split in splits_of(config):
            lines += _repair_further(config, split, Pass(name), of_pass, asker)
    return lines


def _repair_base(
    config: PipelineConfig, split: str, request: dict[str, Any], factory: ExtractorFactory | None
) -> list[str]:
    folder = Path(config.cache.folder) / split
    manifest, problems = _problems(folder, BASE)
    bank = manifest.bank if manifest is not None else read_bank_receipt(folder)
    if bank is not None:
        # What is made again must have the size of what stays.
        config = config_with_cache(config, images_per_shard=bank.images_per_shard)
    return _repair_pass(config, plan_split(config, split), request, manifest, problems, factory)


def _repair_further(
    config: PipelineConfig, split: str, of: Pass, request: dict[str, Any], asker: AskerFactory | None
) -> list[str]:
    folder = Path(config.cache.folder) / split
    plan = plan_over(complete_manifest(folder), folder, of)
    return _repair_pass(config, plan, request, *_problems(folder, of), asker)


def _problems(folder: Path, of: Pass) -> tuple[Manifest | None, list[Problem]]:
    """A pass to (its manifest, if that can be read, all that is wrong with the pass)."""
    if of.is_base and not folder.is_dir():
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
    factory: ExtractorFactory | AskerFactory | None,
) -> list[str]:
    folder, of = plan.folder, plan.of
    bad = {problem.name for problem in problems}
    _refuse_other_settings(plan, request, manifest, bad)
    if manifest is not None:
        source = open_images(config.dataset, plan.split)
        problems = [*problems, *mended_images(plan.split, _own_failures(folder, manifest), source)]
    if not problems:
        return []
    with sole_builder(Path(config.cache.folder)):
        moved = set_aside(folder, problems, of) if folder.is_dir() else []
    num_built = build_missing(config, [plan], request, factory)[plan.split]
    written = restore_receipts(folder, of)
    name = plan.split if of.is_base else f"{plan.split}, {of.title}"
    return [
        *map(str, problems),
        *(f"{plan.split}/{file}: moved to {plan.split}/{QUARANTINE_NAME}" for file in moved),
        f"{name}: {num_built} shards built, {len(written)} receipts written, complete again",
    ]


def _own_failures(folder: Path, manifest: Manifest) -> list[Receipt]:
    """Receipts with the images that this pass could not read; of a further one, without those of its base pass."""
    base = None if manifest.of.is_base else read_manifest(folder)
    given = set(base.failed) if base is not None else set()
    return [replace(r, failed=tuple(pair for pair in r.failed if pair not in given)) for r in manifest.shards]


def _refuse_other_settings(plan: SplitPlan, request: dict[str, Any], manifest: Manifest | None, bad: set[str]) -> None:
    """Nothing is moved away for a config that is not the cache's."""
    if manifest is not None:
        is_complete(plan, request)
    elif not {plan.of.bank_name, plan.of.bank_receipt_name} & bad:
        begun_with(plan, request)


def config_with_cache(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    """The config with other values in its section `cache`."""
    return config.model_copy(update={"cache": config.cache.model_copy(update=changes)})
