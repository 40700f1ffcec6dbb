"""Batches of pairs, float32, from rows of a split, on the device where the features lie.

Shapes: n images, N detections and P pairs of a split; B images, R rows of one kind in a batch; S shards; C images, over
all batches, that are planned at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, repeat
from operator import getitem
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from hoi.records import PairBatch

Kind = Literal["image", "detection", "pair"]
"""What one row of a table is."""
ShardRows = Callable[[int, str], np.ndarray]
"""Returns a field's rows of a shard, which may be a view of a mapped file, from the shard's number and the name."""
Template = tuple[np.dtype, tuple[int, ...]]
"""dtype and shape of one row of a field."""


@dataclass(frozen=True)
class Runs:
    """The consecutive rows that each of some images has in the tables of one kind.

    Args:
        images, starts, counts: int64 [B]: rows of the split, first rows in its tables, numbers of rows.
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
        slots = np.concatenate([[0], np.cumsum(counts)])
        return cls(kind, images, starts, counts, slots, np.repeat(starts - slots[:-1], counts) + np.arange(slots[-1]))

    @classmethod
    def of_images(cls, images: np.ndarray) -> Runs:
        return cls("image", images, images, np.ones_like(images), np.arange(len(images) + 1), images)

    @classmethod
    def between(cls, kind: Kind, offsets: np.ndarray, images: np.ndarray) -> Runs:
        """Return runs of all rows of each image, out of the split's offsets, int64 [n + 1]."""
        starts = offsets[images]
        return cls.counted(kind, images, starts, offsets[images + 1] - starts)


_rows_of = cast(Callable[[memoryview, slice], memoryview], getitem)


Take = Callable[[int, int, str], Tensor]
"""Returns a field's rows of the images from `begin` up to, not including, `end`: a new tensor [R, ...]."""


class Tables(Protocol):
    """Fields of a split, wherever they lie."""

    @property
    def device(self) -> torch.device: ...

    def locate(self, runs: Runs) -> Take: ...


def pick(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a table, in any order and number, as a new tensor on its device."""
    if table.device.type != "cpu":
        return table.index_select(0, rows)
    # One memcpy per row; index_select sets up a copy kernel for each, and costs several times as much on small tables.
    return torch.from_numpy(table.numpy().take(rows.numpy(), axis=0))


class JoinedTables:
    """Whole fields, in memory or on a GPU: one gather per field. A field is joined when it is first asked for."""

    def __init__(self, shard_rows: ShardRows, num_shards: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._shard_rows = shard_rows
        self._num_shards = num_shards
        self._whole: dict[str, Tensor] = {}

    def whole(self, name: str) -> Tensor:
        if name not in self._whole:
            self._whole[name] = self._join(name)
        return self._whole[name]

    def locate(self, runs: Runs) -> Take:
        rows, slots = torch.from_numpy(runs.rows).to(self.device), runs.slots.tolist()
        return lambda begin, end, name: pick(self.whole(name), rows[slots[begin] : slots[end]])

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


class MappedTables:
    """Fields that stay in the shards' mapped files: one copy per image and field, straight into the batch.

    Of each kind, `starts` are the rows of the split at which the shards begin, and their sum, int64 [S + 1].
    """

    device = torch.device("cpu")

    def __init__(
        self, shard_rows: ShardRows, starts: Mapping[Kind, np.ndarray], template: Callable[[str], Template]
    ) -> None:
        self._starts = starts
        self._template = template
        self._view = cache(lambda shard, name: shard_rows(shard, name).data)

    def locate(self, runs: Runs) -> Take:
        shard = np.searchsorted(self._starts["image"], runs.images, side="right") - 1
        first = runs.starts - self._starts[runs.kind][shard]
        shards, slices = shard.tolist(), list(map(slice, first.tolist(), (first + runs.counts).tolist()))

        def take(begin: int, end: int, name: str) -> Tensor:
            views = map(self._view, shards[begin:end], repeat(name))
            # Slices of a memoryview cost a fifth of an array's, and join copies each with one memcpy.
            data = bytearray().join(map(_rows_of, views, slices[begin:end]))
            dtype, shape = self._template(name)
            return torch.from_numpy(np.frombuffer(data, dtype).reshape(-1, *shape))

        return take


DETECTION_COLUMNS = ("boxes_xyxy", "scores", "labels")
IMAGE_FEATURES = ("image_embedding", "image_similarity")
PAIR_FEATURES = ("union_feature", "union_similarity")
FEATURES = (*IMAGE_FEATURES, "detection_feature", *PAIR_FEATURES)
"""Nearly all of a batch's bytes."""


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batches of a split's images; `columns` and `features` are where small and large fields are taken from.

    Args:
        size_hw: int32 [n, 2].
        detection_offsets, pair_offsets: int64 [n + 1], rows of the split's tables.
        features: Of `FEATURES`; batches are made on its device.
        no_object_idx: Label of the object of a pair of a human with itself; None where there are no such pairs.
    """

    size_hw: np.ndarray
    detection_offsets: np.ndarray
    pair_offsets: np.ndarray
    columns: Tables
    features: Tables
    no_object_idx: int | None = None

    @property
    def device(self) -> torch.device:
        return self.features.device

    def make(
        self, images_of_batches: Sequence[np.ndarray], extra: Mapping[str, tuple[Kind, Tables]]
    ) -> Iterator[PairBatch]:
        """Yield the batches of the given images, int64 [B] each, one after the other.

        Which rows to take, and the small columns, are worked out for all of them at once: done batch by batch, that
        would cost a third of what the features cost.

        Args:
            extra: Extra fields by name: whether a row is an image or a pair, and where they are taken from.
        """
        images = np.concatenate(images_of_batches)
        bounds = np.cumsum([0, *map(len, images_of_batches)])
        pairs = Runs.between("pair", self.pair_offsets, images)
        humans_objects = self.columns.locate(pairs)(0, len(images), "pairs_ho").numpy().T
        humans_objects = np.ascontiguousarray(humans_objects, np.int64)
        detections = self._paired_detections(pairs, humans_objects)
        columns = self._columns(detections, pairs, humans_objects)
        places = _places(bounds, detections, pairs, humans_objects)
        runs: dict[Kind, Runs] = {"image": Runs.of_images(images), "pair": pairs}
        of_image, of_detection, of_pair = map(self.features.locate, (runs["image"], detections, pairs))
        of_extra = {name: tables.locate(runs[kind]) for name, (kind, tables) in extra.items()}
        image_columns = {"image_rows": images, "size_hw": self.size_hw[images].astype(np.float32)}
        split = zip(
            pairwise(bounds.tolist()),
            self._split(image_columns, bounds),
            self._split(columns, pairs.slots[bounds]),
            self._split(places, pairs.slots[bounds]),
            strict=True,
        )
        for (begin, end), image_part, pair_part, place in split:
            # Every detection is read and converted once, however many pairs share it.
            region = of_detection(begin, end, "detection_feature").float()
            yield PairBatch(
                **image_part,
                **{name: of_image(begin, end, name).float() for name in IMAGE_FEATURES},
                **pair_part,
                pair_image=place["image"],
                human_feature=pick(region, place["human"]),
                object_feature=pick(region, place["object"]),
                **{name: of_pair(begin, end, name).float() for name in PAIR_FEATURES},
                extra={name: take(begin, end, name).to(self.device).float() for name, take in of_extra.items()},
            )

    def _paired_detections(self, pairs: Runs, humans_objects: np.ndarray) -> Runs:
        # Each image's detections up to the last that is in a pair; scores fall, so most others come after.
        counts = np.zeros(len(pairs.images), np.int64)
        has_pairs = pairs.counts > 0
        if has_pairs.any():
            last = np.maximum(*humans_objects)
            counts[has_pairs] = np.maximum.reduceat(last, pairs.slots[:-1][has_pairs]) + 1
        return Runs.counted("detection", pairs.images, self.detection_offsets[pairs.images], counts)

    def _columns(self, detections: Runs, pairs: Runs, humans_objects: np.ndarray) -> dict[str, np.ndarray]:
        take = self.columns.locate(detections)
        boxes, scores, labels = (take(0, len(detections.images), name).numpy() for name in DETECTION_COLUMNS)
        slots = humans_objects + np.repeat(detections.slots[:-1], pairs.counts)
        rows_h, rows_o = humans_objects + np.repeat(detections.starts, pairs.counts)
        boxes_h, boxes_o = boxes.take(slots, axis=0)
        scores_h, scores_o = scores.take(slots)
        labels_o = labels.take(slots[1]).astype(np.int64)
        if self.no_object_idx is not None:
            labels_o[rows_h == rows_o] = self.no_object_idx
        return {
            "boxes_h": boxes_h,
            "boxes_o": boxes_o,
            "scores_h": scores_h,
            "scores_o": scores_o,
            "labels_o": labels_o,
            "pair_rows": pairs.rows,
            "rows_h": rows_h,
            "rows_o": rows_o,
        }

    def _split(self, columns: Mapping[str, np.ndarray], bounds: np.ndarray) -> Iterator[dict[str, Tensor]]:
        on_cpu = self.device.type == "cpu"
        for begin, end in pairwise(bounds.tolist()):
            batch = {name: torch.from_numpy(rows[begin:end]) for name, rows in columns.items()}
            yield batch if on_cpu else {name: rows.to(self.device) for name, rows in batch.items()}


def _places(bounds: np.ndarray, detections: Runs, pairs: Runs, humans_objects: np.ndarray) -> dict[str, np.ndarray]:
    """Return int64 [P] each, counted from the pair's batch: its image, its human and object among the detections."""
    first_image = np.repeat(bounds[:-1], np.diff(bounds))
    slots = detections.slots[:-1] - detections.slots[first_image]
    human, obj = humans_objects + np.repeat(slots, pairs.counts)
    image = np.repeat(np.arange(len(first_image)) - first_image, pairs.counts)
    return {"image": image, "human": human, "object": obj}
