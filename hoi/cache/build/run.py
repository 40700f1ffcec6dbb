"""Stage one: every image through detector and teacher once, into shards that students read.

Plan; run the missing shards; seal the manifest. Then the same for every extra pass of the pipeline file (`vlms`), over
the finished base pass.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hoi.cache.build.pool import Outcome, Task, open_pool
from hoi.cache.index import write_index
from hoi.cache.manifest import (
    BankReceipt,
    Manifest,
    Receipt,
    complete_manifest,
    read_manifest,
    sole_builder,
    write_manifest,
)
from hoi.cache.plan import (
    SplitPlan,
    begun_with,
    finished_receipt,
    is_complete,
    plan_over,
    plan_split,
    splits_of,
)
from hoi.cache.schema import BASE, Pass, extra_passes
from hoi.config import PipelineConfig
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.errors import UserError
from hoi.files import append_line, convert, remove_file, size_text
from hoi.provenance import commit

if TYPE_CHECKING:
    from hoi.cache.build.worker import ModelFactory

BANK_TASK = "bank"
SHOWN = 5
"""Failures that an error message lists before it says how many more there are."""


@dataclass(frozen=True)
class SplitReport:
    """What stage one did for a pass over a split, and what is there now."""

    split: str
    of: Pass
    num_images: int
    num_failed: int
    num_pairs: int
    num_built: int
    files: str

    @classmethod
    def of_sealed(cls, plan: SplitPlan, num_built: int) -> SplitReport:
        manifest = complete_manifest(plan.folder, plan.of)
        shards, num_failed = manifest.shards, len(manifest.failed)
        num_pairs, num_bytes = sum(shard.num_pairs for shard in shards), sum(shard.num_bytes for shard in shards)
        files = f"{size_text(num_bytes)} in {len(shards)} shards, {num_built} built now · {plan.folder}"
        return cls(plan.split, plan.of, manifest.num_images, num_failed, num_pairs, num_built, files)


@dataclass(frozen=True)
class CacheReport:
    splits: tuple[SplitReport, ...]
    seconds: float
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{s.of.label(s.split)}: {s.num_images} images ({s.num_failed} unreadable), {s.num_pairs} pairs, {s.files}"
            for s in self.splits
        ]
        nothing = " (nothing to do)" if not any(s.num_built for s in self.splits) else ""
        notices = [f"note: {notice}" for notice in self.notices]
        return "\n".join([*lines, *notices, f"teacher cache complete in {self.seconds:.1f} s{nothing}"])


def build_cache(
    config: PipelineConfig, factory: ModelFactory | None = None, extra_factory: ModelFactory | None = None
) -> CacheReport:
    """Build the cache of every split of a config's data set; what is there already is not computed again.

    The factories make the models of the base pass and of extra ones; None for the product's own. Raises a UserError for
    settings that differ from the cache's, too many unreadable images, a full disk, failed shards.
    """
    start = time.monotonic()
    request = BASE.content.request(config)
    plans = [plan_split(config, split) for split in splits_of(config)]
    is_there = all(is_complete(plan, request) for plan in plans)
    notices = () if is_there or factory is not None else _notices_of_images(config)
    reports = _build_pass(config, plans, request, factory)
    for of in extra_passes(config):
        over = [plan_over(complete_manifest(plan.folder), plan.folder, of) for plan in plans]
        reports += _build_pass(config, over, of.content.request(config, request), extra_factory)
    return CacheReport(tuple(reports), time.monotonic() - start, tuple(notices))


def _notices_of_images(config: PipelineConfig) -> list[str]:
    """Join the images to a file of boxes once before all workers do, so that what is wrong with it is said at once."""
    if not config.detector.is_looked_up:
        return []
    # Imported here: it brings torch, as in `build_missing`.
    from hoi.detectors import ListsImages, build_detector

    detector = build_detector(config.detector, load_vocabulary(config.dataset), "cpu", config.dataset)
    names = [name for split in splits_of(config) for name in open_images(config.dataset, split).image_ids]
    return detector.notices(names) if isinstance(detector, ListsImages) else []


def _build_pass(
    config: PipelineConfig, plans: list[SplitPlan], request: dict[str, Any], factory: ModelFactory | None
) -> list[SplitReport]:
    missing = [plan for plan in plans if not is_complete(plan, request)]
    num_built = build_missing(config, missing, request, factory) if missing else {}
    return [SplitReport.of_sealed(plan, num_built.get(plan.split, 0)) for plan in plans]


def build_missing(
    config: PipelineConfig, plans: list[SplitPlan], request: dict[str, Any], factory: ModelFactory | None
) -> dict[str, int]:
    """Build and seal one pass over splits; return the number of shards that were built, by split."""
    # Imported here: it brings torch, which takes seconds that a run with nothing to do should not spend.
    from hoi.cache.build.worker import OwnModel

    with sole_builder(Path(config.cache.folder)):
        builds = {plan.split: SplitBuild(plan, config, request) for plan in plans}
        run_missing(config, builds, factory or OwnModel(plans[0].of))
        for build in builds.values():
            build.seal()
    return {split: build.num_built for split, build in builds.items()}


def run_missing(config: PipelineConfig, builds: dict[str, SplitBuild], factory: ModelFactory) -> None:
    """Run the missing shards of one pass over the splits, with a progress bar in images and a journal of timings."""
    from hoi.cache.build.worker import release
    from hoi.cache.build.worker_check import worker_check
    from hoi.detectors import tell_of_cut

    for build in builds.values():
        build.unseal()
    if all(build.is_finished for build in builds.values()):
        return
    first = next(iter(builds.values()))
    cut: list[str] = []
    of, total = first.plan.of, sum(build.plan.num_images for build in builds.values())
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
                cut += (outcome.result or {}).get("cut", [])
    finally:
        release()
        tell_of_cut(cut)
    failed = {name: error for build in builds.values() for name, error in build.errors.items()}
    if failed:
        reasons = [f"{name}: {error.strip().splitlines()[-1]}" for name, error in failed.items()]
        raise UserError(
            f"{len(failed)} of {len(begin) + len(shards)} tasks failed",
            where=f"{config.cache.folder}, tracebacks in {of.journal_name} of each split",
            got="; ".join(reasons[:SHOWN]),
            fix="run the same command again: finished shards are kept",
        )


class SplitBuild:
    """What is built of one pass over a split, and what is missing; only the driver holds one.

    Args:
        reads_images: Whether images that could not be read are tried again.
    """

    def __init__(
        self, plan: SplitPlan, config: PipelineConfig, request: dict[str, Any], reads_images: bool = True
    ) -> None:
        self.plan = plan
        self.bank = begun_with(plan, request)
        self.receipts: dict[int, Receipt] = {}
        self.num_built = 0
        self.errors: dict[str, str] = {}
        self._config = config
        # One text that all tasks share: there may be many thousand of them.
        self._config_json = config.model_dump_json()
        self.request = request
        self._reads_images = reads_images

    def unseal(self) -> None:
        """Take up what is there, then drop manifest and index: the split is not complete until it is sealed again."""
        self.look()
        remove_file(self.plan.folder / self.plan.of.manifest_name)
        remove_file(self.plan.folder / self.plan.of.index_name)

    def look(self) -> int:
        """Take up the shards that are there, and return their number of images.

        Of a split that is not sealed, shards with unreadable images that can be read now are left out.
        """
        if self.bank is None:
            return 0
        sealed = read_manifest(self.plan.folder, self.plan.of) is not None
        for shard in self.plan.shards:
            receipt = finished_receipt(self.plan.folder, shard, self.bank.fingerprint, self.bank.parts)
            if receipt is None:
                continue
            if sealed or not (self._reads_images and receipt.failed and self._mended(receipt)):
                self.receipts[shard.index] = receipt
        return self.num_images_done

    @cached_property
    def _mended(self) -> Callable[[Receipt], list[str]]:
        return mending(self._config, self.plan)

    @property
    def is_finished(self) -> bool:
        return self.bank is not None and len(self.receipts) == len(self.plan.shards)

    @property
    def begins_alone(self) -> bool:
        """Whether no other task may run beside the one that begins the split.

        So it is where shards are there, but not what they were begun with: they wait until it is made again.
        """
        are_there = any((self.plan.folder / shard.name).exists() for shard in self.plan.shards)
        return self.bank is None and (are_there or self.plan.of.content.begins_alone(self._config))

    @property
    def num_images_done(self) -> int:
        return sum(receipt.num_images for receipt in self.receipts.values())

    def bank_task(self, factory: ModelFactory) -> Task:
        from hoi.cache.build.worker import begin_pass

        plan, request = self.plan, json.dumps(self.request)
        layout = (str(plan.folder), plan.images_per_shard, plan.num_images, plan.image_ids_sha256)
        return Task(plan.split, BANK_TASK, begin_pass, (plan.of, self._config_json, request, *layout, factory))

    def shard_tasks(self, factory: ModelFactory) -> Iterator[Task]:
        from hoi.cache.build.worker import build_shard

        fingerprint = self.bank.fingerprint if self.bank is not None else ""
        for shard in self.plan.shards:
            if shard.index not in self.receipts:
                arguments = (shard, self._config_json, str(self.plan.folder), fingerprint, factory)
                yield Task(shard.split, shard.name, build_shard, arguments)

    def take(self, outcome: Outcome) -> int:
        """Book the outcome of one task, note its time in the journal, and return the number of images it finished."""
        name = f"{outcome.task.group}/{outcome.task.name}"
        line = {"time": time.time(), "task": name, "seconds": outcome.seconds, "error": outcome.error}
        append_line(self.plan.folder / self.plan.of.journal_name, json.dumps(line))
        if outcome.result is None:
            self.errors[name] = outcome.error or ""
            return 0
        if outcome.task.name == BANK_TASK:
            self.bank = BankReceipt(**outcome.result)
            self.check()
            return 0
        receipt = convert(outcome.result, Receipt)
        self.receipts[self.plan.of.shard_index(receipt.name)] = receipt
        self.num_built += 1
        # To look at every shard after each would take as long as the square of their number.
        if receipt.failed or (self.bank is not None and receipt.fingerprint != self.bank.fingerprint):
            self.check()
        return receipt.num_images

    def check(self) -> None:
        """Raise if too many images are unreadable, or shards have another fingerprint than their bank."""
        failed = [pair for index in sorted(self.receipts) for pair in self.receipts[index].failed]
        limit = self._config.cache.max_failed_share
        if len(failed) > limit * self.plan.num_images:
            reasons = "; ".join(f"{image_id}: {reason}" for image_id, reason in failed[:SHOWN])
            more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
            raise UserError(
                f"too many images of split '{self.plan.split}' are unreadable",
                expected=f"at most {limit:.1%} of {self.plan.num_images} (cache.max_failed_share)",
                got=f"{len(failed)} so far: {reasons}{more}",
                fix="mend or remove them, or raise cache.max_failed_share, then run the same command again",
            )
        if self.bank is not None:
            others = {r.name for r in self.receipts.values() if r.fingerprint != self.bank.fingerprint}
            if others:
                raise UserError(
                    "the workers have different models or devices",
                    where=self.plan.folder,
                    expected=f"fingerprint {self.bank.fingerprint[:12]} in every shard",
                    got=f"another one in {', '.join(sorted(others)[:SHOWN])}",
                    fix="give all workers the same weights and device, delete these shards, run the same command again",
                )

    def seal(self) -> None:
        """Write the index, then the manifest: from now on the split is complete."""
        self.check()
        assert self.bank is not None
        made_with = {"config": self._config.model_dump(mode="json"), "commit": commit(), **self.bank.made_with}
        receipts = tuple(self.receipts[shard.index] for shard in self.plan.shards)
        plan = self.plan
        index = write_index(plan.folder, plan.split, self.bank.fingerprint, receipts, plan.of)
        write_manifest(plan.folder, Manifest(plan.split, self.bank, receipts, made_with, index, plan.of))


def mending(config: PipelineConfig, plan: SplitPlan) -> Callable[[Receipt], list[str]]:
    """Return what lists a shard's images that could not be read when it was built, and can be now.

    Those that the base pass of an extra pass lacks stay unreadable.
    """
    source = open_images(config.dataset, plan.split)
    base = read_manifest(plan.folder) if plan.of.name else None
    lacking = {image_id for image_id, _ in base.failed} if base is not None else set()

    def mended(receipt: Receipt) -> list[str]:
        shard, images = plan.shards[plan.of.shard_index(receipt.name)], list[str]()
        row_of = {source.image_ids[row]: row for row in range(shard.start, shard.stop)}
        for image_id, _ in receipt.failed:
            if image_id not in lacking:
                with suppress(UnreadableImage):
                    source.read(row_of[image_id])
                    images.append(image_id)
        return images

    return mended
