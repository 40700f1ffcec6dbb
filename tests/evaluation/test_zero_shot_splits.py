"""Zero-shot splits of any vocabulary: the rule by hand, against HICO-DET's own lists, and on the world's names."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.config import FolderDataset, HicodetDataset, WorldDataset
from hoi.datasets import load_vocabulary
from hoi.datasets.hicodet import hicodet_vocabulary, train_counts, unseen
from hoi.errors import UserError
from hoi.evaluation.zero_shot import (
    SPLIT_NAMES,
    by_counts,
    check_name,
    unseen_ids,
)
from hoi.vocabulary import Vocabulary
from tests.fakes.splits import VOCABULARY

WORLD = WorldDataset(name="world")


def none_read() -> np.ndarray:
    raise AssertionError("labels were read for a split that does not count")


def world_split(name: str, seed: int = 0) -> np.ndarray:
    vocabulary = load_vocabulary(WORLD)
    counts = np.random.default_rng(seed).integers(0, 50, len(vocabulary))
    return unseen_ids(WORLD, vocabulary, name, lambda: np.repeat(np.arange(len(vocabulary)), counts))


def test_the_rarest_go_first_unless_they_are_the_last_of_their_verb_or_object() -> None:
    # Rows: ride, push, no_interaction of bicycle; pet, walk, no_interaction of dog. Only no_interaction has two.
    assert by_counts(VOCABULARY, np.array([1, 1, 9, 1, 1, 5])).tolist() == [5]
    assert by_counts(VOCABULARY, np.array([1, 1, 5, 1, 1, 5])).tolist() == [2]


def test_the_rule_gives_hicodets_published_lists() -> None:
    vocabulary, counts = hicodet_vocabulary(), train_counts()
    np.testing.assert_array_equal(by_counts(vocabulary, -counts), unseen("non_rare_first"))
    # Two interactions as rare as two others: the published list broke the tie by chance.
    assert len(np.intersect1d(by_counts(vocabulary, counts), unseen("rare_first"))) == 118


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_whatever_is_hidden_every_verb_and_object_beside_it_is_still_seen(name: str) -> None:
    vocabulary, ids = load_vocabulary(WORLD), world_split(name)
    seen = np.setdiff1d(np.arange(len(vocabulary)), ids)
    verbs, objects = (set(rows[seen]) for rows in (vocabulary.verb_of, vocabulary.object_of))
    hidden_objects = set(vocabulary.object_of) - objects
    hidden_verbs = set(vocabulary.verb_of) - verbs
    expected = {"unseen_object": (2, 0), "unseen_verb": (0, 2)}.get(name, (0, 0))
    assert (len(hidden_objects), len(hidden_verbs)) == expected
    if name.endswith("first"):
        assert len(ids) == round(0.2 * len(vocabulary))
    elif name == "unseen_verb":
        assert not vocabulary.is_no_interaction[ids].any()
    np.testing.assert_array_equal(ids, world_split(name))


def test_objects_and_verbs_are_hidden_by_their_names_and_no_label_is_read() -> None:
    vocabulary = load_vocabulary(WORLD)
    for name in ("unseen_object", "unseen_verb"):
        ids = unseen_ids(WORLD, vocabulary, name, none_read)
        order = list(reversed(range(len(vocabulary))))
        turned = Vocabulary(vocabulary.objects, vocabulary.verbs, tuple(vocabulary.interactions[k] for k in order))
        names = {vocabulary.names[k] for k in ids}
        assert {turned.names[k] for k in unseen_ids(WORLD, turned, name, none_read)} == names
    np.testing.assert_array_equal(world_split("unseen_verb", 0), world_split("unseen_verb", 1))
    assert not np.array_equal(world_split("rare_first", 0), world_split("rare_first", 1))


def test_hicodet_has_its_published_lists_and_an_unknown_split_is_refused() -> None:
    hicodet = HicodetDataset(name="hicodet", root="nowhere")
    found = unseen_ids(hicodet, hicodet_vocabulary(), "uc0", none_read)
    np.testing.assert_array_equal(found, unseen("uc0"))
    for config in (WORLD, FolderDataset(name="folder", images="x", vocabulary="y", splits={"test": 1.0})):
        with pytest.raises(UserError, match=r"no zero-shot split 'uc0' of .*where: evaluation.zero_shot"):
            check_name(config, "uc0", "evaluation.zero_shot")
