"""What the config asks for of a split, and how much of it is there. Nothing is computed or written here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.fingerprint import refuse_other_settings
from hoi.cache.manifest import (
    BASE,
    BankReceipt,
    Manifest,
    Pass,
    Receipt,
    has_all_files,
    read_bank_receipt,
    read_manifest,
    read_receipt,
)
from hoi.cache.schema import UNREADABLE
from hoi.cache.shard import (
    BrokenFile,
    Header,
    inspect_shard,
    read_text,
)
from hoi.config import PipelineConfig
from hoi.datasets import open_images
from hoi.errors import UserError
from hoi.files import file_sha256

IDS_AT_ONCE = 1 << 16
"""Image ids that are hashed in one go."""


@dataclass(frozen=True)
class ShardPlan:
    """Rows [start, stop) of a split, as one file.

    Args:
        split: Name of the split.
        index: Number of the shard in it.
        start, stop: Rows of the split.
        image_ids_sha256: Hash of the ids of these rows.
        of: Which pass it is of.
        base_sha256: Of a further pass: hash of the base shard of the same images.
    """

    split: str
    index: int
    start: int
    stop: int
    image_ids_sha256: str
    of: Pass = BASE
    base_sha256: str | None = None

    @property
    def name(self) -> str:
        return self.of.shard_name(self.index)

    @property
    def num_images(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class SplitPlan:
    """All shards of a split.

    Args:
        split: Name of the split.
        folder: Where they lie.
        images_per_shard: Rows of each but the last.
        image_ids_sha256: Hash of all ids, in order.
        shards: In order.
        of: Which pass they are of.
        base_fingerprint: Of a further pass: what the base pass was made with.
    """

    split: str
    folder: Path
    images_per_shard: int
    image_ids_sha256: str
    shards: tuple[ShardPlan, ...]
    of: Pass = BASE
    base_fingerprint: str | None = None

    @property
    def num_images(self) -> int:
        return self.shards[-1].stop


def hash_of_ids(image_ids: Sequence[str]) -> str:
    """Image ids, in order, to SHA-256; each ends with a NUL, which no id holds."""
    digest = hashlib.sha256()
    for start in range(0, len(image_ids), IDS_AT_ONCE):
        digest.update("".join([image_id + "\0" for image_id in image_ids[start : start + IDS_AT_ONCE]]).encode())
    return digest.hexdigest()


def doubled_id(image_ids: Sequence[str]) -> str | None:
    """An image id that stands more than once, the most frequent one; None where all are distinct.

    Eight bytes per id, where a set would take a hundred: only ids whose hashes are equal are compared.
    """
    hashes = np.fromiter(map(hash, image_ids), np.int64, len(image_ids))
    ordered = np.sort(hashes)
    doubled = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(doubled):
        return None
    rows = np.flatnonzero(np.isin(hashes, doubled)).tolist()
    [(image_id, count)] = Counter(image_ids[row] for row in rows).most_common(1)
    return image_id if count > 1 else None


def plan_shards(image_ids: Sequence[str], split: str, folder: Path, images_per_shard: int) -> SplitPlan:
    """Image ids, in the order of the split, to its shards.

    Args:
        image_ids: At least one.
        split: Name of the split.
        folder: Where the shards are to lie.
        images_per_shard: Rows of each but the last.

    Raises:
        UserError: an image id stands twice.
    """
    doubled = doubled_id(image_ids)
    if doubled is not None:
        raise UserError("an image id stands twice", where=f"split '{split}'", got=doubled)
    shards = tuple(
        ShardPlan(split, index, start, stop, hash_of_ids(image_ids[start:stop]))
        for index, start in enumerate(range(0, len(image_ids), images_per_shard))
        for stop in [min(start + images_per_shard, len(image_ids))]
    )
    return SplitPlan(split, folder, images_per_shard, hash_of_ids(image_ids), shards)


def plan_over(manifest: Manifest, folder: Path, of: Pass = BASE) -> SplitPlan:
    """A complete split's shards once more, without a look at the images: elsewhere, or as those of a further pass.

    Args:
        manifest: Of the base pass.
        folder: Where the new shards are to lie.
        of: Which pass they are of; a further one has the same images in every shard.
    """
    shards, start = [], 0
    for index, receipt in enumerate(manifest.shards):
        stop = start + receipt.num_images
        base_sha256 = None if of.is_base else receipt.sha256
        shards.append(ShardPlan(manifest.split, index, start, stop, receipt.image_ids_sha256, of, base_sha256))
        start = stop
    bank = manifest.bank
    layout = (bank.images_per_shard, bank.image_ids_sha256, tuple(shards))
    return SplitPlan(manifest.split, folder, *layout, of, None if of.is_base else bank.fingerprint)


def is_over(plan: SplitPlan, manifest: Manifest) -> bool:
    """Whether a further pass was made over the base shards that there are now."""
    return [shard.base_sha256 for shard in plan.shards] == [receipt.base_sha256 for receipt in manifest.shards]


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
