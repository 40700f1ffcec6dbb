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
from hoi.world.measure import contact_sheet, statistics
from hoi.world.raster import Canvas, capsule, disc, polygon, rectangle
from hoi.world.vocabulary import COMBINATIONS, NO_INTERACTION, rows_of

GOLDEN = Path(__file__).with_name("golden_scenes.json")
GOLDEN_SCENES = [
    (seed, split, index)
    for seed, split, indices in (
        (0, "train", (0, 1, 2, 799)),
        (0, "validation", (0, 1, 299)),
        (0, "test", (0, 1, 2, 3, 499)),
        (0, "clip", (0, 12_345)),
        (0, "detector", (0, 7)),
        (1, "test", (0, 1)),
        (-7, "train", (0, 5_000)),
    )
    for index in indices
]


def digest(scene: Scene) -> str:
    """SHA-256 over pixels and annotation."""
    image, found = draw(scene)
    content = hashlib.sha256(image.tobytes())
    content.update(found.boxes_xyxy.astype("<i4").tobytes())
    content.update(found.labels.astype("<i4").tobytes())
    content.update(json.dumps(found.pairs).encode("ascii"))
    return content.hexdigest()


@cache
def scenes_of_test() -> tuple[tuple[Scene, SceneAnnotation], ...]:
    """All test scenes of the committed world with their annotations."""
    scenes = [sample_scene(0, "test", index) for index in range(SPLITS["test"])]
    return tuple((scene, annotate(scene)) for scene in scenes)


def blank() -> Canvas:
    return Canvas(np.zeros((SIZE_PX, 3), np.int64))


def test_interactions_are_at_least_seventy_and_sorted_by_object_then_verb():
    assert len(INTERACTIONS) >= 70
    assert list(INTERACTIONS) == sorted(INTERACTIONS, key=lambda pair: (pair[1], pair[0]))
    assert {name for _, name in INTERACTIONS} == set(OBJECTS[1:])
    assert {verb for verb, _ in INTERACTIONS} == set(VERBS)
    assert all((NO_INTERACTION, name) in INTERACTIONS for name in OBJECTS[1:])


def test_pixels_and_annotations_are_those_of_the_golden_file():
    golden = json.loads(GOLDEN.read_text(encoding="ascii"))
    found = {
        f"{seed}/{split}/{index}": digest(sample_scene(seed, split, index)) for seed, split, index in GOLDEN_SCENES
    }
    assert found == golden


def test_every_interaction_has_five_test_pairs():
    counts = Counter(row for _, found in scenes_of_test() for _, _, rows in found.pairs for row in rows)
    assert {INTERACTIONS[row]: counts[row] for row in range(len(INTERACTIONS)) if counts[row] < 5} == {}


def test_boxes_lie_in_the_image_and_pairs_point_at_a_person_and_an_object():
    for _, found in scenes_of_test():
        boxes = found.boxes_xyxy
        assert boxes.dtype == found.labels.dtype == np.int32
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= SIZE_PX).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert len({(human, target) for human, target, _ in found.pairs}) == len(found.pairs) > 0
        for human, target, rows in found.pairs:
            assert OBJECTS[found.labels[human]] == "person"
            verbs = tuple(sorted((INTERACTIONS[row][0] for row in rows), key=VERBS.index))
            name = OBJECTS[found.labels[target]]
            assert rows == rows_of(name, verbs)
            assert verbs == (NO_INTERACTION,) or verbs in [entry[0] for entry in COMBINATIONS[name]]


def test_pixels_outside_all_boxes_do_not_change_when_everyone_leaves():
    for index in range(10):
        scene = sample_scene(0, "detector", index)
        empty = Scene(scene.seed, scene.split, index, scene.background, (), (), (), (), (), ())
        inside = np.zeros((SIZE_PX, SIZE_PX), bool)
        image, found = draw(scene)
        if scene.lines or len(found.labels) < len(scene.people) + len(scene.objects):
            continue
        for x1, y1, x2, y2 in found.boxes_xyxy:
            inside[y1:y2, x1:x2] = True
        changed = (image != render(empty)).any(axis=2)
        assert not (changed & ~inside).any()
        assert (changed & inside).any()


def test_a_box_is_tight_around_the_visible_part():
    canvas = blank()
    canvas.draw(rectangle(20, 40, 59, 79, (255, 0, 0)), 0)
    canvas.draw(rectangle(40, 0, 100, 100, (0, 255, 0)), 1)
    owners = canvas.owners()
    assert np.flatnonzero((owners == 0).any(axis=0)).tolist() == list(range(20, 40))
    assert np.flatnonzero((owners == 0).any(axis=1)).tolist() == list(range(40, 80))
    assert canvas.num_cells_drawn(0) == 40 * 40


def test_shapes_cover_the_cells_worked_out_by_hand():
    for shape, cells in (
        (disc(10, 10, 1, (9, 9, 9)), {(10, 10), (9, 10), (11, 10), (10, 9), (10, 11)}),
        (capsule((3, 5), (6, 5), 0, (9, 9, 9)), {(3, 5), (4, 5), (5, 5), (6, 5)}),
        (polygon(((0, 0), (4, 0), (0, 4)), (9, 9, 9)), {(x, y) for x in range(5) for y in range(5) if x + y <= 4}),
        (rectangle(-5, -5, 0, 0, (9, 9, 9)), {(0, 0)}),
        (disc(-50, -50, 3, (9, 9, 9)), set()),
    ):
        canvas = blank()
        canvas.draw(shape, 0)
        y, x = np.nonzero(canvas.owners() == 0)
        assert set(zip(x.tolist(), y.tolist(), strict=True)) == cells


def test_draw_is_render_and_annotate_at_once():
    scene = sample_scene(3, "clip", 11)
    image, found = draw(scene)
    again = annotate(scene)
    assert image.shape == (SIZE_PX, SIZE_PX, 3)
    assert image.dtype == np.uint8
    assert (image == render(scene)).all()
    assert (found.boxes_xyxy == again.boxes_xyxy).all()
    assert (found.labels == again.labels).all()
    assert found.pairs == again.pairs


def test_a_scene_depends_on_its_own_arguments_only():
    alone = sample_scene(0, "test", 300)
    for index in range(20):
        sample_scene(0, "train", index)
    assert sample_scene(0, "test", 300) == alone


def test_seeds_splits_and_indices_differ():
    keys = [(s, split, i) for s in (0, 1) for split in (*SPLITS, "clip", "detector") for i in range(3)]
    assert len({render(sample_scene(*key)).tobytes() for key in keys}) == len(keys)


def test_captions_repeat_by_variant_and_are_lower_case_ascii():
    for index in range(30):
        scene = sample_scene(0, "clip", index)
        variants = [caption(scene, variant) for variant in range(12)]
        assert variants == [caption(scene, variant) for variant in range(12)]
        assert len(set(variants)) > 3
        for variant in range(12):
            text, (x0, y0, x1, y1) = caption_crop(scene, variant)
            assert (text, (x0, y0, x1, y1)) == caption_crop(scene, variant)
            assert 0 <= x0 < x1 <= SIZE_PX
            assert 0 <= y0 < y1 <= SIZE_PX
            for words in (text, variants[variant]):
                assert words.isascii()
                assert words == words.lower().strip()
                assert "_" not in words
                assert "  " not in words


def test_statistics_are_near_those_of_hico_det():
    found = statistics([annotation for _, annotation in scenes_of_test()])
    assert 1.35 <= float(found["interactions per pair"]) <= 1.6
    assert 1.5 <= float(found["pairs per image"]) <= 2.4
    assert 55 <= int(found["images of 1 / 2 / 3 / 4 / 5+ pairs, %"].split(" / ")[0]) <= 68
    assert 9 <= int(found["no_interaction among labels, %"]) <= 17


def test_a_contact_sheet_holds_its_scenes_row_by_row():
    sheet = contact_sheet(0, "test", 5)
    columns = sheet.shape[1] // SIZE_PX
    assert columns * (sheet.shape[0] // SIZE_PX) >= 5
    assert (sheet[:SIZE_PX, SIZE_PX : 2 * SIZE_PX] == render(sample_scene(0, "test", 1))).all()


@pytest.mark.parametrize(
    ("split", "index", "message"), [("dev", 0, "unknown split 'dev'"), ("test", -1, "0 or more, got -1")]
)
def test_a_wrong_split_or_index_is_named(split: str, index: int, message: str):
    with pytest.raises(ValueError, match=message):
        sample_scene(0, split, index)
