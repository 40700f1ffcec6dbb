"""One pass over a split on its way from its plan to its manifest. Only the driver holds one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from hoi.cache.build.models import AskerFactory, ExtractorFactory
from hoi.cache.build.tasks import Outcome, Task
from hoi.cache.build.worker import build_answers, build_bank, build_phrases, build_shard
from hoi.cache.index import write_index
from hoi.cache.manifest import (
    BankReceipt,
    Manifest,
    Receipt,
    read_manifest,
    write_manifest,
)
from hoi.cache.plan import ShardPlan, SplitPlan, begun_with, finished_receipt
from hoi.cache.tools.repair import mended_of
from hoi.config import PipelineConfig
from hoi.datasets import ImageSource, open_images
from hoi.errors import UserError
from hoi.files import append_line, remove_file
from hoi.provenance import commit

BANK_TASK = "bank"
SHOWN = 5
"""Failures that an error message lists before it says how many more there are."""


class SplitBuild:
    """What is finished, what is missing, what failed.

    Args:
        plan: Of the base pass or a further one.
        config: Which is built.
        request: What it asks for.
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
        """Takes up what is there, then drops manifest and index: the split is not complete until it is sealed again."""
        self.look()
        remove_file(self.plan.folder / self.plan.of.manifest_name)
        remove_file(self.plan.folder / self.plan.of.index_name)

    def look(self) -> int:
        """Takes up the shards that are there; not sealed ones with an image that can be read by now are built again.

        Returns:
            Number of images in them.
        """
        if self.bank is None:
            return 0
        sealed = read_manifest(self.plan.folder, self.plan.of) is not None
        for shard in self.plan.shards:
            receipt = finished_receipt(self.plan.folder, shard, self.bank.fingerprint, self.bank.parts)
            if receipt is not None and (sealed or not self._is_mended(shard, receipt)):
                self.receipts[shard.index] = receipt
        return self.num_images_done

    def _is_mended(self, shard: ShardPlan, receipt: Receipt) -> bool:
        if not (receipt.failed and self._reads_images):
            return False
        row_of = {self._source.image_ids[row]: row for row in range(shard.start, shard.stop)}
        mended = mended_of(receipt, self._source, row_of)
        return bool(set(mended) - self._unreadable_in_base)

    @cached_property
    def _unreadable_in_base(self) -> set[str]:
        """Images that a further pass cannot know anything of, whether they can be read by now or not."""
        base = None if self.plan.of.is_base else read_manifest(self.plan.folder)
        return {image_id for image_id, _ in base.failed} if base is not None else set()

    @cached_property
    def _source(self) -> ImageSource:
        return open_images(self._config.dataset, self.plan.split)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left but to seal."""
        return self.bank is not None and len(self.receipts) == len(self.plan.shards)

    @property
    def begins_alone(self) -> bool:
        """Whether no other task may run beside the one that begins the split.

        So it is where there are shards, but not what they were begun with: they cannot be judged until it is made
        again. And where a precision is to be found by the clock: two workers that look at once may differ.
        """
        is_auto = self.plan.of.is_base and self._config.teacher.precision == "auto"
        return self.bank is None and (is_auto or any((self.plan.folder / s.name).exists() for s in self.plan.shards))

    @property
    def num_images_done(self) -> int:
        return sum(receipt.num_images for receipt in self.receipts.values())

    def bank_task(self, factory: ExtractorFactory | AskerFactory) -> Task:
        """The task that begins the pass."""
        plan = self.plan
        arguments = (
            self._config_json,
            json.dumps(self.request),
            str(plan.folder),
            plan.images_per_shard,
            plan.num_images,
            plan.image_ids_sha256,
            factory,
        )
        if plan.of.is_base:
            return Task(plan.split, BANK_TASK, build_bank, arguments)
        return Task(plan.split, BANK_TASK, build_phrases, (*arguments, plan.of.name))

    def shard_tasks(self, factory: ExtractorFactory | AskerFactory) -> Iterator[Task]:
        """One task per missing shard."""
        for shard in self.plan.shards:
            if shard.index in self.receipts:
                continue
            arguments = self._shard_arguments(shard, factory)
            if shard.of.is_base:
                yield Task(shard.split, shard.name, build_shard, arguments)
            else:
                further = (*arguments, shard.of.name, shard.base_sha256)
                yield Task(shard.split, shard.name, build_answers, further)

    def _shard_arguments(self, shard: ShardPlan, factory: ExtractorFactory | AskerFactory) -> tuple[Any, ...]:
        return (
            self._config_json,
            str(self.plan.folder),
            shard.split,
            shard.index,
            shard.start,
            shard.stop,
            shard.image_ids_sha256,
            self.bank.fingerprint if self.bank is not None else "",
            factory,
        )

    def take(self, outcome: Outcome) -> int:
        """Books the outcome of one task, and notes its time in the journal.

        Returns:
            Number of images that it finished.

        Raises:
            UserError: too many images are unreadable, or workers have different models.
        """
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
        receipt = Receipt.from_dict(outcome.result)
        self.receipts[self.plan.of.shard_index(receipt.name)] = receipt
        self.num_built += 1
        # To look at every shard after each would take as long as the square of their number.
        if receipt.failed or (self.bank is not None and receipt.fingerprint != self.bank.fingerprint):
            self.check()
        return receipt.num_images

    def check(self) -> None:
        """Nothing, while the shards so far agree and few images are unreadable."""
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
        """Writes the index, then the manifest: from now on the split is complete."""
        self.check()
        assert self.bank is not None
        made_with = {
            "config": self._config.model_dump(mode="json"),
            "commit": commit(),
            **self.bank.made_with,
        }
        receipts = tuple(self.receipts[shard.index] for shard in self.plan.shards)
        plan = self.plan
        index = write_index(plan.folder, plan.split, self.bank.fingerprint, receipts, plan.of)
        write_manifest(plan.folder, Manifest(plan.split, self.bank, receipts, made_with, index, plan.of))
