"""Pairs of detections, and the extractor: from images to records."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hoi.extraction
from hoi.boxes import union_boxes
from hoi.config import PairsConfig, parse_config
from hoi.crops import crop_windows, cut_crop
from hoi.extraction import Extractor, pair_detections
from hoi.provenance import differing_keys
from hoi.records import Detections, ImageSignals
from hoi.teachers import build_teacher
from hoi.vocabulary import Vocabulary
from tests.fakes.models import TOWERS, teacher_config, write_clip

PERSON, DOG = 0, 1


def detections(*found: tuple[int, float]) -> Detections:
    labels, scores = zip(*found, strict=True) if found else ((), ())
    boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (len(found), 1))
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64))


PEOPLE_AND_DOG = ((PERSON, 0.9), (DOG, 0.8), (PERSON, 0.7))
MANY = ((PERSON, 0.9), (PERSON, 0.8), (DOG, 0.7), (PERSON, 0.6), (DOG, 0.5))


@pytest.mark.parametrize(
    ("found", "with_itself", "settings", "expected"),
    [
        (PEOPLE_AND_DOG, False, {}, [[0, 1], [0, 2], [2, 0], [2, 1]]),
        (PEOPLE_AND_DOG, True, {}, [[0, 0], [0, 1], [0, 2], [2, 0], [2, 1], [2, 2]]),
        (((PERSON, 0.9),), True, {}, [[0, 0]]),
        *((alone, False, {}, []) for alone in (((PERSON, 0.9),), ((DOG, 0.9),), ())),
        (((PERSON, 0.9), (DOG, 0.5), (DOG, 0.25), (PERSON, 0.1)), False, {"min_score": 0.25}, [[0, 1], [0, 2]]),
        (MANY, False, {"max_humans": 2, "max_objects": 1}, [[0, 1], [0, 2], [1, 0], [1, 2]]),
    ],
)
def test_humans_are_paired_with_the_others_within_the_limits(
    found: Any, with_itself: bool, settings: dict[str, Any], expected: list[list[int]]
) -> None:
    result = pair_detections(detections(*found), PERSON, PairsConfig(**settings), with_itself=with_itself)
    assert (result.tolist(), result.shape, result.dtype) == (expected, (len(expected), 2), np.int32)


def test_more_pairs_than_the_bound_are_refused() -> None:
    assert PairsConfig(max_humans=200, max_objects=300).max_humans == 200
    with pytest.raises(ValueError, match="above 100000 pairs of one image"):
        PairsConfig(max_humans=300, max_objects=300)


VOCABULARY = Vocabulary(
    ("person", "sports ball", "dog"),
    ("hold", "kick", "no_interaction"),
    (("hold", "sports ball"), ("kick", "sports ball"), ("no_interaction", "dog")),
)
SIZES_HW = {"a": (90, 140), "b": (200, 120), "c": (64, 64), "d": (50, 80), "e": (33, 47)}
DETECTIONS = {
    "a": [(1, [10, 10, 40, 70], 0.9), (1, [60, 12, 38, 60], 0.8), (37, [45, 50, 15, 15], 0.7), (1, [0, 0, 9, 9], 0.1)],
    "b": [(1, [5, 5, 80, 190], 0.9), (18, [60, 150, 55, 45], 0.6)],
    "c": [(37, [3, 3, 10, 10], 0.9)],
    "d": [(1, [20, 20, 1, 1], 0.9), (37, [79, 49, 1, 1], 0.8), (18, [30, 30, 0, 0], 0.8), (37, [80, 50, 0, 0], 0.7)],
    "e": [],
}
"""Image c has no person, d boxes of a pixel and of none, e nothing."""
CATEGORIES = {1: "person", 37: "sports_ball", 18: "dog", 3: "car"}


def images(names: str = "abcde") -> tuple[list[str], list[np.ndarray]]:
    made = []
    for name in names:
        rng = np.random.default_rng(ord(name))
        height, width = SIZES_HW[name]
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        made.append(np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)))
    return list(names), made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extraction")
    instances = {
        "images": [{"id": ord(name), "file_name": name} for name in SIZES_HW],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }
    results = [
        {"image_id": ord(name), "category_id": category, "bbox": box, "score": score}
        for name, found in DETECTIONS.items()
        for category, box, score in found
    ]
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "results.json").write_text(json.dumps(results))
    write_clip(folder / "resnet")
    return folder


def build(folder: Path, pairs: dict[str, Any] | None = None, **teacher: Any) -> Extractor:
    usual = {"model": f"local-dir:{folder / 'resnet'}", "pretrained": "random", "crop": {"margins": [1.15, 1.0]}}
    files = {name: str(folder / f"{name}.json") for name in ("results", "instances")}
    plain = {
        "name": "test",
        "output": str(folder),
        "dataset": {"name": "world"},
        "detector": {"name": "precomputed", **files},
        "pairs": pairs or {},
        "teacher": {**usual, "batch_size": 8, **teacher},
        "cache": {"folder": str(folder)},
        "students": {},
    }
    return Extractor(parse_config(plain, "test"), VOCABULARY, "cpu")


@pytest.fixture(scope="module")
def extractor(folder: Path) -> Extractor:
    return build(folder, spatial_map=True, regions=["map", "crop"])


@pytest.fixture(scope="module")
def records(extractor: Extractor) -> dict[str, ImageSignals]:
    return {record.image_id: record for record in extractor.extract(*images())}


ARRAYS = ("image_embedding", "union_embedding", "union_feature", "detection_feature", "image_similarity")


def test_every_image_has_a_record_of_the_announced_shapes(
    extractor: Extractor, records: dict[str, ImageSignals]
) -> None:
    num_k, width, num_margins, num_levels = (extractor.axes[letter] for letter in "KDML")
    assert (num_k, width, num_margins, num_levels) == (3, 16, 2, 3)
    assert {name: len(r.detections) for name, r in records.items()} == {"a": 4, "b": 2, "c": 1, "d": 4, "e": 0}
    assert {name: len(r.pairs_ho) for name, r in records.items()} == {"a": 4, "b": 1, "c": 0, "d": 3, "e": 0}
    for name, record in records.items():
        num_pairs, num = len(record.pairs_ho), len(record.detections)
        assert tuple(record.size_hw) == SIZES_HW[name]
        shapes = {
            "image_embedding": (width,),
            "image_similarity": (num_k,),
            "union_embedding": (num_pairs, num_margins, width),
            "union_similarity": (num_pairs, num_margins, num_k),
            "detection_feature": (num, num_levels, width),
            "union_feature": (num_pairs, num_levels, width),
            "spatial_map": tuple(extractor.axes[letter] for letter in "CHW"),
        }
        assert {name: getattr(record, name).shape for name in shapes} == shapes
        assert {getattr(record, name).dtype for name in shapes} == {np.dtype(np.float16)}


def norms(array: np.ndarray) -> np.ndarray:
    return np.linalg.norm(array.astype(np.float32), axis=-1)


def test_embeddings_have_unit_norm_even_of_empty_boxes(records: dict[str, ImageSignals]) -> None:
    num_zero = 0
    for record in records.values():
        for array in (record.image_embedding, record.union_embedding, record.union_feature):
            np.testing.assert_allclose(norms(array), 1, atol=2e-3)
        of_map, of_crops = norms(record.detection_feature[:, :2]), norms(record.detection_feature[:, 2])
        is_paired = np.isin(np.arange(len(record.detections)), record.pairs_ho)
        np.testing.assert_allclose(of_map, 1, atol=2e-3)
        np.testing.assert_allclose(of_crops[is_paired], 1, atol=2e-3)
        assert not record.detection_feature[~is_paired, 2].any()
        num_zero += (~is_paired).sum()
    assert num_zero == 2  # a person below the pairs' threshold, and a ball without a person


def test_a_detection_left_out_of_the_pairs_moves_no_others_crop(folder: Path, records: dict[str, ImageSignals]) -> None:
    [record] = build(folder, pairs={"max_humans": 1}, regions=["crop"]).extract(*images("a"))
    assert record.pairs_ho.tolist() == [[0, 2]]
    expected = records["a"].detection_feature[[0, 2], 2]
    np.testing.assert_allclose(record.detection_feature[[0, 2], 0], expected, atol=5e-4)
    assert not record.detection_feature[[1, 3]].any()


def test_levels_are_the_same_with_the_others_and_without(folder: Path, records: dict[str, ImageSignals]) -> None:
    """Maps are the first levels of features, crops the last."""
    maps = build(folder, regions=["map"])
    assert not {"C", "H", "W"} & set(maps.axes)
    of_maps, of_crops = maps.extract(*images()), build(folder, regions=["crop"]).extract(*images())
    for of_map, of_crop, both in zip(of_maps, of_crops, records.values(), strict=True):
        assert of_map.spatial_map is None
        assert of_map.detection_feature.tobytes() == both.detection_feature[:, :2].tobytes()
        assert of_map.union_feature.tobytes() == both.union_feature[:, :2].tobytes()
        assert both.union_feature[:, 2].tobytes() == both.union_embedding[:, 0].tobytes()
        assert of_crop.union_feature.tobytes() == of_crop.union_embedding[:, :1].tobytes()
        np.testing.assert_allclose(of_crop.detection_feature, both.detection_feature[:, 2:], atol=5e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_any_tower_gives_its_map_levels_and_one_of_crops(folder: Path, kind: str) -> None:
    write_clip(folder / kind, kind)
    size = 2 * TOWERS[kind]["image_size"]
    extractor = build(folder, model=f"local-dir:{folder / kind}", image_size_px=size, regions=["map", "crop"])
    [record] = extractor.extract(*images("a"))
    levels = 2 if kind == "resnet" else 1
    width = extractor.axes["D"]
    assert extractor.axes["L"] == levels + 1
    assert record.detection_feature.shape == (4, levels + 1, width)
    assert record.union_feature.shape == (4, levels + 1, width)
    assert record.union_feature[:, -1].tobytes() == record.union_embedding[:, 0].tobytes()
    np.testing.assert_allclose(norms(record.detection_feature[:3]), 1, atol=2e-3)


def test_detections_and_pairs_have_the_embeddings_of_their_crops(
    folder: Path, records: dict[str, ImageSignals]
) -> None:
    """Each crop cut and encoded on its own: sharing equal crops and filling batches changes nothing."""
    teacher = build_teacher(teacher_config(folder), "cpu")
    for name, image in zip(*images(), strict=True):
        record = records[name]
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        boxes, paired = record.detections.boxes_xyxy, np.unique(record.pairs_ho)
        unions = union_boxes(boxes, record.pairs_ho)
        for found, of_boxes, margin in (
            (record.detection_feature[paired, 2], boxes[paired], 1.15),
            (record.union_embedding[:, 0], unions, 1.15),
            (record.union_embedding[:, 1], unions, 1.0),
        ):
            windows = crop_windows(of_boxes, margin, "square", SIZES_HW[name], "shortest")
            for embedding, window in zip(found, windows, strict=True):
                crop = cut_crop(pixels, window, 64, teacher.crop_style)
                np.testing.assert_allclose(embedding, teacher.encode_crops(crop[None])[0].numpy(), atol=5e-4)


def test_swapping_human_and_object_changes_no_union(records: dict[str, ImageSignals]) -> None:
    record = records["a"]
    rows = [record.pairs_ho.tolist().index(pair) for pair in ([0, 1], [1, 0])]
    for array in (record.union_embedding, record.union_feature):
        assert array[rows[0]].tobytes() == array[rows[1]].tobytes()


def test_similarities_are_those_of_the_stored_embeddings(
    extractor: Extractor, records: dict[str, ImageSignals]
) -> None:
    bank = extractor.text_bank.text_embedding
    for record in records.values():
        for of in ("union", "image"):
            expected = getattr(record, f"{of}_embedding").astype(np.float32) @ bank.T
            np.testing.assert_allclose(getattr(record, f"{of}_similarity"), expected, atol=5e-4)


@pytest.mark.parametrize("names", ["a", "edcba", "bd"])
def test_a_record_does_not_depend_on_its_neighbours(
    extractor: Extractor, records: dict[str, ImageSignals], names: str
) -> None:
    found = extractor.extract(*images(names))
    assert [record.image_id for record in found] == list(names)
    for record in found:
        expected = records[record.image_id]
        np.testing.assert_array_equal(record.pairs_ho, expected.pairs_ho)
        for array in ARRAYS:
            # One step of float16 below 1: float32 results differ by less than 1e-5 and may round to either side.
            np.testing.assert_allclose(getattr(record, array), getattr(expected, array), atol=5e-4)


@pytest.mark.parametrize("limits", [{}, {"CHUNK_IMAGES": 2}, {"CHUNK_IMAGES": 1}, {"MAX_CHUNK_BYTES": 60_000}])
def test_the_same_call_gives_the_same_bytes_in_any_parts(
    extractor: Extractor, records: dict[str, ImageSignals], limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(hoi.extraction, name, value)
    found = extractor.extract(*images())
    assert [record.image_id for record in found] == list(records)
    for record in found:
        for array in (*ARRAYS, "union_similarity", "spatial_map", "pairs_ho"):
            assert getattr(record, array).tobytes() == getattr(records[record.image_id], array).tobytes()


def test_images_are_asked_for_a_few_at_a_time_and_let_go(extractor: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoi.extraction, "CHUNK_IMAGES", 2)
    given: list[weakref.ref[np.ndarray]] = []
    held = []

    def decoded() -> Iterator[tuple[str, np.ndarray]]:
        for name in "abcde" * 2:
            held.append(sum(image() is not None for image in given))
            _, [image] = images(name)
            image = image.copy()
            given.append(weakref.ref(image))
            yield name, image
            del image

    assert len(extractor.extract_stream(decoded())) == 10
    assert max(held) <= 4


def test_nearly_equal_crops_are_encoded_once_if_asked(folder: Path) -> None:
    merge = {"crop": {"margins": [1.15, 1.0], "merge_px": 8.0}}
    merged, exact = (build(folder, regions=["crop"], **keys) for keys in (merge, {}))
    assert differing_keys(exact.provenance(), merged.provenance()) == [
        "teacher.crop_merge_px (cache: absent, now: 8.0)"
    ]
    # Image a has three unions at two margins; those at 1.15 are up to 7 of 64 pixels beyond those at 1.
    of_merged, of_exact = (each.extract(*images("a"))[0].union_embedding.reshape(-1, 16) for each in (merged, exact))
    assert len(np.unique(of_merged, axis=0)) < len(np.unique(of_exact, axis=0))


def test_no_image_gives_no_record(extractor: Extractor) -> None:
    assert extractor.extract([], []) == []


def test_provenance_is_plain_and_separates_versions(extractor: Extractor, folder: Path) -> None:
    provenance = json.loads(json.dumps(extractor.provenance()))
    assert set(provenance) == {"detector", "pairs", "teacher", "device", "num_threads", "versions"}
    assert str(folder) not in json.dumps(provenance)
    assert provenance["teacher"]["levels"] == ["c4", "c5", "crop"]
    assert provenance["teacher"]["crop_margins"] == [1.15, 1.0]
    assert set(provenance["versions"]) == {"torch", "torchvision", "open_clip"}
