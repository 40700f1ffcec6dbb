"""From raw boxes to Detections, and from class names to the vocabulary."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights

from hoi.config import GroundTruthDetectorConfig
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.detectors import keep_detections, match_classes, tell_of_cut
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

VOCABULARY = Vocabulary(("person", "sports_ball", "dog"), ("hold",), (("hold", "sports_ball"),))
BOXES = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [-5, 30, 8, 60], [2, 2, 4, 4], [0, 0, 9, 9]], np.float64)
SCORES = np.array([0.3, 0.9, 0.5, 0.5, 0.04])
LABELS = np.array([0, 0, 1, -1, 0])


def settings(**values: Any) -> GroundTruthDetectorConfig:
    return GroundTruthDetectorConfig(name="ground_truth", **values)


def test_detections_are_clipped_thresholded_and_sorted() -> None:
    found = keep_detections(BOXES, SCORES, LABELS, (50, 50), settings(), nms=False)
    np.testing.assert_allclose(found.scores, [0.9, 0.5, 0.3])
    assert found.labels.tolist() == [0, 1, 0]
    assert found.boxes_xyxy.tolist() == [[1, 0, 11, 10], [0, 30, 8, 50], [0, 0, 10, 10]]
    assert (found.boxes_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    # Suppression comes before the limit.
    found = keep_detections(BOXES, SCORES, LABELS, (50, 50), settings(max_detections=2), nms=True)
    assert found.labels.tolist() == [0, 1]
    none = keep_detections(BOXES[:0], SCORES[:0], LABELS[:0], (9, 9), settings(), nms=True)
    assert len(none) == 0


def test_equal_scores_keep_their_order() -> None:
    boxes = np.array([[i * 10, 0, i * 10 + 5, 5] for i in range(20)])
    found = keep_detections(boxes, np.ones(20), np.zeros(20, np.int64), (9, 300), settings(), nms=True)
    assert found.boxes_xyxy[:, 0].tolist() == boxes[:, 0].tolist()


def test_of_too_many_boxes_the_best_are_looked_at_with_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hoi.detectors.MAX_CANDIDATES", 2)
    boxes = (BOXES, SCORES, LABELS, (50, 50), settings())
    found = [keep_detections(*boxes, nms=nms, image_id=image_id) for nms, image_id in ((False, "b"), (True, "a"))]
    assert [each.scores.tolist() for each in found] == [np.float32([0.9, 0.5]).tolist()] * 2
    tell_of_cut()
    tell_of_cut()
    assert capsys.readouterr().err == (
        "note: 2 images, the first of them 'b', have more than 2 boxes of at least detector.min_score: "
        "of each, the best 2 are looked at\n"
    )


def test_classes_match_by_name_whatever_their_spelling_of_spaces() -> None:
    found = match_classes(["__background__", "Person", "kite", "sports ball", "DOG"], VOCABULARY, "here")
    assert found.tolist() == [-1, 0, -1, 1, 2]


def test_an_object_unknown_to_the_detector_is_refused() -> None:
    error = refused(match_classes, ["person", "sports ball", "kite"], VOCABULARY, "here")
    assert "not know 1 of the vocabulary's 3 objects" in error.what
    assert (error.where, error.expected) == ("here", "dog (nothing like it)")
    assert "open_vocabulary" in str(error.fix)


SLOTS_OF_HICO = np.array(
    [
        [5, 53, 27, 52, 39, 40, 23, 65, 15, 2, 16, 9, 84, 44, 51, 56, 6, 61, 3, 57],
        [17, 77, 62, 85, 63, 21, 47, 67, 18, 60, 22, 11, 48, 34, 25, 89, 31, 19, 58, 76],
        [38, 49, 73, 78, 4, 74, 55, 79, 14, 1, 59, 64, 82, 75, 54, 87, 20, 81, 41, 35],
        [36, 50, 37, 13, 33, 42, 88, 43, 32, 80, 70, 90, 10, 7, 8, 72, 28, 86, 46, 24],
    ]
).ravel()
"""COCO category ids of HICO-DET's 80 objects, in its alphabetical order."""


def test_torchvisions_91_slots_meet_all_80_objects_of_hico() -> None:
    categories = FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT.meta["categories"]
    rows = match_classes(categories, hicodet_vocabulary(), "torchvision")
    assert rows.shape == (91,)
    np.testing.assert_array_equal(rows[SLOTS_OF_HICO], np.arange(80))
    assert (np.delete(rows, SLOTS_OF_HICO) == -1).all()


def test_the_contiguous_80_meet_all_80_objects_of_hico() -> None:
    rows = match_classes(COCO_OBJECTS, hicodet_vocabulary(), "detectron2")
    # The contiguous number of a category is how many categories have a smaller id.
    np.testing.assert_array_equal(rows[np.argsort(np.argsort(SLOTS_OF_HICO))], np.arange(80))
    underscored = [name.replace(" ", "_") for name in COCO_OBJECTS]
    np.testing.assert_array_equal(match_classes(underscored, hicodet_vocabulary(), "HICO's spelling"), rows)


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="detectron2 is not installed")
def test_detectron2_counts_in_cocos_order() -> None:
    from detectron2.data import MetadataCatalog

    assert tuple(MetadataCatalog.get("coco_2017_val").thing_classes) == COCO_OBJECTS


@pytest.mark.skipif("HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no folder of annotations")
def test_the_published_class_table_gives_the_same_map() -> None:
    table = json.loads((Path(os.environ["HOI_CHECK_DATA"]) / "annotations" / "hoi_classes.json").read_text())
    rows = match_classes(COCO_OBJECTS, hicodet_vocabulary(), "detectron2")
    assert {(entry["object_id_coco80"], entry["object_id_alpha80"]) for entry in table} == set(enumerate(rows.tolist()))
