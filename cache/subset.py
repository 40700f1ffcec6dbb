"""Some images of a split as a training source: fewer of them, or one process's share of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cache.dataset import CacheSplit
from cache.resident import ResidentSplit
from hoi.distributed import ALONE, Group
from hoi.records import PairBatch

ORDER_SEED = 0


@dataclass(frozen=True)
class FirstImages:
    """The first readable images of one shuffled order, which no training seed changes.

    Args:
        source: The whole split.
        max_images: How many; where there are fewer, or None, all of them.
        group: Whose batches these are: a process gets its share of each, which may be empty.
    """

    source: CacheSplit | ResidentSplit
    max_images: int | None
    group: Group = ALONE

    @property
    def num_images(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 [n], ascending rows of the split."""
        readable = np.flatnonzero(self._split.is_readable)
        return np.sort(np.random.default_rng(ORDER_SEED).permutation(readable)[: self.max_images])

    def batches(
        self, batch_images: int, rng: np.random.Generator | None = None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        """See `CacheSplit.batches`."""
        rows = self.rows if rng is None else rng.permutation(self.rows)
        device = self.source.device if isinstance(self.source, ResidentSplit) else None
        whole = [rows[start : start + batch_images] for start in range(0, len(rows), batch_images)]
        return self._split.batches_of([self.group.own(batch) for batch in whole], extra, device)

    @property
    def _split(self) -> CacheSplit:
        return self.source.split if isinstance(self.source, ResidentSplit) else self.source
