"""A teacher cache looked over and mended: the verbs `verify` and `repair`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cache.atomic import sole_builder
from cache.manifest import BANK_NAME, MANIFEST_NAME, Manifest, has_all_files, read_bank_receipt, read_manifest
from cache.plan import SplitPlan, begun_with, is_complete, plan_split, splits_of
from cache.repair import QUARANTINE_NAME, mended_images, restore_receipts, set_aside
from cache.request import request_parts
from cache.verify import Problem, cached_splits, verify_split
from hoi.config import PipelineConfig
from hoi.datasets import open_images
from hoi.errors import UserError
from stages.teacher_cache import build_missing

if TYPE_CHECKING:
    from cache.models import ExtractorFactory
    from cache.recompute import Recomputed


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found, by split."""

    problems: tuple[Problem, ...]
    recomputed: dict[str, Recomputed]
    num_files: dict[str, int]
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
        lines += [
            f"{split}: {num} shards as they were written" for split, num in self.num_files.items() if split not in bad
        ]
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
        factory: As for `stages.teacher_cache.main`.

    Raises:
        UserError: there is no cache, it is of another schema version, or the models to recompute with are others.
    """
    start, folder = time.monotonic(), Path(config.cache.folder)
    splits = list(dict.fromkeys([*splits_of(config), *cached_splits(folder)]))
    if not cached_splits(folder):
        raise UserError("there is no teacher cache", where=folder, fix="make teacher-cache, or set cache.folder")
    problems: list[Problem] = []
    num_files: dict[str, int] = {}
    for split in tqdm(splits, unit="split", desc="verify", leave=False):
        problems += verify_split(folder / split)
        manifest = None if any(p.split == split for p in problems) else read_manifest(folder / split)
        num_files[split] = len(manifest.shards) if manifest is not None else 0
    recomputed = {}
    if recompute is not None and not problems:
        recomputed = _recompute(config, recompute, seed, factory)
    return VerifyReport(tuple(problems), recomputed, num_files, time.monotonic() - start)


def _recompute(
    config: PipelineConfig, number: int, seed: int, factory: ExtractorFactory | None
) -> dict[str, Recomputed]:
    from cache.build import as_begun
    from cache.models import hold, load_extractor, release
    from cache.recompute import recompute

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


def complete_manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None or not has_all_files(folder, manifest):
        raise UserError("this teacher cache is not complete", where=folder, fix="make cache-repair")
    return manifest


def repair(config: PipelineConfig, factory: ExtractorFactory | None = None) -> list[str]:
    """A cache to a whole one: bad files into quarantine, then what is missing built as always.

    Shards whose unreadable images can be read by now are made again as well. All else stays as it is, to the byte.

    Returns:
        What was done, line by line; none if nothing was wrong.

    Raises:
        UserError: the cache was made with other settings, or see `stages.teacher_cache.main`.
    """
    request = request_parts(config)
    return [line for split in splits_of(config) for line in _repair_split(config, split, request, factory)]


def _repair_split(
    config: PipelineConfig, split: str, request: dict[str, Any], factory: ExtractorFactory | None
) -> list[str]:
    folder = Path(config.cache.folder) / split
    problems = verify_split(folder)
    bad = {problem.name for problem in problems}
    manifest = read_manifest(folder) if MANIFEST_NAME not in bad else None
    bank = manifest.bank if manifest is not None else read_bank_receipt(folder)
    if bank is not None:
        # What is made again must have the size of what stays.
        config = config_with_cache(config, images_per_shard=bank.images_per_shard)
    plan = plan_split(config, split)
    _refuse_other_settings(plan, request, manifest, bad)
    if manifest is not None:
        problems += mended_images(split, manifest.shards, open_images(config.dataset, split))
    if not problems:
        return []
    with sole_builder(Path(config.cache.folder)):
        moved = set_aside(folder, problems) if folder.is_dir() else []
    num_built = build_missing(config, [plan], request, factory)[split]
    written = restore_receipts(folder)
    return [
        *map(str, problems),
        *(f"{split}/{name}: moved to {split}/{QUARANTINE_NAME}" for name in moved),
        f"{split}: {num_built} shards built, {len(written)} receipts written, complete again",
    ]


def _refuse_other_settings(plan: SplitPlan, request: dict[str, Any], manifest: Manifest | None, bad: set[str]) -> None:
    """Nothing is moved away for a config that is not the cache's."""
    if manifest is not None:
        is_complete(plan, request)
    elif not {BANK_NAME, Path(BANK_NAME).with_suffix(".json").name} & bad:
        begun_with(plan, request)


def config_with_cache(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    """The config with other values in its section `cache`."""
    return config.model_copy(update={"cache": config.cache.model_copy(update=changes)})
