"""Zero-shot splits: which labels a split takes out of training, worked out by hand; and unseen and seen means."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, unseen
from hoi.evaluation.hico import HicoResult
from hoi.evaluation.rows import Examiner
from hoi.evaluation.zero_shot import drop_unseen, format_zero_shot, in_percent, zero_shot_means
from hoi.labels.hicodet import read_annotations
from hoi.records import HoiLabels, Triplets

A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30)


def labels_of(*rows: tuple) -> HoiLabels:
    """(image, box_h, box_o, interaction) rows."""
    return HoiLabels(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[2] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[3] for r in rows], np.int64),
    )


def test_a_pair_with_an_unseen_interaction_goes_with_its_seen_labels() -> None:
    # Image 0: one pair that does 1 and 2, one that does 2. Image 1: the first pair's boxes again. Image 2: 1 alone.
    labels = labels_of((0, A, B, 1), (0, A, B, 2), (0, A, C, 2), (1, A, B, 2), (2, A, B, 1), (2, A, B, 1))
    kept, report = drop_unseen(labels, np.array([1]))
    assert list(zip(kept.image, kept.interaction, strict=True)) == [(0, 2), (1, 2)]
    np.testing.assert_array_equal(kept.boxes_o[0], C)
    assert (report.num_pairs, report.num_unseen, report.num_seen) == (2, 3, 1)
    assert (report.num_images_emptied, report.num_left) == (1, 2)
    assert "2 pairs" in str(report)


def test_nothing_unseen_and_no_label_at_all_are_valid() -> None:
    labels = labels_of((0, A, B, 1), (1, A, B, 2))
    kept, report = drop_unseen(labels, np.array([3]))
    assert (len(kept), report.num_pairs, report.num_left) == (2, 0, 2)
    kept, report = drop_unseen(labels_of(), np.array([3]))
    assert (len(kept), report.num_pairs) == (0, 0)


def test_means_are_over_unseen_and_seen_interactions_that_have_truth() -> None:
    ids = unseen("unseen_verb")
    ap, positives = np.full(600, 0.25), np.ones(600, np.int64)
    ap[ids] = 0.5
    ap[ids[0]], positives[ids[0]] = 0, 0
    nothing = np.zeros(600, bool)
    found = zero_shot_means(HicoResult(ap, positives, nothing, nothing), ["unseen_verb"])["unseen_verb"]
    assert (found["unseen"], found["seen"]) == (0.5, 0.25)
    assert (found["num_unseen"], found["num_unseen_instances"]) == (83, 83)
    assert found["full"] == pytest.approx((83 * 0.5 + 516 * 0.25) / 599)
    assert in_percent({"unseen_verb": found})["unseen_verb"]["unseen"] == 50
    assert in_percent({"unseen_verb": found})["unseen_verb"]["num_unseen"] == 83


def test_no_class_of_a_split_has_truth_then_its_mean_is_none() -> None:
    positives = np.ones(600, np.int64)
    positives[unseen("uc3")] = 0
    nothing = np.zeros(600, bool)
    found = zero_shot_means(HicoResult(np.ones(600), positives, nothing, nothing), list(UNSEEN_SHA256))
    assert (found["uc3"]["unseen"], found["uc3"]["seen"]) == (None, 1)
    assert found["uc4"]["unseen"] == 1


def test_the_printed_means_are_over_a_methods_seeds() -> None:
    vocabulary, ids = hicodet_vocabulary(), unseen("unseen_object")
    hidden, shown = int(ids[0]), int(np.flatnonzero(~np.isin(np.arange(600), ids))[0])
    labels = labels_of((0, A, B, hidden), (1, A, B, shown))
    examiner = Examiner(labels, 2, vocabulary, np.zeros(600, bool), 3)

    def found(*rows: tuple) -> Triplets:
        truth = labels_of(*rows)
        return Triplets(truth.image, truth.boxes_h, truth.boxes_o, truth.interaction, np.ones(len(truth)))

    rows = [
        examiner.grade("method", 0, found((0, A, B, hidden), (1, A, B, shown)), {}),
        examiner.grade("method", 1, found((1, A, B, shown)), {}),
    ]
    splits = {"unseen_object": ids, "unseen_verb": unseen("unseen_verb")}
    header, line, _ = format_zero_shot(rows, splits).splitlines()
    assert header.split() == ["zero-shot", "split", "unseen", "seen", "full"]
    assert line.split() == ["method", "unseen_object", "50.00", "100.00", "75.00"]
    by_labels = [replace(row, knobs={"supervision": "labels"}) for row in rows]
    _, marked, _, note = format_zero_shot(by_labels, splits).splitlines()
    assert marked.split()[:3] == ["method", "*", "unseen_object"]
    assert note.startswith("* trained with labels of unseen")
    own = [replace(row, knobs={"supervision": "labels", "zero_shot": "unseen_object"}) for row in rows]
    assert format_zero_shot(own, splits).splitlines()[1:] == [line]


CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
TEST_FILE = CHECK_DATA / "annotations/hicodet_instances_test2015.json"


@pytest.mark.skipif(not TEST_FILE.is_file(), reason="needs HOI_CHECK_DATA: the real test annotations")
def test_what_a_split_takes_out_of_the_real_test_annotations() -> None:
    real = read_annotations(TEST_FILE)
    labels = HoiLabels(real.image, real.boxes_h, real.boxes_o, real.interaction)
    published = {"rare_first": 836, "non_rare_first": 21_259, "unseen_object": 4_988, "unseen_verb": 6_580}
    for split, num_unseen in published.items():
        kept, report = drop_unseen(labels, unseen(split))
        assert report.num_unseen == num_unseen
        # Each interaction has boxes of its own in the official annotations: no seen label stands on a dropped pair.
        assert (report.num_pairs, report.num_seen) == (num_unseen, 0)
        assert len(kept) + report.num_unseen == len(labels) == 33_405
        assert not np.isin(kept.interaction, unseen(split)).any()
