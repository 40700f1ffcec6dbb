"""Rows of a split to batches of their pairs, float32, on the device where the features lie.

Letters as in `cache.dataset`; C is the number of images, over all batches, that are planned at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cache.gather import Kind, Located, Runs, Tables, pick
from hoi.records import PairBatch

DETECTION_COLUMNS = ("boxes_xyxy", "scores", "labels")
IMAGE_FEATURES = ("image_embedding", "image_similarity")
PAIR_FEATURES = ("union_feature", "union_similarity")
FEATURES = (*IMAGE_FEATURES, "detection_feature", *PAIR_FEATURES)
"""Nearly all of a batch's bytes."""


@dataclass(frozen=True)
class BatchMaker:
    """Images of a split to their batches.

    Args:
        size_hw: int32 [n, 2].
        detection_offsets, pair_offsets: int64 [n + 1], rows of the split's tables.
        columns: Where pairs, boxes, scores and labels are taken from, on the CPU.
        features: Where `FEATURES` are taken from; batches are made on its device.
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
        """Where the batches are made."""
        return self.features.device

    def make(
        self, images_of_batches: Sequence[np.ndarray], extra: Mapping[str, tuple[Kind, Tables]]
    ) -> Iterator[PairBatch]:
        """Each batch's rows of the split, int64 [B], to the batches, one after the other.

        Which rows to take, and the small columns, are worked out for all of them at once: done batch by batch, that
        would cost a third of what the features cost.

        Args:
            images_of_batches: In the batches' own order.
            extra: Further fields by name: whether a row is an image or a pair, and where they are taken from.
        """
        images = np.concatenate(images_of_batches)
        bounds = np.cumsum([0, *map(len, images_of_batches)])
        pairs = Runs.between("pair", self.pair_offsets, images)
        pairs_at = self.columns.locate(pairs)
        humans_objects = np.ascontiguousarray(pairs_at.take(0, len(images), "pairs_ho").numpy().T, np.int64)
        detections = self._paired_detections(pairs, humans_objects)
        detections_at = self.columns.locate(detections)
        columns = self._columns(detections, detections_at, pairs, humans_objects)
        places = _places(bounds, detections, pairs, humans_objects)
        runs = {"image": Runs.of_images(images), "pair": pairs}
        images_at = self.columns.locate(runs["image"])
        extra_at = {name: tables.locate(runs[kind]) for name, (kind, tables) in extra.items()}
        if self.features is not self.columns:
            images_at, detections_at, pairs_at = map(self.features.locate, (runs["image"], detections, pairs))

        image_columns = {"image_rows": images, "size_hw": self.size_hw[images].astype(np.float32)}
        of_images = self._split(image_columns, bounds)
        of_pairs = self._split(columns, pairs.slots[bounds])
        of_places = self._split(places, pairs.slots[bounds])
        for begin, end in pairwise(bounds.tolist()):
            place = next(of_places)
            # Every detection is read and converted once, however many pairs share it.
            region = detections_at.take(begin, end, "detection_feature").float()
            yield PairBatch(
                **next(of_images),
                **{name: images_at.take(begin, end, name).float() for name in IMAGE_FEATURES},
                **next(of_pairs),
                pair_image=place["image"],
                human_feature=pick(region, place["human"]),
                object_feature=pick(region, place["object"]),
                **{name: pairs_at.take(begin, end, name).float() for name in PAIR_FEATURES},
                extra={name: at.take(begin, end, name).to(self.device).float() for name, at in extra_at.items()},
            )

    def _paired_detections(self, pairs: Runs, humans_objects: np.ndarray) -> Runs:
        """Each image's detections up to the last that is in a pair; scores fall, so most others come after."""
        counts = np.zeros(len(pairs.images), np.int64)
        has_pairs = pairs.counts > 0
        if has_pairs.any():
            last = np.maximum(*humans_objects)
            counts[has_pairs] = np.maximum.reduceat(last, pairs.slots[:-1][has_pairs]) + 1
        return Runs.counted("detection", pairs.images, self.detection_offsets[pairs.images], counts)

    def _columns(
        self, detections: Runs, detections_at: Located, pairs: Runs, humans_objects: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What batches hold of pairs, [P, ...] by name, without the features."""
        boxes, scores, labels = (
            detections_at.take(0, len(detections.images), name).numpy() for name in DETECTION_COLUMNS
        )
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
        """Columns to their rows between each two bounds, on the batches' device."""
        on_cpu = self.device.type == "cpu"
        for begin, end in pairwise(bounds.tolist()):
            own = {name: torch.from_numpy(rows[begin:end]) for name, rows in columns.items()}
            yield own if on_cpu else {name: rows.to(self.device) for name, rows in own.items()}


def _places(bounds: np.ndarray, detections: Runs, pairs: Runs, humans_objects: np.ndarray) -> dict[str, np.ndarray]:
    """int64 [P] each, counted from the pair's batch: its image, and its human and object among the detections.

    Args:
        bounds: int64, where the batches begin among the images, and C.
        detections, pairs: Of all images.
        humans_objects: int64 [2, P], rows of the image's detections.
    """
    first_image = np.repeat(bounds[:-1], np.diff(bounds))
    slots = detections.slots[:-1] - detections.slots[first_image]
    human, thing = humans_objects + np.repeat(slots, pairs.counts)
    image = np.repeat(np.arange(len(first_image)) - first_image, pairs.counts)
    return {"image": image, "human": human, "object": thing}
