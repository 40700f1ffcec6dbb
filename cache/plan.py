"""What the config asks for of a split, and how much of it is there. Nothing is computed or written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cache.fingerprint import file_sha256, refuse_other_settings
from cache.layout import ShardPlan, SplitPlan, is_over, plan_shards
from cache.manifest import (
    BankReceipt,
    Receipt,
    has_all_files,
    read_bank_receipt,
    read_manifest,
    read_receipt,
)
from cache.schema import UNREADABLE
from cache.shard import BrokenFile, Header, inspect_shard, read_text
from hoi.config import PipelineConfig
from hoi.datasets import open_images
from hoi.errors import UserError


def splits_of(config: PipelineConfig) -> list[str]:
    """The splits that are to hold images: a share of 0 asks for none."""
    return [split for split, amount in config.dataset.splits.items() if amount > 0]


def plan_split(config: PipelineConfig, split: str) -> SplitPlan:
    """A split's images to its shards.

    Raises:
        UserError: the split is unknown or has no image, or an image id stands twice.
    """
    image_ids = open_images(config.dataset, split).image_ids
    return plan_shards(image_ids, split, Path(config.cache.folder) / split, config.cache.images_per_shard)


def is_complete(plan: SplitPlan, request: dict[str, Any]) -> bool:
    """Whether a pass is sealed with what is asked for now, and all its shards are there in full size.

    A complete cache stays complete when only the shard size of the config changes. A further pass is not complete where
    one of the base shards that it was made over is another one by now.

    Raises:
        UserError: it was made with other settings.
    """
    manifest = read_manifest(plan.folder, plan.of)
    if manifest is None:
        return False
    _refuse_other_request(plan, manifest.bank, request)
    return has_all_files(plan.folder, manifest) and (plan.of.is_base or is_over(plan, manifest))


def begun_with(plan: SplitPlan, request: dict[str, Any]) -> BankReceipt | None:
    """What an unfinished pass was begun with, or None where nothing is there to go on from.

    Raises:
        UserError: it was begun with other settings, or another shard size.
    """
    bank = read_bank_receipt(plan.folder, plan.of)
    if bank is not None:
        _refuse_other_request(plan, bank, request)
        if bank.images_per_shard != plan.images_per_shard:
            raise UserError(
                "this cache was begun with another shard size",
                where=plan.folder,
                expected=f"cache.images_per_shard={bank.images_per_shard}",
                got=plan.images_per_shard,
                fix=f"set it back, or delete {plan.of.clearing(plan.folder)} to build it anew",
            )
    return bank


def _refuse_other_request(plan: SplitPlan, bank: BankReceipt, request: dict[str, Any]) -> None:
    def described(num_images: int, ids: str, wanted: dict[str, Any], base: str | None) -> dict[str, Any]:
        over = {} if plan.of.is_base else {"base_fingerprint": base}
        return {**wanted, **over, "images": {"number": num_images, "ids_sha256": ids}}

    refuse_other_settings(
        plan.folder,
        described(bank.num_images, bank.image_ids_sha256, bank.request, bank.parts.get("base")),
        described(plan.num_images, plan.image_ids_sha256, request, plan.base_fingerprint),
        plan.of,
    )


def finished_receipt(folder: Path, shard: ShardPlan, fingerprint: str, parts: dict[str, Any]) -> Receipt | None:
    """The receipt of a shard that is there, whole and the planned one; None where it has to be built.

    The file is opened; its bytes are hashed only where the receipt beside it is missing.

    Raises:
        UserError: a whole shard is there that was made with other settings.
    """
    path = folder / shard.name
    try:
        found = inspect_shard(path, shard.of.fields)
    except (FileNotFoundError, NotADirectoryError, BrokenFile):
        return None
    attributes = found.attributes
    if attributes["fingerprint"] != fingerprint:
        refuse_other_settings(path, attributes["fingerprint_parts"], parts, shard.of)
    if attributes["image_ids_sha256"] != shard.image_ids_sha256 or attributes["split"] != shard.split:
        raise UserError(
            "this shard holds other images than planned",
            where=path,
            expected=f"{shard.num_images} images of split '{shard.split}' from row {shard.start}",
            got=f"{attributes['num_images']} images of split '{attributes['split']}' from row {attributes['start']}",
            fix=f"delete {path}, then run the same command again",
        )
    if attributes.get("base_sha256") != shard.base_sha256:
        raise UserError(
            f"this shard of {shard.of.title} was made over another base shard",
            where=path,
            expected=f"SHA-256 {str(shard.base_sha256)[:12]}",
            got=str(attributes.get("base_sha256"))[:12],
            fix="make cache-repair makes it again, and all others like it",
        )
    return read_receipt(path) or receipt_from_file(found)


def receipt_from_file(shard: Header) -> Receipt:
    """A finished shard to its receipt, by reading and hashing it."""
    ids, reasons = read_text(shard.table("image_id")), read_text(shard.table("status_reason"))
    failed = np.flatnonzero(shard.table("status") == UNREADABLE)
    return Receipt(
        name=shard.path.name,
        fingerprint=shard.attributes["fingerprint"],
        image_ids_sha256=shard.attributes["image_ids_sha256"],
        num_images=len(ids),
        num_detections=shard.locations["scores"].shape[0] if "scores" in shard.locations else 0,
        num_pairs=int(shard.table("pair_offsets", mapped=True)[-1]),
        num_bytes=shard.path.stat().st_size,
        sha256=file_sha256(shard.path),
        failed=tuple((ids[row], reasons[row]) for row in failed),
        base_sha256=shard.attributes.get("base_sha256"),
    )
