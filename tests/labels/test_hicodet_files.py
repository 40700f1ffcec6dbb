"""HICO-DET's annotation formats: one content in all of them, by hand; the real test file; wrong files named.

The official MATLAB file and PPDM's JSON are hand-made here after the code that reads them, no published one being at
hand; fredzzhang's test JSON and the image-level labels are the real ones where HOI_CHECK_DATA is set.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from hoi.datasets import hicodet
from hoi.labels.hicodet_files import HicodetAnnotations, read_annotations, read_image_labels
from tests.fakes.hicodet import NAMES, instances_json, ppdm_json, write_json, write_mat
from tests.fakes.pipelines import refused

needs_data = pytest.mark.skipif("HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no annotations")


def as_lists(found: HicodetAnnotations) -> list[Any]:
    columns = (found.image, found.boxes_h, found.boxes_o, found.interaction)
    return [found.file_names, *(column.tolist() for column in columns)]


EXPECTED = [
    tuple(NAMES),
    [0, 0, 2],
    [[0, 5, 19, 29], [9, 2, 31, 40], [1, 1, 20, 32]],
    [[4, 24, 40, 44], [4, 24, 40, 44], [0, 8, 32, 30]],
    [245, 245, 152],
]
"""From the fixtures' 1-based inclusive corners: x1 - 1, y1 - 1, x2, y2."""


def test_every_format_gives_the_same_pixel_edges(tmp_path: Path) -> None:
    files = [write_json(tmp_path / "a.mat", instances_json()), tmp_path / "d.json", tmp_path / "e"]
    files += [write_json(tmp_path / f"ppdm{first}", ppdm_json(first)) for first in (0, 1)]
    write_mat(files[1])
    files[2].write_bytes(gzip.compress(json.dumps(instances_json()).encode()))
    for path in files:
        found = read_annotations(path)
        assert as_lists(found) == EXPECTED
        assert (found.num_pairs, found.num_without_pair, found.dropped) == (3, 1, ())
    for path in files[:2]:
        assert np.asarray(read_annotations(path).size_hw).tolist() == [[48, 64], [64, 48], [32, 32]]
    assert read_annotations(files[3]).size_hw is None
    assert read_annotations(files[1], "train2015").file_names == (NAMES[0],)


def test_ppdm_counts_from_0_in_training_and_1_in_test(tmp_path: Path) -> None:
    records = [ppdm_json(1)[2]]
    found = read_annotations(write_json(tmp_path / "x.json", records))
    assert found.boxes_h[0].tolist() == [1, 1, 20, 32]
    records[0]["file_name"] = "HICO_train2015_00000001.jpg"
    found = read_annotations(write_json(tmp_path / "x.json", records))
    assert found.boxes_h[0].tolist() == [2, 2, 21, 33]


def test_a_ppdm_pair_is_known_by_verb_and_object_too(tmp_path: Path) -> None:
    records = ppdm_json()
    for pair in records[0]["hoi_annotation"]:
        del pair["hoi_category_id"]
    assert as_lists(read_annotations(write_json(tmp_path / "x.json", records))) == EXPECTED
    records[0]["hoi_annotation"][1]["object_id"] = 4
    found = read_annotations(write_json(tmp_path / "x.json", records))
    assert found.interaction.tolist() == [245, 152]
    assert found.dropped == (f"{tmp_path / 'x.json'}, entry 0 ({NAMES[0]}): a pair of boxes 2 and 4, there are 4",)


def change(plain: Any, *keys_and_value: Any) -> Any:
    """A deep copy with one value replaced."""
    *keys, last, value = keys_and_value
    here = plain = copy.deepcopy(plain)
    for key in keys:
        here = here[key]
    here[last] = value
    return plain


CLASSES = {"objects": ["bench", "cup"], "verbs": ["sit_on", "hold"], "correspondence": [[245, 1, 1]]}


@pytest.mark.parametrize(
    ("plain", "what", "where"),
    [
        ({"images": []}, "no HICO-DET annotation file", ""),
        ([], "no HICO-DET annotation file", ""),
        (change(instances_json(), "annotation", 2, "hoi", []), "not understood", f"annotation 2 ({NAMES[2]})"),
        (change(instances_json(), "annotation", 0, "hoi", 0, 600), "impossible", f"image {NAMES[0]}"),
        (change(instances_json(), "annotation", 0, "hoi", 0, 1.5), "not understood", "annotation 0"),
        (change(instances_json(), "annotation", 0, "boxes_h", 0, 2, float("nan")), "impossible", f"image {NAMES[0]}"),
        (change(instances_json(), "annotation", 0, "boxes_o", 0, [1, 2, 3]), "not four numbers", ""),
        (change(instances_json(), "annotation", []), "differ in length", ""),
        (change(instances_json(), "size", -1), "are to be lists", ""),
        (change(instances_json(), "size", [[64, 48, 3], [64, 48, 3], [64, 48]]), "size is not understood", ""),
        (change(instances_json(), "size", [[64], [48], [48]]), "size is not understood", ""),
        (change(instances_json(), "filenames", 1, NAMES[0]), "stands twice", ""),
        (instances_json() | CLASSES, "another order", "correspondence 245"),
        (change(ppdm_json(), 2, "hoi_annotation", 0, "category_id", 88), "not understood", f"entry 2 ({NAMES[2]})"),
        (change(ppdm_json(), 2, "annotations", 1, "category_id", 12), "not understood", f"entry 2 ({NAMES[2]})"),
        (change(ppdm_json(), 2, "annotations", {"a": 1}), "not understood", f"entry 2 ({NAMES[2]})"),
    ],
)
def test_a_wrong_file_is_named_with_its_record(tmp_path: Path, plain: Any, what: str, where: str) -> None:
    path = write_json(tmp_path / "x.json", plain)
    error = refused(read_annotations, path)
    assert what in error.what
    assert str(error.where).startswith(f"{path}, {where}" if where else str(path))


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "this is a folder"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "this file is no JSON"),
        (lambda path: path.write_bytes(gzip.compress(b"[" * 999)[:-12]), "this gzip file is truncated or damaged"),
        (lambda path: path.write_bytes(b"MATLAB 5.0 MAT-file" + b"x" * 200), "this MATLAB file cannot be read"),
        (lambda path: savemat(path, {"bbox_train": np.zeros(0)}, False), "this MATLAB file holds something else"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, write: Callable[[Path], Any], what: str) -> None:
    write(tmp_path / "x")
    error = refused(read_annotations, tmp_path / "x")
    assert (error.what, error.where) == (what, tmp_path / "x")


@needs_data
def test_the_real_test_annotations_hold_the_published_counts() -> None:
    found = read_annotations(Path(os.environ["HOI_CHECK_DATA"]) / "annotations/hicodet_instances_test2015.json")
    assert (len(found.file_names), found.num_pairs, found.num_without_pair) == (9658, 33405, 112)
    assert (np.bincount(found.interaction, minlength=600) == hicodet.test_counts()).all()
    assert found.size_hw is not None
    assert (found.file_names[0], found.size_hw[0].tolist()) == ("HICO_test2015_00000001.jpg", [427, 640])
    assert found.boxes_h[0].tolist() == [319, 305, 359, 349]
    sizes_wh = np.tile(found.size_hw[found.image, ::-1], 2)
    for boxes in (found.boxes_h, found.boxes_o):
        assert boxes.min() == 0
        assert (boxes <= sizes_wh).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


@needs_data
@pytest.mark.parametrize(
    ("half", "num_images", "num_positive"), [("train2015", 38118, 70373), ("test2015", 9658, 20268)]
)
def test_real_image_level_labels_cover_the_boxes(half: Any, num_images: int, num_positive: int) -> None:
    folder = Path(os.environ["HOI_CHECK_DATA"]) / "annotations"
    labels = read_image_labels(folder / "hico_anno.mat", half)
    assert labels.positive.shape == (num_images, 600)
    assert (labels.positive.sum(), len(set(labels.file_names))) == (num_positive, num_images)
    if half == "test2015":
        found = read_annotations(folder / "hicodet_instances_test2015.json")
        row_of = {name: row for row, name in enumerate(labels.file_names)}
        image = np.array([row_of[name] for name in found.file_names])[found.image]
        assert labels.positive[image, found.interaction].all()
