"""Boxes are where their pixels are, in every view."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.boxes import box_iou
from hoi.quality.looks import (
    CarriedDetections,
    compared_pairs,
    look,
    moved,
)
from hoi.records import Detections

BOXES = np.array([[10, 20, 30, 60], [60, 30, 90, 50], [0, 0, 8, 100]], np.float32)
DETECTIONS = Detections(BOXES, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]))


def painted() -> np.ndarray:
    """A black image of 100 x 100 whose boxes are filled with 50, 100 and 150."""
    image = np.zeros((100, 100, 3), np.uint8)
    for value, (x1, y1, x2, y2) in zip((50, 100, 150), BOXES.astype(int), strict=True):
        image[y1:y2, x1:x2] = value
    return image


@pytest.mark.parametrize("name", ["flip", "crop"])
def test_a_box_keeps_its_pixels(name: str) -> None:
    view = look(painted(), DETECTIONS, name)
    for value, box, whole in zip((50, 100, 150), view.detections.boxes_xyxy.astype(int), view.is_whole, strict=True):
        if whole:
            x1, y1, x2, y2 = box
            assert (view.image[y1:y2, x1:x2] == value).all()
            assert (view.image == value).all(-1).sum() == (x2 - x1) * (y2 - y1)


def test_mirroring_twice_changes_nothing() -> None:
    once = look(painted(), DETECTIONS, "flip")
    twice = look(once.image, once.detections, "flip")
    np.testing.assert_array_equal(twice.image, painted())
    np.testing.assert_array_equal(twice.detections.boxes_xyxy, BOXES)
    assert once.is_whole.all()


def test_pairs_that_a_crop_cuts_are_not_compared() -> None:
    view = look(painted(), DETECTIONS, "crop")
    assert view.image.shape == (80, 80, 3)
    assert view.is_whole.tolist() == [True, True, False]
    assert compared_pairs(view, np.array([[0, 1], [2, 1], [0, 2]])).tolist() == [True, False, False]


def test_moved_boxes_overlap_the_old_ones_and_not_wholly() -> None:
    overlap = box_iou(moved(BOXES), BOXES).diagonal()
    assert ((overlap > 0.55) & (overlap < 0.85)).all()
    np.testing.assert_allclose(moved(BOXES)[0], [10 + 1.6 - 1, 20 + 3.2 - 2, 30 + 1.6 + 1, 60 + 3.2 + 2], atol=1e-4)


def test_carried_detections_are_given_once_by_their_image() -> None:
    carried = CarriedDetections()
    carried.expect("a", DETECTIONS)
    assert carried.detect([painted()], ["a"]) == [DETECTIONS]
    with pytest.raises(KeyError):
        carried.detect([painted()], ["a"])
