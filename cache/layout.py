"""Which shards the images of a split come to. Nothing is computed, read or written here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.manifest import Manifest
from cache.passes import BASE, Pass
from hoi.errors import UserError

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
