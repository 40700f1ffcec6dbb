"""HICO-DET as a data set: a folder of images without any label, splits, lists, and labels joined by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from hoi.cache.fingerprint import request_parts, settings_parts
from hoi.cache.plan import splits_of
from hoi.config import HicodetDataset, HicodetFiles, PipelineConfig, load_config
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.datasets.hicodet import rare
from hoi.errors import UserError
from hoi.labels import has_labels, load_labels, rare_mask
from tests.fakes.hicodet import NAMES, instances_json, ppdm_json, write_json, write_mat, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "hico_20160224_det", train=40)
    return tmp_path / "hico_20160224_det"


def hicodet(root: Path, **settings: Any) -> HicodetDataset:
    return HicodetDataset(name="hicodet", root=str(root), **settings)


@pytest.mark.parametrize("above", [False, True])
def test_images_come_from_the_folders_alone_and_train_and_validation_share_one(tree: Path, above: bool) -> None:
    config = hicodet(tree.parent if above else tree)
    ids = {split: list(open_images(config, split).image_ids) for split in config.splits}
    assert ids["test"] == sorted(NAMES)
    assert sorted(ids["train"] + ids["validation"]) == [f"HICO_train2015_{k:08d}.jpg" for k in range(1, 41)]
    assert 0 < len(ids["validation"]) < 12
    assert open_images(config, "test").read(2).shape == (64, 48, 3)
    assert len(load_vocabulary(config)) == 600
    assert not has_labels(config, "test")


def test_a_smaller_training_share_keeps_the_validation_images(tree: Path) -> None:
    whole, small = hicodet(tree), hicodet(tree, splits={"train": 0.3, "validation": 0.1})
    assert open_images(small, "validation").image_ids == open_images(whole, "validation").image_ids
    assert set(open_images(small, "train").image_ids) < set(open_images(whole, "train").image_ids)
    with pytest.raises(ValidationError, match="must sum to 1 at most"):
        hicodet(tree, splits={"train": 0.9, "validation": 0.2})
    with pytest.raises(UserError, match=r"no split 'test'.*train or validation"):
        open_images(small, "test")


def test_a_listed_image_without_a_file_is_unreadable_and_counted(tree: Path) -> None:
    (tree / "test.txt").write_text(f"{NAMES[1]}\n\nHICO_test2015_00009999.jpg\n")
    source = open_images(hicodet(tree, image_lists=HicodetFiles(test2015=str(tree / "test.txt"))), "test")
    assert source.image_ids == [NAMES[1], "HICO_test2015_00009999.jpg"]
    assert source.read(0).shape == (64, 48, 3)
    with pytest.raises(UnreadableImage, match="missing"):
        source.read(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\na.jpg\n", "listed twice.*a.jpg"),
        ("\n", "names no image"),
        ("ok.jpg\n../../x.jpg", r"line 2.*\.\./x\.jpg"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_tree(tmp_path)
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=message):
        open_images(hicodet(tmp_path, image_lists=HicodetFiles(test2015=str(tmp_path / "list"))), "test")


def test_a_tree_of_another_layout_is_refused_with_the_layout(tree: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected: images/test2015 in it, or in hico_20160224_det.*got: no such folder"
    ):
        open_images(hicodet(tree / "nowhere"), "test")
    shutil.rmtree(tree / "images" / "test2015")
    with pytest.raises(UserError, match=r"HICO-DET's test2015 images.*got: neither"):
        open_images(hicodet(tree), "test")


@pytest.mark.parametrize("place", ["instances_test2015.json", "annotations/test_hico.json", "anno_bbox.mat"])
def test_labels_join_the_images_by_name_whatever_the_order_of_the_file(tree: Path, place: str) -> None:
    (tree / "annotations").mkdir()
    path = tree / place
    if path.suffix == ".mat":
        write_mat(path)
    else:
        write_json(path, ppdm_json() if "annotations" in place else instances_json())
    config = hicodet(tree)
    assert has_labels(config, "test")
    labels = load_labels(config, "test")
    names = open_images(config, "test").image_ids
    assert [names[image] for image in labels.image] == [NAMES[0], NAMES[0], NAMES[2]]
    assert labels.interaction.tolist() == [245, 245, 152]
    assert labels.boxes_o[2].tolist() == [0, 8, 32, 30]
    assert (rare_mask(config, "train") == rare()).all()
    assert rare().sum() == 138


def test_training_labels_are_shared_between_train_and_validation_by_image(tree: Path) -> None:
    names = [f"HICO_train2015_{k:08d}.jpg" for k in range(1, 41)]
    pair = {"boxes_h": [[1, 1, 9, 9]], "boxes_o": [[2, 2, 8, 8]], "hoi": [245]}
    path = write_json(tree.parent / "x.json", {"filenames": names, "annotation": [pair] * 40})
    config = hicodet(tree, annotations=HicodetFiles(train2015=str(path)))
    for split in ("train", "validation"):
        assert load_labels(config, split).image.tolist() == list(range(len(open_images(config, split).image_ids)))


def test_annotated_images_that_are_not_there_are_refused_unless_a_list_leaves_them_out(tree: Path) -> None:
    write_json(tree / "instances_test2015.json", instances_json())
    (tree / "images" / "test2015" / NAMES[0]).unlink()
    with pytest.raises(UserError, match=f"1 annotated images of test2015.*no {NAMES[0]}.*image_lists.test2015"):
        load_labels(hicodet(tree), "test")
    (tree / "test.txt").write_text(f"{NAMES[2]}\n")
    listed = hicodet(tree, image_lists=HicodetFiles(test2015=str(tree / "test.txt")))
    assert load_labels(listed, "test").interaction.tolist() == [152]
    with pytest.raises(UserError, match=r"no annotations of HICO-DET's train2015.*instances_train2015\.json"):
        load_labels(hicodet(tree), "train")


def pipeline(root: Path, **settings: Any) -> PipelineConfig:
    return load_config("pipeline.yaml").model_copy(update={"dataset": hicodet(root, **settings)})


def test_places_do_not_enter_the_fingerprint_and_shares_are_in_the_ids(tree: Path) -> None:
    one = pipeline(tree)
    other = pipeline(tree.parent, annotations=HicodetFiles(test2015="/b"), image_lists=HicodetFiles(train2015="/c"))
    assert request_parts(one) == request_parts(other)
    assert request_parts(one)["dataset"] == {"name": "hicodet", "max_image_pixels": 100_000_000}
    parts = [settings_parts(config.model_dump(mode="json"), "test") for config in (one, other)]
    assert parts[0] == parts[1]
    assert splits_of(pipeline(tree, splits={"train": 0.5, "validation": 0.0, "test": 1.0})) == ["train", "test"]


def test_a_turned_photograph_is_read_upright(tree: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tree / "images" / "test2015" / NAMES[0], exif=exif)
    assert open_images(hicodet(tree), "test").read(0).shape == (64, 48, 3)
