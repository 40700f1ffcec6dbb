"""COCO result files, and annotated boxes of the world, as detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.config import GroundTruthDetectorConfig, PrecomputedDetectorConfig, WorldDataset
from hoi.datasets import dataset_of, load_vocabulary, open_images
from hoi.detectors import Detector, build_detector
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("person", "sports_ball"), ("hold",), (("hold", "sports_ball"),))
INSTANCES = {
    "images": [
        {"id": 7, "file_name": "a.jpg"},
        {"id": 8, "file_name": "sub/b.jpg"},
        {"id": 9, "file_name": "x/c.jpg"},
        {"id": 10, "file_name": "y/c.jpg"},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 37, "name": "sports ball"}, {"id": 3, "name": "car"}],
}
RESULTS = [
    {"image_id": 7, "category_id": 37, "bbox": [10, 20, 5, 6], "score": 0.4},
    {"image_id": 7, "category_id": 1, "bbox": [0, 0, 30, 40], "score": 0.9},
    {"image_id": 7, "category_id": 1, "bbox": [1, 0, 30, 40], "score": 0.8},
    {"image_id": 7, "category_id": 3, "bbox": [0, 0, 30, 40], "score": 0.9},
    {"image_id": 10, "category_id": 1, "bbox": [0, 0, 3, 4], "score": 0.9},
]
IMAGE = np.zeros((50, 60, 3), np.uint8)


def build(folder: Path, results: Any = RESULTS, instances: Any = INSTANCES) -> Detector:
    for name, plain in (("results.json", results), ("instances.json", instances)):
        text = plain if isinstance(plain, str) else json.dumps(plain)
        (folder / name).write_text(text)
    config = PrecomputedDetectorConfig(
        name="precomputed", results=str(folder / "results.json"), instances=str(folder / "instances.json")
    )
    return build_detector(config, VOCABULARY, "cpu", WorldDataset(name="world"))


def test_boxes_are_edges_with_vocabulary_rows_best_first(tmp_path: Path) -> None:
    (found,) = build(tmp_path).detect([IMAGE], ["a.jpg"])
    assert found.boxes_xyxy.tolist() == [[0, 0, 30, 40], [10, 20, 15, 26]]
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.4])


@pytest.mark.parametrize(
    ("image_id", "num"), [("a.jpg", 2), ("7", 2), ("photos/a.jpg", 2), ("sub/b.jpg", 0), ("b.jpg", 0), ("y/c.jpg", 1)]
)
def test_images_join_by_file_name_bare_name_or_id(tmp_path: Path, image_id: str, num: int) -> None:
    (found,) = build(tmp_path).detect([IMAGE], [image_id])
    assert len(found) == num


@pytest.mark.parametrize("image_id", ["d.jpg", "c.jpg"])
def test_an_unlisted_or_ambiguous_image_is_an_error(tmp_path: Path, image_id: str) -> None:
    with pytest.raises(UserError, match=f"do not list an image .* expected: .*'{image_id}'"):
        build(tmp_path).detect([IMAGE], [image_id])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 7}, r"not understood · where: .*results.json, entry 0"),
        ({**RESULTS[0], "bbox": [1, 2, 3]}, r"not understood"),
        ({**RESULTS[0], "image_id": [7]}, r"not understood"),
        ({**RESULTS[0], "image_id": 99}, r"foreign image_id .* got: 99"),
        ({**RESULTS[0], "category_id": 99}, r"foreign category_id .* got: 99"),
        ({**RESULTS[0], "bbox": [1, 2, -3, 4]}, r"impossible .* width and height >= 0"),
        ({**RESULTS[0], "score": 1.5}, r"impossible"),
        ({**RESULTS[0], "score": float("nan")}, r"impossible"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, results=[entry])


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no JSON · where: .*results.json"):
        build(tmp_path, results="[{")
    with pytest.raises(UserError, match=r"no COCO result file · .* got: dict"):
        build(tmp_path, results={})
    with pytest.raises(UserError, match=r"no COCO instances file · .* got: no 'categories'"):
        build(tmp_path, instances={"images": []})
    missing = PrecomputedDetectorConfig(name="precomputed", results="r.json", instances=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"no such file of COCO instances \(detector.instances\) · where: .*none.json"):
        build_detector(missing, VOCABULARY, "cpu", WorldDataset(name="world"))


def test_provenance_follows_the_boxes_and_not_where_they_lie(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    first, same = build(folders[0]), build(folders[1])
    other = build(folders[2], results=RESULTS[:2])
    assert first.provenance() == same.provenance() != other.provenance()
    assert str(tmp_path) not in json.dumps(first.provenance())


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


def test_jitter_is_reproducible_for_each_image() -> None:
    exact, moved, again = detect([0, 1]), detect([0, 1], jitter=0.05), detect([1], jitter=0.05)
    np.testing.assert_array_equal(moved[1].boxes_xyxy, again[0].boxes_xyxy)
    shift = np.abs(moved[0].boxes_xyxy - exact[0].boxes_xyxy)
    assert shift.max() > 0.1
    sides = np.tile(exact[0].boxes_xyxy[:, 2:] - exact[0].boxes_xyxy[:, :2], 2)
    assert (shift < 0.3 * sides).all()
    assert ((moved[0].boxes_xyxy >= 0) & (moved[0].boxes_xyxy <= 192)).all()
