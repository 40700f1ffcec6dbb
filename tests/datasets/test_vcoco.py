"""V-COCO as a dataset: images without any label, a vocabulary without annotations, and labels in both forms."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.cache.plan import settings_parts
from hoi.config import VcocoDataset
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.vcoco import ACTIONS, KEYS, WORDINGS, split_ids, vcoco_vocabulary
from hoi.detectors import match_classes
from hoi.labels import has_labels, label_notices, load_labels
from hoi.labels.vcoco import unspoken, vcoco_truth
from hoi.labels.vcoco_files import join_instances, pairs_of_truth, read_labels, read_pairs
from hoi.project.dataset_checks import check_dataset
from hoi.prompts import interaction_prompts
from hoi.vocabulary import NO_OBJECT
from tests.fakes.pipelines import refused
from tests.fakes.vcoco import COUNTS, edges, ids_of, label_file, pair_file, write_annotations, write_images


def vcoco(images: Path, **settings: Any) -> VcocoDataset:
    return VcocoDataset(name="vcoco", images=str(images), **settings)


@pytest.fixture
def tree(tmp_path: Path) -> VcocoDataset:
    ids = write_images(tmp_path / "coco")
    return vcoco(tmp_path / "coco", image_list=str(ids), annotations=str(write_annotations(tmp_path / "vcoco")))


def test_the_splits_are_vcocos_own_and_need_no_annotation(tmp_path: Path) -> None:
    config = vcoco(tmp_path, splits={"train": 1.0, "validation": 1.0, "trainval": 1.0, "test": 1.0})
    ids = {split: set(open_images(config, split).image_ids) for split in config.splits}
    assert [len(of_split) for of_split in ids.values()] == [2533, 2867, 5400, 4946]
    assert ids["train"] | ids["validation"] == ids["trainval"]
    assert not ids["trainval"] & ids["test"]
    assert not has_labels(config, "test")
    tenth = open_images(vcoco(tmp_path, splits={"test": 0.1}), "test").image_ids
    assert 400 < len(tenth) < 600
    assert set(tenth) < ids["test"]


def test_images_are_found_in_all_coco_layouts(tree: VcocoDataset, tmp_path: Path) -> None:
    first, second, third, _ = ids_of("test")
    assert open_images(tree, "test").image_ids == [str(number) for number in ids_of("test")]
    expected = [open_images(tree, "test").read(row) for row in range(3)]
    (tmp_path / "2017" / "train2017").mkdir(parents=True)
    (tmp_path / "2017" / "val2017").mkdir()
    (tmp_path / "flat").mkdir()
    for number, folder in ((first, "train2017"), (second, "val2017"), (third, "train2017")):
        for place in (tmp_path / "2017" / folder, tmp_path / "flat"):
            shutil.copy(tmp_path / "coco" / "val2014" / f"COCO_val2014_{number:012d}.jpg", place / f"{number:012d}.jpg")
    for root in (tmp_path / "2017", tmp_path / "flat"):
        source = open_images(vcoco(root, image_list=tree.image_list), "test")
        for row in range(3):
            np.testing.assert_array_equal(source.read(row), expected[row])
        with pytest.raises(UnreadableImage, match="missing"):
            source.read(3)
    assert "no such folder of COCO images" in refused(open_images, vcoco(tmp_path / "nowhere"), "test").what
    (tmp_path / "ids.txt").write_text("000294\n" + "9" * 5000)
    assert refused(open_images, vcoco(tmp_path, image_list=str(tmp_path / "ids.txt")), "test").got == "9" * 80
    (tmp_path / "ids.txt").write_text("294\n295\n")
    error = refused(open_images, vcoco(tmp_path, image_list=str(tmp_path / "ids.txt")), "test")
    assert (error.what, error.got) == ("a listed image is none of V-COCO's", "295")
    assert "line 2" in str(error.where)


def test_places_of_files_are_no_part_of_what_a_cache_holds(tree: VcocoDataset, tmp_path: Path) -> None:
    def parts(dataset: VcocoDataset) -> dict[str, Any]:
        plain = {"dataset": dataset.model_dump(), "cache": {"threads": 1}}
        return settings_parts(plain | {name: {} for name in ("detector", "pairs", "teacher")}, "test")

    assert parts(tree) == parts(vcoco(tmp_path))
    assert parts(tree) != parts(vcoco(tmp_path, max_image_pixels=1))


def test_every_key_has_its_own_phrases() -> None:
    vocabulary, every = vcoco_vocabulary("common_sense"), vcoco_vocabulary("all")
    assert (len(vocabulary), len(every)) == (370, 25 * 80 + 4)
    assert set(vocabulary.interactions) < set(every.interactions)
    assert {verb for verb, _ in vocabulary.interactions} == set(KEYS) == set(WORDINGS)
    assert (vocabulary.objects[:80], vocabulary.objects[80]) == (COCO_OBJECTS, NO_OBJECT)
    alone = [verb.removesuffix("_agent") for verb, name in vocabulary.interactions if name == NO_OBJECT]
    assert alone == ["stand", "walk", "run", "smile"]
    for of in (vocabulary, every):
        assert len(set(zip(of.phrases, of.interactions, strict=True))) == len(of)
        phrase_of = dict(zip(of.interactions, of.phrases, strict=True))
        assert phrase_of["hit_instr", "tennis racket"] == "hitting something with a tennis racket"
        assert phrase_of["eat_obj", "apple"] == "eating an apple"
        assert phrase_of["sit_instr", "bus"] == "sitting in a bus"
    listed = {name for wordings in WORDINGS.values() for _, names in wordings for name in names}
    assert listed <= set(COCO_OBJECTS)


def test_actions_without_object_need_no_object_to_be_detected() -> None:
    vocabulary = vcoco_vocabulary("common_sense")
    prompts = interaction_prompts(vocabulary, ["a photo of a person {verb_ing} {a_object}."], ["a person."])
    assert prompts[vocabulary.names.index("smile_agent no_object")] == ("a photo of a person smiling.",)
    assert prompts[vocabulary.names.index("ski_instr skis")] == ("a photo of a person skiing on a pair of skis.",)
    assert match_classes(COCO_OBJECTS, vocabulary, "any").tolist() == list(range(80))


EXPECTED = {
    ("kick_obj", "sports ball", "anna", "ball"),
    ("hit_obj", "sports ball", "anna", "ball"),
    ("hit_instr", "tennis racket", "anna", "racket"),
}
ALONE = {("stand_agent", NO_OBJECT, "anna", "anna"), ("smile_agent", NO_OBJECT, "ben", "ben")}


def check_labels(config: VcocoDataset, split: str, expected: set[tuple[str, str, str, str]]) -> None:
    labels, vocabulary = load_labels(config, split), load_vocabulary(config)
    assert labels.image.tolist() == [row for row in range(COUNTS[split]) for _ in expected]
    for row in range(COUNTS[split]):
        rows = np.flatnonzero(labels.image == row)
        found = {
            (*vocabulary.interactions[labels.interaction[r]], *labels.boxes_h[r].tolist(), *labels.boxes_o[r].tolist())
            for r in rows
        }
        assert found == {(key, thing, *edges(human), *edges(other)) for key, thing, human, other in expected}


def test_vcoco_files_give_roles_and_people_who_act_alone(tree: VcocoDataset) -> None:
    for split in COUNTS:
        check_labels(tree, split, EXPECTED | ALONE)
    truth = vcoco_truth(tree, "test")
    assert truth.image.tolist() == np.repeat(range(4), 3).tolist()
    assert truth.is_annotated.tolist() == [True, True, False] * 4
    assert truth.does.sum(0)[[ACTIONS.index(action) for action in ("look", "hit", "sit")]].tolist() == [4, 4, 0]


def test_fredzzhangs_files_give_the_boxed_roles_alone(tree: VcocoDataset, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    both = sorted(ids_of("train") + ids_of("validation"))
    (folder / "instances_vcoco_trainval.json").write_text(json.dumps(pair_file(both)))
    config = tree.model_copy(update={"annotations": str(folder)})
    check_labels(config, "train", EXPECTED)
    check_labels(config, "validation", EXPECTED)
    assert "no V-COCO annotations of split 'test'" in refused(load_labels, config, "test").what
    assert "no V-COCO label files of split 'train'" in refused(vcoco_truth, config, "train").what


def test_annotated_images_outside_the_splits_are_counted(tree: VcocoDataset, tmp_path: Path) -> None:
    assert label_notices(tree) == []
    every = Path(str(tree.image_list)).read_text().split()
    (tmp_path / "fewer.txt").write_text("\n".join(every[1:]))
    fewer = tree.model_copy(update={"image_list": str(tmp_path / "fewer.txt")})
    assert label_notices(fewer) == [
        f"1 annotated images are none of the data set's, and do not count, as {every[0]}",
    ]
    assert len(np.unique(load_labels(fewer, "train").image)) == COUNTS["train"] - 1
    (write_annotations(tmp_path / "other") / "vcoco_test.json").write_text(json.dumps(label_file(ids_of("train"))))
    other = tree.model_copy(update={"annotations": str(tmp_path / "other")})
    assert "4 images of split 'test' are not in its annotation files" in refused(load_labels, other, "test").what


def test_annotated_pairs_outside_the_vocabulary_are_counted(tree: VcocoDataset, tmp_path: Path) -> None:
    path = tmp_path / "vcoco" / "instances_all.json"
    content = json.loads(path.read_text())
    for record in content["annotations"]:
        if record["category_id"] == 43:
            record["category_id"] = 70
    path.write_text(json.dumps(content))
    assert unspoken(tree, "test") == Counter({"hit_instr toilet": 4})
    assert unspoken(tree.model_copy(update={"vocabulary": "all"}), "test") == Counter()
    assert len(load_labels(tree, "test")) == 4 * 4


def test_incomplete_or_damaged_annotations_are_named(tree: VcocoDataset, tmp_path: Path) -> None:
    more = tree.model_copy(update={"image_list": None})
    assert "4942 images of split 'test' are not in its annotation files" in refused(load_labels, more, "test").what
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, change, message in (
        ("boxes", {"boxes_h": [[0, 0, float("nan"), 5]] * 3}, r"annotation 0 .* box \[0, 0, nan, 5\]"),
        ("lengths", {"actions": [0]}, r"annotation 0 .* of one length"),
        ("id", {"file_name": "COCO_train2014_000000000001.jpg"}, r"image id and file name differ"),
    ):
        content = pair_file(ids_of("test"))
        content["annotations"][0] |= change
        (folder / f"{name}.json").write_text(json.dumps(content))
        assert re.search(message, str(refused(read_pairs, folder / f"{name}.json")))
    instances = tmp_path / "vcoco" / "instances_all.json"
    content = json.loads(instances.read_text())
    for images, message in (
        (-1, "no file beside it does"),
        ([{**image, "width": 10**23} for image in content["images"]], "these instances are not understood"),
    ):
        instances.write_text(json.dumps(content | {"images": images}))
        assert message in refused(load_labels, tree.model_copy(), "validation").what
    instances.unlink()
    assert "set dataset.instances" in str(refused(load_labels, tree.model_copy(), "validation").fix)


@pytest.mark.slow
@pytest.mark.skipif("HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no folder of annotations")
def test_the_real_files_load_and_their_counts_are_known() -> None:
    folder = Path(os.environ["HOI_CHECK_DATA"]) / "annotations" / "vcoco"
    ids = split_ids()
    people, positives = {}, {}
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test_rebuilt")):
        labels = read_labels(folder / f"vcoco_{name}.json.gz")
        assert tuple(labels.image_ids) == ids[split]
        people[split] = len(labels.actions[0]["ann_id"])
        positives[split] = sum(sum(action["label"]) for action in labels.actions)
    assert people == {"train": 3932, "validation": 4499, "test": 7697}
    assert positives == {"train": 11325, "validation": 13141, "test": 22070}
    labels = read_labels(folder / "vcoco_test_rebuilt.json.gz")
    joined = join_instances(labels, folder / "instances_vcoco_test_boxes.json.gz")
    own = pairs_of_truth(joined)
    trainval, test = (read_pairs(folder / f"instances_vcoco_{name}.json.gz") for name in ("trainval", "test"))
    assert (trainval.image_ids, test.image_ids) == (ids["trainval"], ids["test"])
    assert (len(trainval), len(test)) == (13817, 12402)
    assert len(set(ids["test"]) - set(test.image.tolist())) == 414
    assert Counter(key for key in own.keys if key.endswith(("_obj", "_instr")) and key != "point_instr") == Counter(
        test.keys
    )
    assert Counter(own.keys)["point_instr"] == 21
    assert len(own) - 12402 - 21 == 6817


def test_doctor_names_missing_images_and_annotations(tree: VcocoDataset, tmp_path: Path) -> None:
    assert {finding.level for finding in check_dataset(tree, every=True)} == {"ok"}
    first = ids_of("test")[0]
    missing = f"val2014/COCO_val2014_{first:012d}.jpg"
    (tmp_path / "coco" / missing).unlink()
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "instances_vcoco_trainval.json").write_text(json.dumps(pair_file(ids_of("train"))))
    found = check_dataset(tree.model_copy(update={"annotations": str(folder)}), every=False)
    texts = [str(finding) for finding in found if finding.level != "ok"]
    for expected in (
        r"error +image files are missing .* got: 1: " + missing,
        r"warning +train has fredzzhang's pairs alone",
        r"error +3 images of split 'validation' are not in its annotation files",
        r"warning +test has no annotations",
    ):
        assert sum(bool(re.match(expected, text)) for text in texts) == 1, expected
    assert len(texts) == 4
