"""From raw boxes to Detections, and from class names to the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.config import GroundTruthDetectorConfig
from hoi.detectors import keep_detections, match_classes
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("person", "sports_ball", "dog"), ("hold",), (("hold", "sports_ball"),))
BOXES = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [-5, 30, 8, 60], [2, 2, 4, 4], [0, 0, 9, 9]], np.float64)
SCORES = np.array([0.3, 0.9, 0.5, 0.5, 0.04])
LABELS = np.array([0, 0, 1, -1, 0])


def settings(**values: float) -> GroundTruthDetectorConfig:
    return GroundTruthDetectorConfig(name="ground_truth", **values)


def test_detections_are_clipped_thresholded_and_sorted() -> None:
    found = keep_detections(BOXES, SCORES, LABELS, (50, 50), settings(), nms=False)
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0.3])
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes_xyxy.tolist() == [[1, 0, 11, 10], [0, 30, 8, 50], [0, 0, 10, 10]]
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)


def test_suppression_comes_before_the_limit() -> None:
    found = keep_detections(BOXES, SCORES, LABELS, (50, 50), settings(max_detections=2), nms=True)
    np.testing.assert_allclose(found.scores, [0.9, 0.5])
    assert found.labels.tolist() == [0, 1]


def test_equal_scores_keep_their_order() -> None:
    boxes = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(20)])
    found = keep_detections(boxes, np.ones(20), np.zeros(20, np.int64), (9, 300), settings(), nms=True)
    assert found.boxes_xyxy[:, 0].tolist() == boxes[:, 0].tolist()


def test_nothing_found_is_a_valid_result() -> None:
    none = np.zeros((0, 4))
    assert len(keep_detections(none, np.zeros(0), np.zeros(0, np.int64), (9, 9), settings(), nms=True)) == 0


def test_classes_match_by_name_whatever_their_spelling_of_spaces() -> None:
    found = match_classes(["__background__", "Person", "kite", "sports ball", "DOG"], VOCABULARY, "here")
    assert found.tolist() == [-1, 0, -1, 1, 2]


def test_an_object_that_the_detector_would_never_find_is_refused_by_name() -> None:
    with pytest.raises(
        UserError,
        match=r"not know 1 of the vocabulary's 3 objects .* where: here .* expected: dog \(nothing like it\) · got",
    ):
        match_classes(["person", "sports ball", "kite"], VOCABULARY, "here")
