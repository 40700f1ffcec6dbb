"""HICO-DET's names, counts and zero-shot lists: against the papers' figures, and against the real annotations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hoi.datasets import hicodet
from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, rare, train_counts, unseen
from hoi.errors import UserError

CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
TEST_FILE = CHECK_DATA / "annotations/hicodet_instances_test2015.json"
FIGURES = {
    "rare_first": (120, 345, 836),
    "non_rare_first": (120, 82_712, 21_259),
    "unseen_object": (100, 17_281, 4_988),
    "unseen_verb": (84, 24_349, 6_580),
}
"""Unseen interactions, and their annotated pairs in the training and the test split."""


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


def test_every_object_has_the_name_that_a_coco_detector_gives_it() -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights

    categories = FasterRCNN_ResNet50_FPN_V2_Weights.DEFAULT.meta["categories"]
    assert set(hicodet_vocabulary().objects) == set(categories) - {"__background__", "N/A"}


def test_rare_interactions_are_the_official_138() -> None:
    assert rare().sum() == 138
    assert train_counts().sum() == 117_871
    assert np.flatnonzero(rare())[:5].tolist() == [8, 22, 27, 44, 50]


@pytest.mark.parametrize("split", FIGURES)
def test_a_zero_shot_split_hides_as_many_interactions_and_training_pairs_as_published(split: str) -> None:
    ids = unseen(split)
    assert (len(ids), train_counts()[ids].sum(), hicodet.test_counts()[ids].sum()) == FIGURES[split]


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


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no zero-shot split 'rf_uc' .*rare_first.*non_rare_first"):
        unseen("rf_uc")


def test_a_changed_list_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = json.loads((hicodet.DATA / "hicodet_label_facts.json").read_text())
    facts["unseen"]["uc0"][0] += 1
    (tmp_path / "hicodet_label_facts.json").write_text(json.dumps(facts))
    monkeypatch.setattr(hicodet, "DATA", tmp_path)
    hicodet._read.cache_clear()
    try:
        with pytest.raises(UserError, match=r"'uc0' was changed .*expected: SHA-256 e07e.*next: install"):
            unseen("uc0")
        assert len(unseen("uc1")) == 120
    finally:
        hicodet._read.cache_clear()


@pytest.mark.skipif(not TEST_FILE.is_file(), reason="needs HOI_CHECK_DATA: the real test annotations")
def test_names_counts_rare_and_unseen_agree_with_the_real_test_annotations() -> None:
    real = json.loads(TEST_FILE.read_text())
    vocabulary = hicodet_vocabulary()
    assert [name.replace(" ", "_") for name in vocabulary.objects] == real["objects"]
    assert list(vocabulary.verbs) == real["verbs"]
    expected = [
        [k, int(o), int(v)] for k, (o, v) in enumerate(zip(vocabulary.object_of, vocabulary.verb_of, strict=True))
    ]
    assert real["correspondence"] == expected
    assert np.flatnonzero(rare()).tolist() == real["rare"]
    counts = np.bincount([k for image in real["annotation"] for k in image["hoi"]], minlength=600)
    np.testing.assert_array_equal(hicodet.test_counts(), counts)
    for split, (_, _, num_test) in FIGURES.items():
        assert counts[unseen(split)].sum() == num_test


def test_the_document_states_every_split_as_it_is() -> None:
    document = (Path(__file__).parents[2] / "docs/zero-shot.md").read_text()
    for split, digest in UNSEEN_SHA256.items():
        ids = unseen(split)
        train, test = train_counts()[ids].sum(), hicodet.test_counts()[ids].sum()
        line = next(line for line in document.splitlines() if line.startswith(f"| `{split}` |"))
        assert line.endswith(f"| {len(ids)} | {train:,} | {test:,} | `{digest}` |")
