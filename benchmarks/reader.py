"""Compare a shuffled epoch of the cache's reader, in both modes, with plain gathers of the same rows and bytes.

    python -m benchmarks.reader

The plain gathers take the same fields and know the rows beforehand; the reader computes them from image numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.side_by_side import ratio_table, run_in_turn
from benchmarks.synthetic_cache import SPLIT, seal_split, write_shards
from hoi.cache.base_pass import FIELDS
from hoi.cache.read.split import CacheSplit
from hoi.cache.schema import (
    Field,
    fields_of,
    shape_of,
)

AXES = {"K": 600, "D": 512, "M": 1, "L": 1}
MAP_AXES = {"C": 768, "H": 14, "W": 14}
"""Of a ViT-B-16's last map at 224 pixels: 301 KB per image; everything else is 61 KB."""
NUM_IMAGES_WITH_MAP = 600
NUM_IMAGES, MEAN_PAIRS, DETECTIONS = 4000, 15, 9
IMAGES_PER_SHARD = 64
BATCH_IMAGES = 32
NUM_ROUNDS = 15
SHUFFLE_SEED = 0

Rows = list[tuple[str, np.ndarray]]
"""Of one batch: (field, rows of the split)."""


def measure(num_images: int = NUM_IMAGES, num_rounds: int = NUM_ROUNDS, with_map: bool = False) -> str:
    """Return the ratio table of a synthetic cache, with cached spatial maps if `with_map`."""
    torch.set_num_threads(1)
    extra = ("spatial_map",) if with_map else ()
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = write_cache(Path(folder), num_images, {**AXES, **MAP_AXES} if with_map else AXES)
        memory, mapped = (CacheSplit.open(folder, SPLIT, mode=mode) for mode in ("memory", "mapped"))
        wanted = list(rows_of_batches(memory, extra))
        whole = {name: memory.table(name) for name, _ in wanted[0]}
        files = {name: _as_file(Path(folder) / name, table) for name, table in whole.items()}
        ways: dict[str, Callable[[], object]] = {
            "reader, in memory": lambda: _epoch(memory, extra),
            "reader, mapped": lambda: _epoch(mapped, extra),
            "arrays": lambda: gather(whole, wanted),
            "np.memmap": lambda: gather(files, wanted),
            **({"reader, without the map": lambda: _epoch(memory, ())} if with_map else {}),
        }
        rounds = run_in_turn(ways, num_rounds)
        return ratio_table(
            f"reader, {num_images} images{' with spatial maps' if with_map else ''}, {memory.num_pairs} pairs, "
            f"{num_bytes / 1e6:.0f} MB, batches of {BATCH_IMAGES}, float32 out",
            rounds,
            [
                ("reader, in memory", "np.memmap"),
                ("reader, mapped", "np.memmap"),
                ("reader, in memory", "arrays"),
                ("reader, mapped", "reader, in memory"),
                *([("reader, in memory", "reader, without the map")] if with_map else []),
            ],
        )


def write_cache(folder: Path, num_images: int, axes: Mapping[str, int] = AXES) -> int:
    """Write a complete split of random signals with these axes; return the bytes of its shards."""
    rng = np.random.default_rng(0)
    num_bytes = write_shards(
        folder, num_images, IMAGES_PER_SHARD, dict(axes), lambda ids: _random_tables(ids, rng, axes)
    )
    seal_split(folder)
    return num_bytes


def rows_of_batches(split: CacheSplit, extra: Sequence[str] = ()) -> Iterator[Rows]:
    """Yield the rows of each batch of the epoch, in the reader's order."""
    for batch in split.batches(BATCH_IMAGES, np.random.default_rng(SHUFFLE_SEED)):
        images, pairs = batch.image_rows.numpy(), batch.pair_rows.numpy()
        humans, objects = batch.rows_h.numpy(), batch.rows_o.numpy()
        yield [
            ("size_hw", images),
            ("image_embedding", images),
            ("image_similarity", images),
            ("pairs_ho", pairs),
            *((name, rows) for name in ("boxes_xyxy", "scores", "detection_feature") for rows in (humans, objects)),
            ("labels", objects),
            ("union_feature", pairs),
            ("union_similarity", pairs),
            *((name, images) for name in extra),
        ]


def gather(tables: Mapping[str, np.ndarray], wanted: list[Rows]) -> int:
    """Gather the rows of every batch as float32 tensors; return the number of tensors."""
    return sum(len([torch.from_numpy(tables[name][rows]).float() for name, rows in batch]) for batch in wanted)


def _epoch(split: CacheSplit, extra: Sequence[str]) -> int:
    return sum(batch.num_pairs for batch in split.batches(BATCH_IMAGES, np.random.default_rng(SHUFFLE_SEED), extra))


def _as_file(path: Path, table: np.ndarray) -> np.ndarray:
    table.tofile(path)
    return np.memmap(path, table.dtype, "r", shape=table.shape)


def _random_tables(ids: Sequence[str], rng: np.random.Generator, axes: Mapping[str, int]) -> dict[str, np.ndarray]:
    pairs = rng.integers(1, 2 * MEAN_PAIRS, len(ids))
    num_rows = {"image": len(ids), "detection": len(ids) * DETECTIONS, "pair": int(pairs.sum())}
    fields = [field for field in fields_of(axes, FIELDS) if _is_random(field)]
    tables = {field.name: _random(field, shape_of(field, num_rows[field.rows], axes), rng) for field in fields}
    return tables | {
        "image_id": np.array([image_id.encode() for image_id in ids]),
        "status": np.zeros(len(ids), np.uint8),
        "status_reason": np.full(len(ids), b"", "S1"),
        "detection_offsets": np.arange(len(ids) + 1, dtype=np.int64) * DETECTIONS,
        "size_hw": np.tile(np.array([480, 640], np.int32), (len(ids), 1)),
        "pair_offsets": np.concatenate([[0], np.cumsum(pairs)]).astype(np.int64),
        "pairs_ho": rng.integers(0, DETECTIONS, (num_rows["pair"], 2)).astype("<i4"),
    }


def _is_random(field: Field) -> bool:
    return not field.is_text and field.rows != "offset" and field.name not in ("status", "pairs_ho")


def _random(field: Field, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.random(shape, np.float32).astype(field.dtype)


if __name__ == "__main__":
    print(measure())
    print()
    print(measure(NUM_IMAGES_WITH_MAP, with_map=True))
