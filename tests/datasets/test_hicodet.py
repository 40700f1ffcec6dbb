"""HICO-DET: images, splits and labels joined by name; names, counts and zero-shot lists as published."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hoi.cache.plan import request_parts, settings_parts, splits_of
from hoi.config import HicodetDataset, HicodetFiles, PipelineConfig, load_config
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.datasets import hicodet as lists
from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, rare, train_counts, unseen
from hoi.labels import has_labels, label_notices, load_labels, rare_mask
from tests.fakes.hicodet import NAMES, instances_json, ppdm_json, write_json, write_mat, write_tree
from tests.fakes.pipelines import refused

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path / "hico_20160224_det", train=40)
    return tmp_path / "hico_20160224_det"


def hicodet(root: Path, **settings: Any) -> HicodetDataset:
    return HicodetDataset(name="hicodet", root=str(root), **settings)


@pytest.mark.parametrize("above", [False, True])
def test_train_and_validation_share_one_folder(tree: Path, above: bool) -> None:
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
    assert refused(open_images, small, "test").what == "the dataset has no split 'test'"


def test_a_listed_image_without_a_file_is_unreadable_and_counted(tree: Path) -> None:
    (tree / "test.txt").write_text(f"{NAMES[1]}\n\nHICO_test2015_00009999.jpg\n")
    source = open_images(hicodet(tree, image_lists=HicodetFiles(test2015=str(tree / "test.txt"))), "test")
    assert source.image_ids == [NAMES[1], "HICO_test2015_00009999.jpg"]
    assert source.read(0).shape == (64, 48, 3)
    with pytest.raises(UnreadableImage, match="missing"):
        source.read(1)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("a.jpg\na.jpg\n", "listed twice", "list"),
        ("\n", "names no image", "list"),
        ("ok.jpg\n../../x.jpg", "outside the image folder", "list, line 2"),
        ("ok.jpg\n..\\x.jpg", "outside the image folder", "list, line 2"),
        ("C:\\x.jpg", "outside the image folder", "list, line 1"),
        ("a\\b.jpg\na/b.jpg", "listed twice", "list"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, what: str, where: str) -> None:
    write_tree(tmp_path)
    (tmp_path / "list").write_text(text)
    config = hicodet(tmp_path, image_lists=HicodetFiles(test2015=str(tmp_path / "list")))
    error = refused(open_images, config, "test")
    assert what in error.what
    assert str(error.where) == str(tmp_path / where)


def test_a_tree_of_another_layout_is_refused_with_the_layout(tree: Path) -> None:
    shutil.rmtree(tree / "images" / "test2015")
    for root, got in ((tree / "nowhere", "no such folder"), (tree, "neither")):
        error = refused(open_images, hicodet(root), "test")
        assert (error.expected, error.got) == ("images/test2015 in it, or in hico_20160224_det in it", got)


@pytest.mark.parametrize("place", ["instances_test2015.json", "annotations/test_hico.json", "anno_bbox.mat"])
def test_labels_join_the_images_by_name_in_any_order(tree: Path, place: str) -> None:
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


def test_training_labels_follow_their_images_into_splits(tree: Path) -> None:
    names = [f"HICO_train2015_{k:08d}.jpg" for k in range(1, 41)]
    pair = {"boxes_h": [[1, 1, 9, 9]], "boxes_o": [[2, 2, 8, 8]], "hoi": [245]}
    path = write_json(tree.parent / "x.json", {"filenames": names, "annotation": [pair] * 40})
    config = hicodet(tree, annotations=HicodetFiles(train2015=str(path)))
    for split in ("train", "validation"):
        assert load_labels(config, split).image.tolist() == list(range(len(open_images(config, split).image_ids)))


def test_missing_annotated_images_are_refused_unless_unlisted(tree: Path) -> None:
    write_json(tree / "instances_test2015.json", instances_json())
    (tree / "images" / "test2015" / NAMES[0]).unlink()
    error = refused(load_labels, hicodet(tree), "test")
    assert "1 annotated images of test2015" in error.what
    assert error.got == f"no {NAMES[0]}"
    (tree / "test.txt").write_text(f"{NAMES[2]}\n")
    listed = hicodet(tree, image_lists=HicodetFiles(test2015=str(tree / "test.txt")))
    assert load_labels(listed, "test").interaction.tolist() == [152]
    [notice] = label_notices(listed)
    assert "annotated images of test2015 are not on its list" in notice
    assert "no annotations of HICO-DET's train2015" in refused(load_labels, hicodet(tree), "train").what


def pipeline(root: Path, **settings: Any) -> PipelineConfig:
    return load_config(ROOT / "pipeline.yaml").model_copy(update={"dataset": hicodet(root, **settings)})


def test_places_do_not_enter_the_fingerprint(tree: Path) -> None:
    one = pipeline(tree)
    other = pipeline(tree.parent, annotations=HicodetFiles(test2015="/b"), image_lists=HicodetFiles(train2015="/c"))
    assert request_parts(one) == request_parts(other)
    assert request_parts(one)["dataset"] == {"name": "hicodet", "max_image_pixels": 100_000_000}
    parts = [settings_parts(config.model_dump(mode="json"), "test") for config in (one, other)]
    assert parts[0] == parts[1]
    assert splits_of(pipeline(tree, splits={"train": 0.5, "validation": 0.0, "test": 1.0})) == ["train", "test"]


CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
TEST_FILE = CHECK_DATA / "annotations/hicodet_instances_test2015.json"


def test_the_vocabulary_is_hicos_own_in_number_and_order() -> None:
    vocabulary = hicodet_vocabulary()
    assert (len(vocabulary), len(vocabulary.objects), len(vocabulary.verbs)) == (600, 80, 117)
    assert vocabulary.interactions[0] == ("board", "airplane")
    assert vocabulary.interactions[599] == ("no_interaction", "zebra")
    assert vocabulary.is_no_interaction.sum() == 80
    assert set(vocabulary.object_of.tolist()) == set(range(80))
    underscored = [name.replace(" ", "_") for name in vocabulary.objects]
    assert underscored == sorted(underscored)
    assert list(vocabulary.verbs) == sorted(vocabulary.verbs)


def test_rare_interactions_are_the_official_138() -> None:
    assert rare().sum() == 138
    assert train_counts().sum() == 117_871
    assert np.flatnonzero(rare())[:5].tolist() == [8, 22, 27, 44, 50]


def test_every_list_is_whole_and_holds_what_its_name_says() -> None:
    vocabulary = hicodet_vocabulary()
    for split in UNSEEN_SHA256:
        ids = unseen(split)
        assert len(set(ids.tolist())) == len(ids)
        assert 0 <= ids.min() <= ids.max() < 600
    hidden = np.isin(np.arange(600), unseen("unseen_object"))
    assert len(set(vocabulary.object_of[hidden]) & set(vocabulary.object_of[~hidden])) == 0
    hidden = np.isin(np.arange(600), unseen("unseen_verb"))
    assert len(set(vocabulary.verb_of[hidden]) & set(vocabulary.verb_of[~hidden])) == 0
    assert (train_counts()[unseen("rare_first")] < 10).all()
    assert (train_counts()[unseen("non_rare_first")] >= 10).all()
    for split in ("uc0", "uc1", "uc2", "uc3", "uc4"):
        seen = ~np.isin(np.arange(600), unseen(split))
        assert set(vocabulary.object_of[seen]) == set(range(80))


def test_an_unknown_or_changed_list_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = refused(unseen, "rf_uc")
    assert error.what == "there is no zero-shot split 'rf_uc'"
    assert "rare_first, non_rare_first" in str(error.expected)
    facts = json.loads((lists.DATA / "hicodet_label_facts.json").read_text())
    facts["unseen"]["uc0"][0] += 1
    (tmp_path / "hicodet_label_facts.json").write_text(json.dumps(facts))
    monkeypatch.setattr(lists, "DATA", tmp_path)
    monkeypatch.setattr(lists, "_read", lists._read.__wrapped__)
    assert refused(unseen, "uc0").what == "the list of zero-shot split 'uc0' was changed"
    assert len(unseen("uc1")) == 120


@pytest.mark.skipif(not TEST_FILE.is_file(), reason="needs HOI_CHECK_DATA: the real test annotations")
def test_lists_agree_with_the_real_test_annotations() -> None:
    real = json.loads(TEST_FILE.read_text())
    vocabulary = hicodet_vocabulary()
    assert [name.replace(" ", "_") for name in vocabulary.objects] == real["objects"]
    assert list(vocabulary.verbs) == real["verbs"]
    ids = zip(range(600), vocabulary.object_of.tolist(), vocabulary.verb_of.tolist(), strict=True)
    assert real["correspondence"] == [list(of_one) for of_one in ids]
    assert np.flatnonzero(rare()).tolist() == real["rare"]
    counts = np.bincount([k for image in real["annotation"] for k in image["hoi"]], minlength=600)
    np.testing.assert_array_equal(lists.test_counts(), counts)


def test_the_document_states_every_split_as_it_is() -> None:
    document = (ROOT / "docs/zero-shot.md").read_text()
    for split, digest in UNSEEN_SHA256.items():
        ids = unseen(split)
        train, test = train_counts()[ids].sum(), lists.test_counts()[ids].sum()
        line = next(line for line in document.splitlines() if line.startswith(f"| `{split}` |"))
        assert line.endswith(f"| {len(ids)} | {train:,} | {test:,} | `{digest}` |")
