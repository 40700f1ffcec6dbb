"""What a batch takes of a field: one run of rows per image, from joined tables or from mapped shards, to one tensor.

An image's pairs lie together, and so do its detections. Fields keep their dtype here.

Letters: B images of a batch, R rows taken, S shards of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

Kind = Literal["image", "detection", "pair"]
"""What one row of a table is."""
ShardRows = Callable[[int, str], np.ndarray]
"""(shard, field) to the field's rows of that shard, which may be a view of a mapped file."""
Template = tuple[np.dtype, tuple[int, ...]]
"""dtype and shape of one row of a field."""


@dataclass(frozen=True)
class Runs:
    """The consecutive rows that each of some images has in the tables of one kind.

    Args:
        kind: Which tables.
        images: int64 [B], rows of the split.
        starts: int64 [B], each image's first row in the split's tables.
        counts: int64 [B], its number of rows.
        slots: int64 [B + 1]: where each image's rows begin among the R, and R.
        rows: int64 [R]: rows of the split's tables.
    """

    kind: Kind
    images: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    slots: np.ndarray
    rows: np.ndarray

    @classmethod
    def counted(cls, kind: Kind, images: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Runs:
        """Runs of the given numbers of rows, int64 [B]."""
        slots = np.concatenate([[0], np.cumsum(counts)])
        return cls(kind, images, starts, counts, slots, np.repeat(starts - slots[:-1], counts) + np.arange(slots[-1]))

    @classmethod
    def of_images(cls, images: np.ndarray) -> Runs:
        """One row per image."""
        return cls("image", images, images, np.ones_like(images), np.arange(len(images) + 1), images)

    @classmethod
    def between(cls, kind: Kind, offsets: np.ndarray, images: np.ndarray) -> Runs:
        """All rows of each image, out of the split's offsets, int64 [n + 1]."""
        starts = offsets[images]
        return cls.counted(kind, images, starts, offsets[images + 1] - starts)


_rows_of = cast(Callable[[memoryview, slice], memoryview], getitem)


class Located(Protocol):
    """Runs of images, found in the tables of their kind."""

    def take(self, begin: int, end: int, name: str) -> Tensor:
        """A field's rows of the images from `begin` up to, not including, `end`: a new tensor [R, ...]."""
        ...


class Tables(Protocol):
    """Fields of a split, wherever they lie."""

    @property
    def device(self) -> torch.device: ...

    def locate(self, runs: Runs) -> Located:
        """Runs to where their rows lie."""
        ...


def pick(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, in any order and number, to a new tensor on its device."""
    if table.device.type != "cpu":
        return table.index_select(0, rows)
    # One memcpy per row; index_select sets up a copy kernel for each, and costs several times as much on small tables.
    return torch.from_numpy(table.numpy().take(rows.numpy(), axis=0))


class JoinedTables:
    """Whole fields, in memory or on a GPU: one gather per field. A field is joined when it is first asked for.

    Args:
        shard_rows: The shards.
        num_shards: S.
        device: Where the fields are to lie.
    """

    def __init__(self, shard_rows: ShardRows, num_shards: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._shard_rows = shard_rows
        self._num_shards = num_shards
        self._whole: dict[str, Tensor] = {}

    def whole(self, name: str) -> Tensor:
        """All rows of a field; no copy."""
        if name not in self._whole:
            self._whole[name] = self._join(name)
        return self._whole[name]

    def locate(self, runs: Runs) -> Located:
        """See `Tables`."""
        return _Picked(self, torch.from_numpy(runs.rows).to(self.device), runs.slots.tolist())

    def _join(self, name: str) -> Tensor:
        parts = [self._shard_rows(shard, name) for shard in range(self._num_shards)]
        if self.device.type == "cpu":
            return torch.from_numpy(np.concatenate(parts))
        # Shard by shard, so that a field that only the device has room for is never whole in memory.
        first = torch.from_numpy(parts[0].copy())
        table = first.new_empty((sum(map(len, parts)), *first.shape[1:]), device=self.device)
        for part, rows in zip(parts, table.split([len(part) for part in parts]), strict=True):
            rows.copy_(torch.from_numpy(part.copy()))
        return table


@dataclass(frozen=True)
class _Picked:
    tables: JoinedTables
    rows: Tensor
    slots: list[int]

    def take(self, begin: int, end: int, name: str) -> Tensor:
        return pick(self.tables.whole(name), self.rows[self.slots[begin] : self.slots[end]])


class MappedTables:
    """Fields that stay in the shards' mapped files: one copy per image and field, straight into the batch.

    Args:
        shard_rows: The shards, mapped.
        starts: Of each kind, int64 [S + 1]: rows of the split at which the shards begin, and their sum.
        template: Of a field by name.
    """

    device = torch.device("cpu")

    def __init__(
        self, shard_rows: ShardRows, starts: Mapping[Kind, np.ndarray], template: Callable[[str], Template]
    ) -> None:
        self._starts = starts
        self._views = _FieldViews(shard_rows)
        self._template = template

    def locate(self, runs: Runs) -> Located:
        """See `Tables`."""
        shard = np.searchsorted(self._starts["image"], runs.images, side="right") - 1
        begin = runs.starts - self._starts[runs.kind][shard]
        slices = list(map(slice, begin.tolist(), (begin + runs.counts).tolist()))
        return _Sliced(self._views, self._template, shard.tolist(), slices)


@dataclass(frozen=True)
class _Sliced:
    views: _FieldViews
    template: Callable[[str], Template]
    shards: list[int]
    slices: list[slice]

    def take(self, begin: int, end: int, name: str) -> Tensor:
        views = map(self.views[name].__getitem__, self.shards[begin:end])
        # Slices of a memoryview cost a fifth of an array's, and join copies each with one memcpy.
        data = bytearray().join(map(_rows_of, views, self.slices[begin:end]))
        dtype, shape = self.template(name)
        return torch.from_numpy(np.frombuffer(data, dtype).reshape(-1, *shape))


class _ShardViews(dict[int, memoryview]):
    """Shard to one field's rows of it, looked up when first asked for."""

    def __init__(self, shard_rows: ShardRows, name: str) -> None:
        super().__init__()
        self._shard_rows = shard_rows
        self._name = name

    def __missing__(self, shard: int) -> memoryview:
        view = self[shard] = self._shard_rows(shard, self._name).data
        return view


class _FieldViews(dict[str, _ShardViews]):
    """Field to its rows by shard, made when it is first asked for."""

    def __init__(self, shard_rows: ShardRows) -> None:
        super().__init__()
        self._shard_rows = shard_rows

    def __missing__(self, name: str) -> _ShardViews:
        views = self[name] = _ShardViews(self._shard_rows, name)
        return views
