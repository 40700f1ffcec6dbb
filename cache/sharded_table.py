"""One field over all shards of a split: rows of the split to values, in one gather."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


class ShardedTable:
    """The shards' arrays one after the other, joined in memory or left where they are.

    Args:
        parts: One array per shard, equal but in their number of rows.
        in_memory: Whether to join them once, for one gather per batch; otherwise rows are gathered shard by shard.
    """

    def __init__(self, parts: Sequence[np.ndarray], in_memory: bool) -> None:
        # As plain arrays: np.memmap wraps whatever is taken from it, which costs more than the taking.
        plain = [np.asarray(part) for part in parts]
        self._parts = [np.concatenate(plain)] if in_memory and len(plain) > 1 else plain
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def whole(self) -> np.ndarray:
        """All rows; no copy where they lie in one array."""
        return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the split, in any order and number, to a new array [len(rows), ...].

        Neighbours in `rows` that lie in one shard are taken together, as all pairs of an image do.
        """
        if len(self._parts) == 1:
            return self._parts[0].take(rows, axis=0)
        out = np.empty((len(rows), *self._parts[0].shape[1:]), self._parts[0].dtype)
        if not len(rows):
            return out
        part_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        row_in_part = rows - self._starts[part_of_row]
        begins = np.concatenate([[0], np.flatnonzero(np.diff(part_of_row)) + 1, [len(rows)]]).tolist()
        for begin, end in pairwise(begins):
            out[begin:end] = self._parts[part_of_row[begin]].take(row_in_part[begin:end], axis=0)
        return out
