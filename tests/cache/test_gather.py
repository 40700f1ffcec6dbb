"""Runs of rows are the same rows whether fields are joined, mapped by shard, or on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hoi.cache.read.batches import JoinedTables, MappedTables, Runs, Tables

OFFSETS = np.array([0, 2, 2, 5, 6, 6, 9])
"""Six images with 2, 0, 3, 1, 0 and 3 rows."""
TABLE = np.arange(18, dtype=np.float16).reshape(9, 2)


def shard_rows(images: list[int]) -> list[np.ndarray]:
    return np.split(TABLE, OFFSETS[images])


def tables(kind: str, images: list[int]) -> Tables:
    parts = shard_rows(images)

    def rows(shard: int, name: str) -> np.ndarray:
        assert name == "field"
        return parts[shard]

    if kind == "joined":
        return JoinedTables(rows, len(parts))
    starts = np.array([0, *images, 6])
    return MappedTables(rows, {"image": starts, "pair": OFFSETS[starts]}, lambda name: (TABLE.dtype, (2,)))


def test_runs_name_the_rows_of_images_in_their_order() -> None:
    runs = Runs.between("pair", OFFSETS, np.array([5, 1, 2, 5]))
    assert runs.counts.tolist() == [3, 0, 3, 3]
    assert runs.slots.tolist() == [0, 3, 3, 6, 9]
    assert runs.rows.tolist() == [6, 7, 8, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("kind", ["joined", "mapped"])
@pytest.mark.parametrize("images", [[], [3], [1, 2, 4], [1, 2, 3, 4, 5]])
def test_rows_are_found_in_any_shards(kind: str, images: list[int]) -> None:
    wanted = np.array([5, 1, 0, 4, 2, 3, 5])
    located = tables(kind, images).locate(Runs.between("pair", OFFSETS, wanted))
    expected = [TABLE[OFFSETS[row] : OFFSETS[row + 1]] for row in wanted]
    for begin, end in ((0, 7), (0, 1), (1, 2), (2, 6), (3, 3)):
        taken = located.take(begin, end, "field")
        assert taken.dtype == torch.float16
        np.testing.assert_array_equal(taken.numpy(), np.concatenate([TABLE[:0], *expected[begin:end]]))


def test_a_taken_row_is_a_copy() -> None:
    for kind in ("joined", "mapped"):
        located = tables(kind, [3]).locate(Runs.between("pair", OFFSETS, np.array([2])))
        located.take(0, 1, "field").zero_()
        np.testing.assert_array_equal(located.take(0, 1, "field").numpy(), TABLE[2:5])
