"""Some images of a split as a training source: fewer of them, or one process's share of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from hoi.cache.read.batches import FEATURES
from hoi.cache.read.opened import SHARE_OF_GPU
from hoi.cache.read.split import CacheSplit
from hoi.errors import UserError
from hoi.records import PairBatch
from hoi.training.distributed import ALONE, Group


@dataclass(frozen=True)
class ResidentSplit:
    """A split's batches, made on a device where its features are put with the first of them.

    Args:
        split: The cache.
        device: Where to.
    """

    split: CacheSplit
    device: torch.device

    @property
    def num_images(self) -> int:
        return self.split.num_images

    def batches(
        self, batch_images: int, rng: np.random.Generator | None = None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        """See `CacheSplit.batches`; the values are the same."""
        return self.split.batches(batch_images, rng, extra, self.device)


def training_source(
    split: CacheSplit, device: torch.device, resident: Literal["auto", "never", "always"]
) -> CacheSplit | ResidentSplit:
    """The split itself, or kept on the device, as `train.resident` says.

    Raises:
        UserError: it is always to be kept on a GPU that has no room for it.
    """
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return ResidentSplit(split, device) if is_resident(feature_bytes(split), free_bytes, resident) else split


def is_resident(num_bytes: int, free_bytes: int | None, resident: Literal["auto", "never", "always"]) -> bool:
    """Whether features are kept on the device.

    Args:
        num_bytes: What they take.
        free_bytes: What a GPU has room for, or None for the CPU.
        resident: `train.resident`.

    Raises:
        UserError: as `training_source`.
    """
    if resident == "always" and free_bytes is not None and num_bytes > free_bytes:
        raise UserError(
            "the GPU has no room for the cached features",
            where="train.resident",
            expected=f"{num_bytes / 1e9:.1f} GB free",
            got=f"{free_bytes / 1e9:.1f} GB",
            fix="set train.resident: auto",
        )
    fits = free_bytes is not None and num_bytes <= SHARE_OF_GPU * free_bytes
    return resident == "always" or (resident == "auto" and fits)


def feature_bytes(split: CacheSplit, extra: Sequence[str] = ()) -> int:
    """What the features of a split's batches take on a device, and further fields by name."""
    return sum(split.num_bytes(name) for name in (*FEATURES, *extra))


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
