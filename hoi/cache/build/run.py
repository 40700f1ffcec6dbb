"""Stage one: every image through detector and teacher once, into shards that students read.

Three sentences: make a plan; run the missing shards; seal the manifest. Then the same for every further pass of the
pipeline file (`vlms`), over the finished base pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hoi.cache.build.pool import open_pool
from hoi.cache.fingerprint import pass_request, request_parts
from hoi.cache.manifest import BASE, Manifest, Pass, has_all_files, read_manifest, sole_builder
from hoi.cache.plan import SplitPlan, is_complete, plan_over, plan_split, splits_of
from hoi.config import PipelineConfig
from hoi.errors import UserError

if TYPE_CHECKING:
    from hoi.cache.build.models import AskerFactory, ExtractorFactory
    from hoi.cache.build.split_build import SplitBuild


@dataclass(frozen=True)
class SplitReport:
    """What stage one did for a pass over a split, and what is there now."""

    split: str
    of: Pass
    folder: Path
    num_images: int
    num_failed: int
    num_pairs: int
    num_bytes: int
    num_shards: int
    num_built: int

    @property
    def name(self) -> str:
        return self.split if self.of.is_base else f"{self.split}, {self.of.title}"


@dataclass(frozen=True)
class Report:
    """What stage one did."""

    splits: tuple[SplitReport, ...]
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{s.name}: {s.num_images} images ({s.num_failed} unreadable), {s.num_pairs} pairs, "
            f"{s.num_bytes / 1e6:.1f} MB in {s.num_shards} shards, {s.num_built} built now · {s.folder}"
            for s in self.splits
        ]
        nothing = " (nothing to do)" if not any(s.num_built for s in self.splits) else ""
        return "\n".join([*lines, f"teacher cache complete in {self.seconds:.1f} s{nothing}"])


def build_cache(
    config: PipelineConfig, factory: ExtractorFactory | None = None, asker: AskerFactory | None = None
) -> Report:
    """Config to a complete cache of every split of its data set; what is there already is not computed again.

    Args:
        config: The pipeline file.
        factory: Config, vocabulary and device to what extracts signals from images; None for the product's own.
        asker: The same of what further passes are made with.

    Raises:
        UserError: settings that differ from the cache's, too many unreadable images, a full disk, failed shards.
    """
    start = time.monotonic()
    request = request_parts(config)
    plans = [plan_split(config, split) for split in splits_of(config)]
    missing = [plan for plan in plans if not is_complete(plan, request)]
    num_built = build_missing(config, missing, request, factory) if missing else {}
    reports = [_report(plan, num_built.get(plan.split, 0)) for plan in plans]
    for name in config.vlms:
        reports += build_pass(config, name, [plan.split for plan in plans], request, asker)
    return Report(tuple(reports), time.monotonic() - start)


def build_pass(
    config: PipelineConfig, name: str, splits: Sequence[str], base: dict[str, Any], asker: AskerFactory | None
) -> list[SplitReport]:
    """A further pass over splits whose base pass is complete; base shards are read and stay as they are.

    Args:
        config: The pipeline file.
        name: Of the pass, a key of `vlms`.
        splits: Names of the splits.
        base: What the config asks of the base pass.
        asker: As for `build_cache`.
    """
    request, folder = pass_request(config, name, base), Path(config.cache.folder)
    plans = [plan_over(complete_manifest(folder / split), folder / split, Pass(name)) for split in splits]
    missing = [plan for plan in plans if not is_complete(plan, request)]
    num_built = build_missing(config, missing, request, asker) if missing else {}
    return [_report(plan, num_built.get(plan.split, 0)) for plan in plans]


def complete_manifest(folder: Path, of: Pass = BASE) -> Manifest:
    """The manifest of a pass, all of whose files are there.

    Raises:
        UserError: it is not complete.
    """
    manifest = read_manifest(folder, of)
    if manifest is None or not has_all_files(folder, manifest):
        raise UserError(f"this {of.title} is not complete", where=folder, fix="make cache-repair")
    return manifest


def build_missing(
    config: PipelineConfig,
    plans: list[SplitPlan],
    request: dict[str, Any],
    factory: ExtractorFactory | AskerFactory | None,
) -> dict[str, int]:
    """One pass over splits where it is not complete, to complete ones, sealed when all of them are built.

    Returns:
        Number of shards that were built, by split.
    """
    # Imported here: these bring torch, which takes seconds that a run with nothing to do should not spend.
    from hoi.cache.build.models import LoadAsker, load_extractor
    from hoi.cache.build.split_build import SplitBuild

    of = plans[0].of
    own = load_extractor if of.is_base else LoadAsker(of.name)
    with sole_builder(Path(config.cache.folder)):
        builds = {plan.split: SplitBuild(plan, config, request) for plan in plans}
        run_missing(config, builds, factory or own)
        for build in builds.values():
            build.seal()
    return {split: build.num_built for split, build in builds.items()}


def run_missing(
    config: PipelineConfig, builds: dict[str, SplitBuild], factory: ExtractorFactory | AskerFactory
) -> None:
    """Runs the missing shards of one pass over the splits, with a progress bar in images and a journal of timings.

    Raises:
        UserError: as `SplitBuild.take`, or tasks that failed for good, after all others were done.
    """
    from hoi.cache.build.models import release
    from hoi.cache.build.split_build import SHOWN
    from hoi.cache.build.worker_check import worker_check

    for build in builds.values():
        build.unseal()
    if all(build.is_finished for build in builds.values()):
        return
    total = sum(build.plan.num_images for build in builds.values())
    first = next(iter(builds.values()))
    of = first.plan.of
    try:
        with (
            worker_check(config, first.request, of) as check,
            open_pool(config.cache, check, leave=release) as pool,
            tqdm(total=total, unit="image", desc=of.title) as bar,
        ):
            bar.update(sum(build.num_images_done for build in builds.values()))
            for build in builds.values():
                if build.begins_alone:
                    bar.update(sum(build.take(outcome) for outcome in pool.run([build.bank_task(factory)])))
                    bar.update(build.look())
            begin = [build.bank_task(factory) for build in builds.values() if build.bank is None]
            shards = [task for build in builds.values() for task in build.shard_tasks(factory)]
            for outcome in pool.run([*begin, *shards]):
                bar.update(builds[outcome.task.group].take(outcome))
    finally:
        release()
    failed = {name: error for build in builds.values() for name, error in build.errors.items()}
    if failed:
        reasons = [f"{name}: {error.strip().splitlines()[-1]}" for name, error in failed.items()]
        raise UserError(
            f"{len(failed)} of {len(begin) + len(shards)} tasks failed",
            where=f"{config.cache.folder}, tracebacks in {of.journal_name} of each split",
            got="; ".join(reasons[:SHOWN]),
            fix="run the same command again: finished shards are kept",
        )


def _report(plan: SplitPlan, num_built: int) -> SplitReport:
    manifest = read_manifest(plan.folder, plan.of)
    assert manifest is not None
    return SplitReport(
        plan.split,
        plan.of,
        plan.folder,
        manifest.num_images,
        len(manifest.failed),
        sum(shard.num_pairs for shard in manifest.shards),
        sum(shard.num_bytes for shard in manifest.shards),
        len(manifest.shards),
        num_built,
    )
