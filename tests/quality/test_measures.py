"""Rank correlation, mirrored boxes, coverage: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.quality.measures import agreement, coverage, mirror, spearman
from hoi.records import Detections

BOXES = np.array([[10, 20, 30, 60], [60, 30, 90, 50], [0, 0, 8, 100]], np.float32)
DETECTIONS = Detections(BOXES, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 0]))


def test_a_ranking_agrees_with_itself_and_not_with_its_reverse() -> None:
    values = np.array([0.1, 0.5, 0.2, 0.9, 0.3])
    assert spearman(values, values**3) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    # Ranks 1 2 3 4 5 against 2 1 3 4 5: 1 - 6 * 2 / (5 * 24).
    assert spearman(np.arange(5), np.array([1, 0, 2, 3, 4])) == pytest.approx(0.9)


def test_few_pairs_and_equal_scores_have_no_ranking() -> None:
    assert spearman(np.arange(4), np.arange(4)) is None
    assert spearman(np.arange(5), np.ones(5)) is None
    assert agreement(np.ones((9, 2)), np.ones((9, 2)), np.ones((9, 2), bool)) is None


def test_only_pairs_that_admit_an_interaction_count_for_it() -> None:
    first = np.arange(12.0).reshape(6, 2)
    second = first.copy()
    second[0, 0] = 99
    admitted = np.ones((6, 2), bool)
    admitted[0, 0] = False
    admitted[:3, 1] = False
    assert agreement(first, second, admitted) == pytest.approx(1)
    # With the first pair, 1 - 6 * 30 / (6 * 35); the other interaction has too few pairs to count.
    admitted[0, 0] = True
    assert agreement(first, second, admitted) == pytest.approx(1 - 30 / 35)


def test_coverage_counts_images_pairs_and_thresholds() -> None:
    scores = np.array([[0.5, 0.0], [0.2, 0.9], [0.01, 0.0], [0.02, 0.0]])
    admitted = np.array([[True, False], [True, False], [True, False], [False, False]])
    here, never = coverage(scores, admitted, np.array([0, 0, 1, 2]))
    assert (here.num_images, here.num_pairs, here.above) == (2, 3, (3, 2, 1))
    assert here.best_score == 0.5
    assert here.notes == ["in 2 images only"]
    assert never.notes == ["never seen: no person together with this object"]
    assert never.best_score == 0


def test_a_mirrored_box_keeps_its_pixels() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    for value, (x1, y1, x2, y2) in zip((50, 100, 150), BOXES.astype(int), strict=True):
        image[y1:y2, x1:x2] = value
    mirrored, detections = mirror(image, DETECTIONS)
    for value, (x1, y1, x2, y2) in zip((50, 100, 150), detections.boxes_xyxy.astype(int), strict=True):
        assert (mirrored[y1:y2, x1:x2] == value).all()
        assert (mirrored == value).all(-1).sum() == (x2 - x1) * (y2 - y1)
    again, boxes = mirror(mirrored, detections)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(boxes.boxes_xyxy, BOXES)
