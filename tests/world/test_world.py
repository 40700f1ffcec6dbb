"""The embedded world: frozen pixels, boxes that fit them, and the promises of its splits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hoi.world import (
    INTERACTIONS,
    OBJECTS,
    SIZE_PX,
    SPLITS,
    VERBS,
    Scene,
    SceneAnnotation,
    annotate,
    caption,
    caption_crop,
    draw,
    render,
    sample_scene,
)
from hoi.world.models.measure import contact_sheet, statistics
from hoi.world.raster import Canvas, Shape, capsule, disc, polygon, rectangle
from hoi.world.vocabulary import COMBINATIONS, NO_INTERACTION, rows_of

GOLDEN = json.loads(Path(__file__).with_name("golden_scenes.json").read_text(encoding="ascii"))
COLOUR = (9, 9, 9)


@cache
def annotated(num_scenes: int) -> list[SceneAnnotation]:
    return [annotate(sample_scene(0, "test", index)) for index in range(num_scenes)]


def blank() -> Canvas:
    return Canvas(np.zeros((SIZE_PX, 3), np.int64))


def test_interactions_are_sorted_by_object_then_verb() -> None:
    assert len(INTERACTIONS) >= 70
    assert list(INTERACTIONS) == sorted(INTERACTIONS, key=lambda pair: (pair[1], pair[0]))
    assert {name for _, name in INTERACTIONS} == set(OBJECTS[1:])
    assert {verb for verb, _ in INTERACTIONS} == set(VERBS)
    assert all((NO_INTERACTION, name) in INTERACTIONS for name in OBJECTS[1:])


@pytest.mark.parametrize("key", GOLDEN)
def test_pixels_and_annotation_are_the_golden_ones(key: str) -> None:
    seed, split, index = key.split("/")
    scene = sample_scene(int(seed), split, int(index))
    image, annotation = draw(scene)
    assert (image.shape, image.dtype) == ((SIZE_PX, SIZE_PX, 3), np.uint8)
    assert (image == render(scene)).all()
    assert (annotation.boxes_xyxy == annotate(scene).boxes_xyxy).all()
    content = hashlib.sha256(image.tobytes())
    content.update(annotation.boxes_xyxy.astype("<i4").tobytes())
    content.update(annotation.labels.astype("<i4").tobytes())
    content.update(json.dumps(annotation.pairs).encode("ascii"))
    assert content.hexdigest() == GOLDEN[key]


@pytest.mark.slow
def test_every_interaction_has_five_test_pairs() -> None:
    counts = Counter(row for scene in annotated(SPLITS["test"]) for _, _, rows in scene.pairs for row in rows)
    assert {INTERACTIONS[row]: counts[row] for row in range(len(INTERACTIONS)) if counts[row] < 5} == {}


@pytest.mark.slow
def test_statistics_are_near_those_of_hico_det() -> None:
    values = statistics(annotated(SPLITS["test"]))
    assert 1.35 <= float(values["interactions per pair"]) <= 1.6
    assert 1.5 <= float(values["pairs per image"]) <= 2.4
    assert 55 <= int(values["images of 1 / 2 / 3 / 4 / 5+ pairs, %"].split(" / ")[0]) <= 68
    assert 9 <= int(values["no_interaction among labels, %"]) <= 17


def test_statistics_by_hand() -> None:
    boxes = np.array([[0, 0, 96, 192], [48, 0, 144, 192], [150, 0, 192, 48]], np.int32)
    labels = np.array([0, 1, 2], np.int32)
    values = statistics([SceneAnnotation(boxes, labels, [(0, 1, (0, 1)), (0, 2, (2,))])])
    assert values["pairs per image"] == "2.00"
    assert values["pairs of 1 / 2 / 3 / 4+ interactions, %"] == "50 / 50 / 0 / 0"
    assert (values["humans in pairs per image"], values["objects in pairs per image"]) == ("1.00", "2.00")
    assert values["pairs with overlapping boxes, %"] == "50"


def test_boxes_are_in_the_image_and_pairs_are_valid() -> None:
    for scene in annotated(80):
        boxes = scene.boxes_xyxy
        assert boxes.dtype == scene.labels.dtype == np.int32
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= SIZE_PX).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert len({(human, target) for human, target, _ in scene.pairs}) == len(scene.pairs) > 0
        for human, target, rows in scene.pairs:
            assert OBJECTS[scene.labels[human]] == "person"
            verbs = tuple(sorted((INTERACTIONS[row][0] for row in rows), key=VERBS.index))
            name = OBJECTS[scene.labels[target]]
            assert rows == rows_of(name, verbs)
            assert verbs == (NO_INTERACTION,) or verbs in [entry[0] for entry in COMBINATIONS[name]]


def test_only_pixels_inside_boxes_show_people_and_objects() -> None:
    for index in range(10):
        scene = sample_scene(0, "detector", index)
        empty = Scene(scene.seed, scene.split, index, scene.background, (), (), (), (), (), ())
        inside = np.zeros((SIZE_PX, SIZE_PX), bool)
        image, annotation = draw(scene)
        if scene.lines or len(annotation.labels) < len(scene.people) + len(scene.objects):
            continue
        for x1, y1, x2, y2 in annotation.boxes_xyxy:
            inside[y1:y2, x1:x2] = True
        changed = (image != render(empty)).any(axis=2)
        assert not (changed & ~inside).any()
        assert (changed & inside).any()


def test_owners_are_the_visible_shapes() -> None:
    canvas = blank()
    canvas.draw(rectangle(20, 40, 59, 79, (255, 0, 0)), 0)
    canvas.draw(rectangle(40, 0, 100, 100, (0, 255, 0)), 1)
    owners = canvas.owners()
    assert np.flatnonzero((owners == 0).any(axis=0)).tolist() == list(range(20, 40))
    assert np.flatnonzero((owners == 0).any(axis=1)).tolist() == list(range(40, 80))
    assert canvas.num_cells_drawn(0) == 40 * 40


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        (disc(10, 10, 1, COLOUR), {(10, 10), (9, 10), (11, 10), (10, 9), (10, 11)}),
        (capsule((3, 5), (6, 5), 0, COLOUR), {(3, 5), (4, 5), (5, 5), (6, 5)}),
        (polygon(((0, 0), (4, 0), (0, 4)), COLOUR), {(x, y) for x in range(5) for y in range(5) if x + y <= 4}),
        (rectangle(-5, -5, 0, 0, COLOUR), {(0, 0)}),
        (disc(-50, -50, 3, COLOUR), set()),
    ],
    ids=["disc", "capsule", "polygon", "at the corner", "outside"],
)
def test_a_shape_covers_the_cells_worked_out_by_hand(shape: Shape, cells: set[tuple[int, int]]) -> None:
    canvas = blank()
    canvas.draw(shape, 0)
    y, x = np.nonzero(canvas.owners() == 0)
    assert set(zip(x.tolist(), y.tolist(), strict=True)) == cells


def test_a_scene_depends_on_its_arguments_alone() -> None:
    alone = sample_scene(0, "test", 300)
    for index in range(20):
        sample_scene(0, "train", index)
    assert sample_scene(0, "test", 300) == alone
    keys = [(s, split, i) for s in (0, 1) for split in (*SPLITS, "clip", "detector") for i in range(2)]
    assert len({render(sample_scene(*key)).tobytes() for key in keys}) == len(keys)


def test_captions_repeat_and_are_lower_case_ascii() -> None:
    for index in range(20):
        scene = sample_scene(0, "clip", index)
        assert len({caption(scene, variant) for variant in range(12)}) > 3
        for variant in range(12):
            text, (x0, y0, x1, y1) = caption_crop(scene, variant)
            assert (text, (x0, y0, x1, y1)) == caption_crop(scene, variant)
            assert 0 <= x0 < x1 <= SIZE_PX
            assert 0 <= y0 < y1 <= SIZE_PX
            whole = caption(scene, variant)
            assert whole == caption(scene, variant)
            for words in (text, whole):
                assert words.isascii()
                assert words == " ".join(words.lower().replace("_", " ").split())


def test_a_contact_sheet_shows_scenes_row_by_row() -> None:
    sheet = contact_sheet(0, "test", 5)
    columns = sheet.shape[1] // SIZE_PX
    assert columns * (sheet.shape[0] // SIZE_PX) >= 5
    assert (sheet[:SIZE_PX, SIZE_PX : 2 * SIZE_PX] == render(sample_scene(0, "test", 1))).all()


@pytest.mark.parametrize(
    ("split", "index", "message"), [("dev", 0, "unknown split 'dev'"), ("test", -1, "0 or more, got -1")]
)
def test_a_wrong_split_or_index_is_named(split: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_scene(0, split, index)
