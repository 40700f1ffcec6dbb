"""COCO result files, and annotated boxes of the world, as detectors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.config import (
    DatasetSettings,
    FolderDataset,
    GroundTruthDetectorConfig,
    PrecomputedDetectorConfig,
    WorldDataset,
)
from hoi.datasets import dataset_of, load_vocabulary, open_images
from hoi.datasets.images import list_images
from hoi.detectors import build_detector
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

VOCABULARY = Vocabulary(("person", "sports_ball"), ("hold",), (("hold", "sports_ball"),))
INSTANCES = {
    "images": [
        {"id": number, "file_name": name}
        for number, name in enumerate(("a.jpg", "sub/b.jpg", "x/c.jpg", "y/c.jpg"), start=7)
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


WORLD = WorldDataset(name="world", splits={"test": 3})


def build(
    folder: Path,
    results: Any = RESULTS,
    instances: Any = INSTANCES,
    dataset: DatasetSettings = WORLD,
) -> Any:
    for name, plain in (("results.json", results), ("instances.json", instances)):
        text = plain if isinstance(plain, str) else json.dumps(plain)
        (folder / name).write_text(text)
    config = PrecomputedDetectorConfig(
        name="precomputed", results=str(folder / "results.json"), instances=str(folder / "instances.json")
    )
    return build_detector(config, VOCABULARY, "cpu", dataset)


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
    error = refused(build(tmp_path).detect, [IMAGE], [image_id])
    assert "do not list an image" in error.what
    assert f"'{image_id}'" in str(error.expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"score": None}, "not understood"),
        ({"bbox": [1, 2, 3]}, "not understood"),
        ({"image_id": [7]}, "not understood"),
        ({"image_id": 99}, "foreign image_id"),
        ({"category_id": 99}, "foreign category_id"),
        ({"bbox": [1, 2, -3, 4]}, "impossible"),
        ({"score": 1.5}, "impossible"),
        ({"score": float("nan")}, "impossible"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict, what: str) -> None:
    error = refused(build, tmp_path, results=[RESULTS[1], {**RESULTS[0], **change}])
    assert what in error.what
    assert str(error.where).endswith("results.json, entry 1")


@pytest.mark.parametrize(
    ("table", "entry", "what"),
    [
        ("images", {"id": 7, "file_name": "new.jpg"}, "an image id"),
        ("images", {"id": 99, "file_name": "sub\\b.jpg"}, "a file name"),
        ("categories", {"id": 37, "name": "boat"}, "a category id"),
    ],
)
def test_repeats_in_coco_tables_name_both_entries(tmp_path: Path, table: str, entry: dict, what: str) -> None:
    error = refused(build, tmp_path, instances={**INSTANCES, table: [*INSTANCES[table], entry]})
    assert error.what == f"{what} is there twice"
    assert re.search(rf"instances.json, {table} [01] and {len(INSTANCES[table])}$", str(error.where))


def test_ids_are_compared_with_their_types(tmp_path: Path) -> None:
    for value in ("7", True):
        error = refused(build, tmp_path, results=[{**RESULTS[0], "image_id": value}])
        assert (error.what, error.got) == ("a detection has a foreign image_id", json.dumps(value))
        assert "(such as 7, 8, 9)" in str(error.expected)
    text = json.dumps({**INSTANCES, "images": [{"id": float("inf"), "file_name": "a.jpg"}]})
    assert str(refused(build, tmp_path, instances=text).got) == "Infinity"


def sized(width: int, height: int) -> dict:
    return {**INSTANCES, "images": [{**entry, "width": width, "height": height} for entry in INSTANCES["images"]]}


@pytest.mark.parametrize(("width", "height", "cause"), [(50, 60, "turned by EXIF"), (120, 100, "a resized copy")])
def test_sizes_are_those_of_the_upright_image(tmp_path: Path, width: int, height: int, cause: str) -> None:
    assert len(build(tmp_path, instances=sized(60, 50)).detect([IMAGE], ["a.jpg"])[0]) == 2
    error = refused(build(tmp_path, instances=sized(width, height)).detect, [IMAGE], ["a.jpg"])
    assert cause in error.what
    assert (error.expected, error.got) == (
        "width 60 and height 50, as of the upright image a.jpg",
        f"width {width} and height {height}",
    )


@pytest.mark.parametrize(
    ("boxes", "cause"),
    [
        ([[0.1, 0.2, 0.3, 0.5], [0, 0, 1, 1]], "fractions of the image"),
        ([[20, 30, 100, 20], [90, 80, 30, 20]], "a larger copy of the images"),
        ([[20, 10, 55, 45], [25, 20, 50, 50]], "[x1, y1, x2, y2] read as"),
    ],
)
def test_boxes_of_another_frame_are_refused(tmp_path: Path, boxes: list, cause: str) -> None:
    results = [{**RESULTS[0], "bbox": box} for box in boxes]
    for instances in (INSTANCES, sized(60, 50)):
        error = refused(lambda given: build(tmp_path, results, given).detect([IMAGE], ["a.jpg"]), instances)
        assert cause in error.what
        assert str(error.where).endswith("results.json, image a.jpg")
        assert str(error.got).startswith("[")


def test_one_odd_image_of_a_sound_file_is_not_refused(tmp_path: Path) -> None:
    odd = [{**RESULTS[1], "bbox": [x, 0, 80, 40]} for x in (0, 1)]
    sound = [{**RESULTS[1], "image_id": 8, "bbox": [x, 0, 30, 40]} for x in range(8)]
    assert len(build(tmp_path, [*odd, *sound], sized(60, 50)).detect([IMAGE], ["a.jpg"])[0]) == 1
    assert "far beyond their image" in refused(build, tmp_path, odd, sized(60, 50)).what


def photos(folder: Path, *names: str) -> FolderDataset:
    for name in names:
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).touch()
    return FolderDataset(name="folder", images=str(folder / "photos"), vocabulary="phrases.txt")


def test_a_bare_name_joins_only_where_each_side_has_it_once(tmp_path: Path) -> None:
    dataset = photos(tmp_path, "0036.jpg", "sub dir/0036.jpg", "deep/b.jpg", "A.jpg")
    images = [{"id": n, "file_name": name} for n, name in enumerate(("0036.jpg", "x\\b.jpg", "a.jpg"))]
    detector = build(tmp_path, [], {**INSTANCES, "images": images}, dataset)
    assert detector.lists("0036.jpg")
    assert detector.lists("deep/b.jpg")
    assert not detector.lists("sub dir/0036.jpg")
    assert not detector.lists("A.jpg")
    bare, left = detector.notices(list_images(dataset.images))
    assert bare.startswith("1 images")
    assert "joined by their bare names, as 'x\\b.jpg'" in bare
    assert left.startswith("1 images")
    assert left.endswith("as 'a.jpg'")
    assert refused(detector.notices, ["A.jpg"]).what.startswith("no image of the data set is listed")


def test_two_unknown_images_never_share_one_listed_one(tmp_path: Path) -> None:
    detector = build(tmp_path)
    detector.detect([IMAGE], ["one/b.jpg"])
    error = refused(detector.detect, [IMAGE], ["two/b.jpg"])
    assert (error.expected, error.got) == ("one image 'sub/b.jpg'", "one/b.jpg and two/b.jpg")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    assert refused(build, tmp_path, results="[{").what == "this file is no JSON"
    assert refused(build, tmp_path, results={}).what == "this is no COCO result file"
    error = refused(build, tmp_path, instances={"images": []})
    assert (error.what, error.got) == ("this is no COCO instances file", "no 'categories'")
    missing = PrecomputedDetectorConfig(name="precomputed", results="r.json", instances=str(tmp_path / "none.json"))
    error = refused(build_detector, missing, VOCABULARY, "cpu", WorldDataset(name="world"))
    assert (error.what, error.expected) == ("there is no such file", "a file of COCO instances (detector.instances)")


def test_provenance_follows_the_boxes_and_not_where_they_lie(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    first, same = build(folders[0]), build(folders[1])
    other = build(folders[2], results=RESULTS[:2])
    assert first.provenance() == same.provenance() != other.provenance()
    assert str(tmp_path) not in json.dumps(first.provenance())


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
