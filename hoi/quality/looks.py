"""A sample of images, looked at in other ways with the same boxes: does a scorer say the same?

Letters: P pairs, K interactions, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from hoi.boxes import box_area, box_iou, clip_boxes
from hoi.detectors import Detector
from hoi.extraction import Extractor
from hoi.prediction.batch import batch_of
from hoi.records import Detections, PairBatch
from hoi.vocabulary import Vocabulary

ViewName = Literal["flip", "crop", "shift"]
VIEWS: tuple[ViewName, ...] = ("flip", "crop", "shift")
"""`flip`: mirrored. `crop`: the middle `CROP_SHARE` of each side. `shift`: the same pixels, and boxes as another
detector might draw them."""
CROP_SHARE = 0.8
SHIFT, GROWTH = 0.08, 1.1
"""Share of a box's sides by which its centre moves, to and fro from one detection to the next, and factor on them."""
MIN_KEPT = 0.9
"""Share of a box's area that must lie inside the view for its pairs to be compared."""


@dataclass(frozen=True)
class View:
    """One look at an image.

    Args:
        image: uint8 [H', W', 3].
        detections: The image's, in the same order, in the view's pixels.
        is_whole: bool [N], whether the box is still there.
    """

    image: np.ndarray
    detections: Detections
    is_whole: np.ndarray


def look(image: np.ndarray, detections: Detections, view: ViewName) -> View:
    """An image, uint8 [H, W, 3], and its detections to a view of them."""
    height, width = image.shape[:2]
    boxes = detections.boxes_xyxy
    if view == "flip":
        mirrored = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        return _view(np.ascontiguousarray(image[:, ::-1]), mirrored, detections)
    if view == "shift":
        return _view(image, moved(boxes), detections)
    x, y = round(width * (1 - CROP_SHARE) / 2), round(height * (1 - CROP_SHARE) / 2)
    right, bottom = max(x + 1, width - x), max(y + 1, height - y)
    cropped = np.ascontiguousarray(image[y:bottom, x:right])
    return _view(cropped, boxes - np.array([x, y, x, y], np.float32), detections)


def moved(boxes_xyxy: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
    """Boxes to larger ones beside them: the first to the lower right, the next to the upper left, and so on."""
    centre, sides = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    sign = np.where(np.arange(len(boxes_xyxy)) % 2, -1.0, 1.0)[:, None]
    centre = centre + sign * SHIFT * sides
    return np.concatenate([centre - GROWTH * sides / 2, centre + GROWTH * sides / 2], 1).astype(np.float32)


def _view(image: np.ndarray, boxes: np.ndarray, detections: Detections) -> View:
    boxes = boxes.astype(np.float32)
    inside = clip_boxes(boxes, (image.shape[0], image.shape[1]))
    is_whole = (box_area(inside) >= MIN_KEPT * box_area(boxes)) & (box_area(inside) > 0)
    return View(image, Detections(inside, detections.scores, detections.labels), is_whole)


class CarriedDetections:
    """A detector that hands out the detections that were carried along, in the order of the images."""

    def __init__(self) -> None:
        self._ahead: dict[str, Detections] = {}

    def expect(self, image_id: str, detections: Detections) -> None:
        """What the image of this id will have when it comes."""
        self._ahead[image_id] = detections

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        """See `hoi.detectors.Detector`."""
        return [self._ahead.pop(image_id) for image_id in image_ids]

    def provenance(self) -> dict[str, object]:
        """See `hoi.detectors.Detector`."""
        return {"name": "carried"}


def compared_pairs(view: View, pairs_ho: np.ndarray) -> Bool[np.ndarray, " P"]:
    """The pairs whose two boxes the view shows."""
    return view.is_whole[pairs_ho].all(1)


SAME_IOU = 0.5

ScoreBatch = Callable[[PairBatch], torch.Tensor]
"""A batch to [P, K] scores, without the detection prior."""


@dataclass
class Looks:
    """Scores of the sample's pairs: as they were, and in one view.

    Args:
        before, after: By scorer, lists of [P, K].
        admitted: Of bool [P, K], which interactions a pair's object admits.
    """

    before: dict[str, list[np.ndarray]] = field(default_factory=dict)
    after: dict[str, list[np.ndarray]] = field(default_factory=dict)
    admitted: list[np.ndarray] = field(default_factory=list)

    def of(self, scorer: str) -> tuple[Float[np.ndarray, "P K"], Float[np.ndarray, "P K"], Bool[np.ndarray, "P K"]]:
        """All that one scorer said: before, after, and where it counts."""
        return np.concatenate(self.before[scorer]), np.concatenate(self.after[scorer]), np.concatenate(self.admitted)


@dataclass(frozen=True)
class SampledImage:
    """An image of the sample.

    Args:
        image_id: Its key.
        pixels: uint8 [H, W, 3].
        detections: As cached.
        scores: [P, K] by scorer, of its cached pairs.
    """

    image_id: str
    pixels: np.ndarray
    detections: Detections
    scores: Mapping[str, np.ndarray]


def look_again(
    images: Sequence[SampledImage],
    extractor: Extractor,
    carried: CarriedDetections,
    scorers: Mapping[str, ScoreBatch],
    extra: Sequence[str],
    vocabulary: Vocabulary,
    seen: Callable[[], object],
) -> dict[str, Looks]:
    """Scores every image's pairs again in each view.

    Args:
        images: The sample.
        extractor: Of the cache's settings, with `carried` as its detector.
        carried: What hands the moved boxes on.
        scorers: By name.
        extra: Further fields that they read.
        vocabulary: Which interactions an object admits.
        seen: Called after each image.
    """
    looks: dict[str, Looks] = {view: Looks() for view in VIEWS}
    for image in images:
        views = [look(image.pixels, image.detections, name) for name in VIEWS]
        for name, view in zip(VIEWS, views, strict=True):
            carried.expect(name, view.detections)
        signals = extractor.extract(VIEWS, [view.image for view in views])
        for name, view, seen_so in zip(VIEWS, views, signals, strict=True):
            batch = batch_of([seen_so], extra, vocabulary.no_object_idx)
            rows = compared_pairs(view, seen_so.pairs_ho)
            looks[name].admitted.append(vocabulary.object_mask[batch.labels_o.numpy()][rows])
            for scorer, score in scorers.items():
                with torch.inference_mode():
                    after = score(batch).double().cpu().numpy()
                looks[name].before.setdefault(scorer, []).append(image.scores[scorer][rows])
                looks[name].after.setdefault(scorer, []).append(after[rows])
        seen()
    return looks


def found_again(images: Sequence[SampledImage], detector: Detector, min_score: float) -> float | None:
    """Share of the detections that pair up which the detector finds in the mirrored image as well.

    Args:
        images: The sample.
        detector: The config's own.
        min_score: Of detections that pair up.

    Returns:
        By class and IoU 0.5; None without a detection.
    """
    hits: list[bool] = []
    for image in images:
        there = image.detections.select(image.detections.scores >= min_score)
        mirrored = look(image.pixels, there, "flip")
        [found] = detector.detect([mirrored.image], [image.image_id])
        same = box_iou(mirrored.detections.boxes_xyxy, found.boxes_xyxy) >= SAME_IOU
        same &= mirrored.detections.labels[:, None] == found.labels[None]
        hits += [bool(row.any()) for row in same]
    return float(np.mean(hits)) if hits else None
