"""Signals as they leave the extractor to the batch that a student sees: what the cache would give, without a cache.

Letters: B images, N detections, P pairs, K interactions, D the teacher's joint width, M crop margins, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hoi.errors import UserError
from hoi.records import Detections, ImageSignals, PairBatch

IMAGE_FIELDS = ("image_embedding", "image_similarity", "spatial_map")
PAIR_FIELDS = ("union_embedding", "union_similarity", "union_feature")


class ExtraFields(dict[str, Tensor]):
    """`PairBatch.extra`: a field of a further pass over a cache is missed only where it is read.

    A student may name such a field because its training targets are made of it, and score pairs without.
    """

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"this student scores pairs with '{name}', which a single image does not have",
            where=f"the field {name}",
            expected="fields of detector and teacher alone",
            got="a field of a further pass over a cache" if "/" in name else "a field that the teacher was not asked",
            fix="choose a student that needs no such field to score, or grade this one from a cache",
        )


def batch_of(signals: Sequence[ImageSignals], extra: Sequence[str], no_object_idx: int | None) -> PairBatch:
    """Signals of B images to one batch on the CPU, float32, equal to `CacheSplit.batch` of the same images.

    Args:
        signals: At least one image; features as float16, as they would lie on disk.
        extra: Further fields that a student names; those that signals lack are missed when they are read.
        no_object_idx: Label of the object of a pair of a human with itself; None where there are no such pairs.
    """
    num_pairs = [len(each.pairs_ho) for each in signals]
    first_row = np.cumsum([0, *(len(each.detections) for each in signals)])[:-1]
    of_pair = np.repeat(np.arange(len(signals)), num_pairs)
    pairs_ho = np.concatenate([each.pairs_ho for each in signals]).astype(np.int64)
    rows_h, rows_o = (pairs_ho + first_row[of_pair][:, None]).T
    boxes, scores, labels = (
        np.concatenate([getattr(each.detections, name) for each in signals])
        for name in ("boxes_xyxy", "scores", "labels")
    )
    regions = np.concatenate([each.detection_feature for each in signals])
    labels_o = labels[rows_o].astype(np.int64)
    if no_object_idx is not None:
        labels_o[rows_h == rows_o] = no_object_idx
    known = {name: _field(signals, name) for name in extra if hasattr(signals[0], name)}
    return PairBatch(
        image_rows=torch.arange(len(signals)),
        size_hw=_floats(np.stack([each.size_hw for each in signals])),
        image_embedding=_field(signals, "image_embedding"),
        image_similarity=_field(signals, "image_similarity"),
        pair_image=torch.from_numpy(of_pair),
        boxes_h=_floats(boxes[rows_h]),
        boxes_o=_floats(boxes[rows_o]),
        scores_h=_floats(scores[rows_h]),
        scores_o=_floats(scores[rows_o]),
        labels_o=torch.from_numpy(labels_o),
        pair_rows=torch.arange(len(pairs_ho)),
        rows_h=torch.from_numpy(rows_h.copy()),
        rows_o=torch.from_numpy(rows_o.copy()),
        human_feature=_floats(regions[rows_h]),
        object_feature=_floats(regions[rows_o]),
        union_feature=_field(signals, "union_feature"),
        union_similarity=_field(signals, "union_similarity"),
        extra=ExtraFields(known),
    )


def on_device(batch: PairBatch, device: torch.device) -> PairBatch:
    """The same batch there, with its fields still missed by name."""
    moved = batch.to(device)
    return replace(moved, extra=ExtraFields(moved.extra))


def blank_signals(axes: Mapping[str, int]) -> ImageSignals:
    """An image with one pair whose features are all zero: enough to see what a student asks for."""
    features = {
        "image_embedding": ("D",),
        "image_similarity": ("K",),
        "union_embedding": (1, "M", "D"),
        "union_similarity": (1, "M", "K"),
        "detection_feature": (2, "L", "D"),
        "union_feature": (1, "L", "D"),
    }
    if {"C", "H", "W"} <= axes.keys():
        features["spatial_map"] = ("C", "H", "W")
    boxes = np.array([[0, 0, 8, 16], [8, 0, 16, 16]], np.float32)
    return ImageSignals(
        image_id="blank",
        size_hw=np.array([16, 16], np.int32),
        detections=Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int64)),
        pairs_ho=np.array([[0, 1]], np.int32),
        **{
            name: np.zeros([axes[size] if isinstance(size, str) else size for size in shape], np.float16)
            for name, shape in features.items()
        },
    )


def _field(signals: Sequence[ImageSignals], name: str) -> Tensor:
    """A field of images, stacked, or of pairs, laid flat; an optional one that was not asked for is missed."""
    values = [getattr(each, name) for each in signals]
    if name not in (*IMAGE_FIELDS, *PAIR_FIELDS) or values[0] is None:
        ExtraFields().__missing__(name)
    return _floats(np.stack(values) if name in IMAGE_FIELDS else np.concatenate(values))


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
