"""Write complete splits of random signals, shard by shard, with the calls of stage one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

from hoi.cache.base_pass import FIELDS, bank_tables, pack_tables
from hoi.cache.build.worker import write_bank, write_shard
from hoi.cache.index import write_index
from hoi.cache.manifest import (
    BankReceipt,
    Manifest,
    Receipt,
    read_bank_receipt,
    read_receipt,
    write_manifest,
)
from hoi.cache.plan import plan_shards
from hoi.cache.schema import (
    BASE,
    READABLE,
    check_tables,
    fields_of,
    shape_of,
)
from hoi.files import json_sha256
from hoi.records import Detections, ImageSignals, TextBank
from hoi.vocabulary import Vocabulary

SPLIT = "train"
PARTS = {"synthetic": True}
AXES = {"K": 600, "D": 512, "M": 1, "L": 1}
NUM_DETECTIONS, MEAN_PAIRS = 9, 15
THIN_AXES = {"K": 1, "D": 1, "M": 1, "L": 1}
THIN_DETECTIONS, THIN_PAIRS = 2, 1
POOL_VALUES = 1 << 21
"""Random numbers that all features are slices of."""

Tables = dict[str, np.ndarray]


def image_name(row: int) -> str:
    return f"image-{row:08d}.jpg"


def write_split(folder: Path, num_images: int, images_per_shard: int) -> int:
    """Write signals of the usual widths, K 600 and D 512, with 15 pairs per image on average; return the bytes."""
    pool = np.random.default_rng(0).normal(size=POOL_VALUES).astype(np.float16)

    def tables(image_ids: Sequence[str]) -> Tables:
        rng = np.random.default_rng(list(image_ids[0].encode()))
        return pack_tables(image_ids, [_signals(image_id, rng, pool) for image_id in image_ids], AXES)

    num_bytes = write_shards(folder, num_images, images_per_shard, AXES, tables)
    seal_split(folder)
    return num_bytes


def write_thin_shards(folder: Path, num_images: int, images_per_shard: int) -> int:
    """Write narrow signals (K = D = 1, two detections and one pair per image) without manifest; return the bytes.

    Columns per image, and so the index, are as large as in a real cache. Files are not synced to disk.
    """
    with patch.object(os, "fsync", lambda descriptor: None):
        return write_shards(folder, num_images, images_per_shard, THIN_AXES, _thin_tables)


def write_shards(
    folder: Path,
    num_images: int,
    images_per_shard: int,
    axes: dict[str, int],
    tables: Callable[[Sequence[str]], Tables],
) -> int:
    """Write all shards of a split, without manifest; return their bytes.

    Args:
        axes: Sizes by letter.
        tables: Returns the tables of a shard of these image ids.
    """
    path = folder / SPLIT
    plan = plan_shards([image_name(row) for row in range(num_images)], SPLIT, path, images_per_shard)
    fingerprint = json_sha256(PARTS)
    ids_sha256 = plan.image_ids_sha256
    begun = BankReceipt(fingerprint, PARTS, {}, images_per_shard, ids_sha256, num_images, axes, "", 0, {})
    verbs = tuple(f"verb {number}" for number in range(axes["K"]))
    vocabulary = Vocabulary(("person",), verbs, tuple((verb, "person") for verb in verbs))
    texts = np.zeros((axes["K"], axes["D"]), np.float32)
    bank = TextBank(texts, 100.0, None, tuple((verb,) for verb in verbs))
    write_bank(path, *bank_tables(bank, vocabulary), begun)
    return sum(
        write_shard(
            path,
            tables([image_name(row) for row in range(shard.start, shard.stop)]),
            shard,
            PARTS,
            axes,
        ).num_bytes
        for shard in plan.shards
    )


def seal_split(folder: Path) -> None:
    """Write index and manifest from the receipts beside the shards, as a resuming driver does."""
    path = folder / SPLIT
    bank = read_bank_receipt(path)
    assert bank is not None
    receipts = tuple(
        _receipt(path / BASE.shard_name(index)) for index in range(-(-bank.num_images // bank.images_per_shard))
    )
    index = write_index(path, SPLIT, bank.fingerprint, receipts)
    write_manifest(path, Manifest(SPLIT, bank, receipts, {}, index))


def _receipt(shard: Path) -> Receipt:
    receipt = read_receipt(shard)
    assert receipt is not None
    return receipt


def _signals(image_id: str, rng: np.random.Generator, pool: np.ndarray) -> ImageSignals:
    def features(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        start = rng.integers(0, len(pool) - size)
        return pool[start : start + size].reshape(shape)

    num_pairs = int(rng.integers(0, 2 * MEAN_PAIRS + 1))
    corners = rng.uniform(0, 300, (NUM_DETECTIONS, 2))
    return ImageSignals(
        image_id=image_id,
        size_hw=np.array([480, 640], np.int32),
        detections=Detections(
            np.concatenate([corners, corners + 50], axis=1).astype(np.float32),
            np.sort(rng.random(NUM_DETECTIONS, np.float32))[::-1],
            np.zeros(NUM_DETECTIONS, np.int64),
        ),
        pairs_ho=rng.integers(0, NUM_DETECTIONS, (num_pairs, 2)).astype(np.int32),
        image_embedding=features(AXES["D"]),
        image_similarity=features(AXES["K"]),
        union_embedding=features(num_pairs, AXES["M"], AXES["D"]),
        union_similarity=features(num_pairs, AXES["M"], AXES["K"]),
        detection_feature=features(NUM_DETECTIONS, AXES["L"], AXES["D"]),
        union_feature=features(num_pairs, AXES["L"], AXES["D"]),
    )


def _thin_tables(image_ids: Sequence[str]) -> Tables:
    num = len(image_ids)
    num_rows = {"image": num, "detection": num * THIN_DETECTIONS, "pair": num * THIN_PAIRS}
    tables: Tables = {
        field.name: np.zeros(shape_of(field, num_rows[field.rows], THIN_AXES), field.dtype)
        for field in fields_of(THIN_AXES, FIELDS)
        if field.rows in num_rows and not field.is_text
    }
    tables |= {
        "image_id": np.array([image_id.encode() for image_id in image_ids]),
        "status": np.full(num, READABLE, np.uint8),
        "size_hw": np.tile(np.array([480, 640], np.int32), (num, 1)),
        "status_reason": np.full(num, b"", "S1"),
        "detection_offsets": np.arange(num + 1, dtype="<i8") * THIN_DETECTIONS,
        "pair_offsets": np.arange(num + 1, dtype="<i8") * THIN_PAIRS,
    }
    check_tables(tables, THIN_AXES, FIELDS)
    return tables
