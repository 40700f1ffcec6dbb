"""A folder of odd image files, its splits, its vocabulary and its annotations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hoi.config import FolderDataset
from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.folder import split_of
from hoi.datasets.images import list_images
from hoi.labels import label_notices, load_labels, rare_mask
from tests.fakes.pipelines import refused


@pytest.fixture
def folder(tmp_path: Path) -> FolderDataset:
    images = tmp_path / "images" / "deep er"
    images.mkdir(parents=True)
    for k in range(40):
        Image.new("RGB", (8, 6), (k, 0, 0)).save(images / f"{k:02d}.png")
    (tmp_path / "vocabulary.yaml").write_text(
        "- {verb: ride, object: horse}\n- {verb: hold, object: cup, phrase: a person with a cup}\n"
    )
    return FolderDataset(name="folder", images=str(tmp_path / "images"), vocabulary=str(tmp_path / "vocabulary.yaml"))


def test_every_image_is_in_one_split_and_new_images_move_none(folder: FolderDataset) -> None:
    before = {split: list(open_images(folder, split).image_ids) for split in ("train", "test")}
    assert len(before["train"]) + len(before["test"]) < 40
    assert sum(len(open_images(folder, split).image_ids) for split in folder.splits) == 40
    assert before["test"] == [name for name in before["test"] if split_of(name, folder.splits) == "test"]
    assert open_images(folder, "test").read(0).shape == (6, 8, 3)
    for k in range(20):
        Image.new("RGB", (4, 4)).save(Path(folder.images) / f"a new one {k}.png")
    list_images.cache_clear()
    for split, names in before.items():
        after = open_images(folder, split).image_ids
        assert [name for name in after if "new" not in name] == names
        assert len(after) > len(names)


def test_hidden_files_are_left_out_and_any_layout_is_searched(tmp_path: Path) -> None:
    for name in ("a.jpg", "b c/ü.PNG", "b c/d/e.webp", "._a.jpg", ".thumbnails/a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(str(tmp_path)) == ("a.jpg", "b c/d/e.webp", "b c/ü.PNG")


def test_a_name_that_is_no_text_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    error = refused(list_images, str(tmp_path))
    assert "no valid UTF-8" in error.what
    assert "caf" in str(error.got)


def test_wrong_split_folder_and_vocabulary_are_refused(folder: FolderDataset, tmp_path: Path) -> None:
    error = refused(open_images, folder, "val")
    assert (error.what, error.expected) == ("the dataset has no split 'val'", "train or validation or test")
    (tmp_path / "none").mkdir()
    for name, what in (("none", "is empty"), ("nowhere", "no such folder")):
        moved = folder.model_copy(update={"images": str(tmp_path / name)})
        assert what in refused(open_images, moved, "train").what
    (tmp_path / "vocabulary.yaml").write_text("- {verb: ride, thing: horse}\n")
    assert "vocabulary.yaml, entry 1, key 'thing'" in str(refused(load_vocabulary, folder).where)


def test_annotations_join_by_name_and_wrong_records_are_named(folder: FolderDataset, tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    name = open_images(folder, "test").image_ids[1]
    boxes = {"human_xyxy": [0, 0, 2, 2], "object_xyxy": [1, 1, 4, 4]}
    record: dict[str, Any] = {"file_name": name, **boxes, "verb": "hold", "object": "cup"}
    annotated = folder.model_copy(update={"annotations": str(path)})
    path.write_text(json.dumps(record) + "\n")
    labels = load_labels(annotated, "test")
    assert (labels.image.tolist(), labels.interaction.tolist()) == ([1], [1])
    assert len(load_labels(annotated, "train")) == 0
    assert rare_mask(annotated, "train").all()
    for change, message in (
        ({"file_name": "x.png"}, "is no image below dataset.images, and no other annotation joins"),
        ({"verb": "eat"}, "is in no interaction of"),
        ({"object_xyxy": [4, 1, 1, 4]}, "'object_xyxy' of an annotation is reversed"),
        ({"human_xyxy": [1, 1, 1, 4]}, "'human_xyxy' of an annotation is empty"),
        ({"human_xyxy": "abc"}, "'human_xyxy' of an annotation is mistyped"),
        ({"human_xyxy": [0, [1], 2, 3]}, "is no box"),
        ({"human_xyxy": [0, 0, 2, float("nan")]}, "is not finite"),
        ({"verb": ["hold"]}, "'verb' of an annotation is mistyped"),
        ({"file_name": 3}, "'file_name' of an annotation is mistyped"),
    ):
        path.write_text(json.dumps(record | change) + "\n")
        error = refused(load_labels, annotated, "test")
        assert message in error.what
        assert str(error.where) == f"{path}, line 1"
    path.write_bytes(b"\xff\xfe")
    assert "not a text file" in refused(load_labels, annotated, "test").what
    in_folder = folder.model_copy(update={"annotations": str(tmp_path)})
    assert refused(load_labels, in_folder, "test").what == "this is a folder"
    assert "no annotations" in refused(load_labels, folder, "test").what
    assert "no split 'val'" in refused(load_labels, annotated, "val").what


def test_annotations_that_do_not_join_are_counted(folder: FolderDataset, tmp_path: Path) -> None:
    path, name = tmp_path / "annotations.jsonl", open_images(folder, "test").image_ids[0]
    line = {"file_name": name, "human_xyxy": [0, 0, 2, 2], "object_xyxy": [1, 1, 4, 4], "verb": "hold", "object": "cup"}
    changes: list[dict[str, str]] = [{}, {"file_name": "x.png"}, {"verb": "Hold"}]
    path.write_text("".join(json.dumps(line | change) + "\n" for change in changes))
    annotated = folder.model_copy(update={"annotations": str(path)})
    assert load_labels(annotated, "test").image.tolist() == [0]
    images, interactions = label_notices(annotated)
    path.write_text("".join(json.dumps(line | change) + "\n" for change in changes[:0:-1]))
    error = refused(load_labels, annotated, "test")
    assert "'verb' of an annotation is in no interaction" in error.what
    assert "no other annotation joins" in error.what
    assert images.startswith("1 images of the annotations are unknown and left out, as 'x.png'; ")
    assert interactions.startswith("1 interactions of the annotations are unknown and left out, as 'Hold cup'; 1 ")


def test_annotations_of_another_frame_are_refused(folder: FolderDataset, tmp_path: Path) -> None:
    path, name = tmp_path / "annotations.jsonl", open_images(folder, "test").image_ids[0]
    annotated = folder.model_copy(update={"annotations": str(path)})
    line = {"file_name": name, "human_xyxy": [0, 0, 2, 2], "object_xyxy": [1, 1, 4, 4], "verb": "hold", "object": "cup"}

    def load(**change: Any) -> Any:
        path.write_text(2 * (json.dumps(line | change) + "\n"))
        return load_labels(annotated, "test")

    assert len(load(width=8, height=6, file_name=name.replace("/", "\\"))) == 2
    assert label_notices(annotated)[0].startswith("1 annotation lines repeat an earlier one")
    for change, what in (
        ({"width": 6, "height": 8}, "turned by EXIF"),
        ({"width": 16, "height": 12}, "a resized copy"),
        ({"object_xyxy": [8, 6, 16, 12]}, "2 of 2 boxes reach far beyond their image"),
        ({"human_xyxy": [0.1, 0.1, 0.5, 1.0]}, "fractions of the image"),
    ):
        assert what in refused(load, **change).what
