"""Annotated boxes of the embedded world as a detector."""

from __future__ import annotations

import numpy as np

from hoi.config import GroundTruthDetectorConfig, WorldDataset
from hoi.datasets import dataset_of, load_vocabulary, open_images
from hoi.detectors import build_detector

WORLD = WorldDataset(name="world", splits={"test": 3})


def detect(image_rows: list[int], jitter: float = 0.0) -> list:
    source, vocabulary = open_images(WORLD, "test"), load_vocabulary(WORLD)
    config = GroundTruthDetectorConfig(name="ground_truth", jitter=jitter)
    detector = build_detector(config, vocabulary, "cpu", WORLD)
    return detector.detect([source.read(row) for row in image_rows], [source.image_ids[row] for row in image_rows])


def test_every_annotated_box_is_found_at_score_one() -> None:
    vocabulary = load_vocabulary(WORLD)
    for image_id, found in zip(open_images(WORLD, "test").image_ids, detect([0, 1, 2]), strict=True):
        boxes, names = dataset_of(WORLD).boxes(image_id)
        assert found.boxes_xyxy.tolist() == boxes.tolist()
        assert [vocabulary.objects[label] for label in found.labels] == names
        assert (found.scores == 1).all()


def test_jitter_moves_corners_the_same_way_each_time_whatever_the_neighbours() -> None:
    exact, moved, again = detect([0, 1]), detect([0, 1], jitter=0.05), detect([1], jitter=0.05)
    np.testing.assert_array_equal(moved[1].boxes_xyxy, again[0].boxes_xyxy)
    shift = np.abs(moved[0].boxes_xyxy - exact[0].boxes_xyxy)
    assert shift.max() > 0.1
    sides = np.tile(exact[0].boxes_xyxy[:, 2:] - exact[0].boxes_xyxy[:, :2], 2)
    assert (shift < 0.3 * sides).all()
    assert ((moved[0].boxes_xyxy >= 0) & (moved[0].boxes_xyxy <= 192)).all()
