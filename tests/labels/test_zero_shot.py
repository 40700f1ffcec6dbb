"""Zero-shot splits of any vocabulary, and which labels a split takes out of training, worked out by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hoi.config import FolderDataset, HicodetDataset, WorldDataset
from hoi.datasets import load_vocabulary
from hoi.datasets.hicodet import hicodet_vocabulary, train_counts, unseen
from hoi.labels.hicodet_files import read_annotations
from hoi.labels.zero_shot import SPLIT_NAMES, by_counts, check_name, drop_unseen, unseen_ids
from hoi.records import HoiLabels
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused
from tests.fakes.splits import VOCABULARY, labels_of

WORLD = WorldDataset(name="world")
A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30)
TEST_FILE = Path(os.environ.get("HOI_CHECK_DATA", "unset")) / "annotations/hicodet_instances_test2015.json"


def none_read() -> np.ndarray:
    raise AssertionError("labels were read for a split that does not count")


def world_split(name: str, seed: int = 0) -> np.ndarray:
    vocabulary = load_vocabulary(WORLD)
    counts = np.random.default_rng(seed).integers(0, 50, len(vocabulary))
    return unseen_ids(WORLD, vocabulary, name, lambda: np.repeat(np.arange(len(vocabulary)), counts))


def test_the_rarest_go_first_but_no_verb_or_object_vanishes() -> None:
    # Rows: ride, push, no_interaction of bicycle; pet, walk, no_interaction of dog. Only no_interaction has two.
    assert by_counts(VOCABULARY, np.array([1, 1, 9, 1, 1, 5])).tolist() == [5]
    assert by_counts(VOCABULARY, np.array([1, 1, 5, 1, 1, 5])).tolist() == [2]


def test_the_rule_gives_hicodets_published_lists() -> None:
    vocabulary, counts = hicodet_vocabulary(), train_counts()
    np.testing.assert_array_equal(by_counts(vocabulary, -counts), unseen("non_rare_first"))
    # Two interactions as rare as two others: the published list broke the tie by chance.
    assert len(np.intersect1d(by_counts(vocabulary, counts), unseen("rare_first"))) == 118


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_every_verb_and_object_beside_the_hidden_is_seen(name: str) -> None:
    vocabulary, ids = load_vocabulary(WORLD), world_split(name)
    seen = np.setdiff1d(np.arange(len(vocabulary)), ids)
    hidden_verbs, hidden_objects = (set(rows) - set(rows[seen]) for rows in (vocabulary.verb_of, vocabulary.object_of))
    expected = {"unseen_object": (2, 0), "unseen_verb": (0, 2)}.get(name, (0, 0))
    assert (len(hidden_objects), len(hidden_verbs)) == expected
    if name.endswith("first"):
        assert len(ids) == round(0.2 * len(vocabulary))
    elif name == "unseen_verb":
        assert not vocabulary.is_no_interaction[ids].any()
    np.testing.assert_array_equal(ids, world_split(name))


def test_names_decide_hidden_objects_and_verbs_without_labels() -> None:
    vocabulary = load_vocabulary(WORLD)
    for name in ("unseen_object", "unseen_verb"):
        ids = unseen_ids(WORLD, vocabulary, name, none_read)
        turned = Vocabulary(vocabulary.objects, vocabulary.verbs, vocabulary.interactions[::-1])
        names = {vocabulary.names[k] for k in ids}
        assert {turned.names[k] for k in unseen_ids(WORLD, turned, name, none_read)} == names
    np.testing.assert_array_equal(world_split("unseen_verb", 0), world_split("unseen_verb", 1))
    assert not np.array_equal(world_split("rare_first", 0), world_split("rare_first", 1))


def test_hicodet_has_its_published_lists_and_others_none() -> None:
    hicodet = HicodetDataset(name="hicodet", root="nowhere")
    np.testing.assert_array_equal(unseen_ids(hicodet, hicodet_vocabulary(), "uc0", none_read), unseen("uc0"))
    for config in (WORLD, FolderDataset(name="folder", images="x", vocabulary="y", splits={"test": 1.0})):
        error = refused(check_name, config, "uc0", "evaluation.zero_shot")
        assert "no zero-shot split 'uc0'" in error.what
        assert error.where == "evaluation.zero_shot"


def test_a_pair_with_an_unseen_interaction_goes_whole() -> None:
    # Image 0: one pair that does 1 and 2, one that does 2. Image 1: the first pair's boxes again. Image 2: 1 alone.
    labels = labels_of((0, A, B, 1), (0, A, B, 2), (0, A, C, 2), (1, A, B, 2), (2, A, B, 1), (2, A, B, 1))
    kept, dropped = drop_unseen(labels, np.array([1]))
    assert list(zip(kept.image, kept.interaction, strict=True)) == [(0, 2), (1, 2)]
    np.testing.assert_array_equal(kept.boxes_o[0], C)
    assert (dropped.num_pairs, dropped.num_unseen, dropped.num_seen) == (2, 3, 1)
    assert (dropped.num_images_emptied, dropped.num_left) == (1, 2)


def test_nothing_unseen_and_no_label_at_all_are_valid() -> None:
    kept, dropped = drop_unseen(labels_of((0, A, B, 1), (1, A, B, 2)), np.array([3]))
    assert (len(kept), dropped.num_pairs, dropped.num_left) == (2, 0, 2)
    kept, dropped = drop_unseen(labels_of(), np.array([3]))
    assert (len(kept), dropped.num_pairs) == (0, 0)


@pytest.mark.skipif(not TEST_FILE.is_file(), reason="needs HOI_CHECK_DATA: the real test annotations")
def test_what_a_split_removes_from_the_real_annotations() -> None:
    real = read_annotations(TEST_FILE)
    labels = HoiLabels(real.image, real.boxes_h, real.boxes_o, real.interaction)
    published = {"rare_first": 836, "non_rare_first": 21_259, "unseen_object": 4_988, "unseen_verb": 6_580}
    for split, num_unseen in published.items():
        kept, dropped = drop_unseen(labels, unseen(split))
        # Each interaction has boxes of its own in the official annotations: no seen label is on a dropped pair.
        assert (dropped.num_unseen, dropped.num_pairs, dropped.num_seen) == (num_unseen, num_unseen, 0)
        assert len(kept) + dropped.num_unseen == len(labels) == 33_405
        assert not np.isin(kept.interaction, unseen(split)).any()
