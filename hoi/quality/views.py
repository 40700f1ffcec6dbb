"""Other looks at one image, with the boxes of its detections carried along: what a good scorer should not mind.

Letters: N detections, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from hoi.boxes import box_area, clip_boxes
from hoi.records import Detections

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
