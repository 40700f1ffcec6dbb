"""Precision over recall, calibration and each image's AP, on a few triplets worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.evaluation.hico import match, score_matches
from hoi.report.plots import LEVELS, calibration_of, curves_of, image_ap, image_disagreement, true_positives
from tests.fakes.splits import labels_of, triplets_of

BOX = np.array([0, 0, 10, 10], np.float32)
ELSEWHERE = BOX + 50
# Image, interaction, score, whether the boxes are those of the truth.
TRIPLETS = [
    (0, 0, 0.9, True),
    (0, 0, 0.8, True),  # a second time at the same truth
    (0, 1, 0.4, False),
    (1, 0, 0.6, False),
    (1, 1, 0.5, True),
    (2, 1, 0.0005, False),
]
# Interaction 2 is annotated and never predicted; image 2 has no truth.
TRUTHS = [(0, 0), (1, 0), (1, 1), (1, 2)]


BOXES = [BOX if at_truth else ELSEWHERE for *_, at_truth in TRIPLETS]
PREDICTED = triplets_of(*((i, box, box, k, score) for (i, k, score, _), box in zip(TRIPLETS, BOXES, strict=True)))
MATCHES = match(PREDICTED, labels_of(*((i, BOX, BOX, k) for i, k in TRUTHS)), 3, protocol="official")
SCORE = PREDICTED.score


def test_the_first_at_a_truth_is_right_and_the_second_is_not() -> None:
    assert true_positives(MATCHES, SCORE).tolist() == [True, False, False, False, True, False]


def test_curves_by_hand_and_their_mean_is_the_map() -> None:
    curves = curves_of(MATCHES, SCORE)
    # One ranking of 4 truths: right, wrong, wrong, right, wrong, wrong. Recall 1/4 at precision 1, 2/4 at 2/4.
    expected = np.where(LEVELS <= 0.25, 1.0, np.where(LEVELS <= 0.5, 0.5, 0.0))
    np.testing.assert_allclose(curves.micro, expected)
    # Interaction 0: one of two, first. Interaction 1: its one, first. Interaction 2: none.
    np.testing.assert_allclose(curves.macro, np.where(LEVELS <= 0.5, 2 / 3, 1 / 3))
    np.testing.assert_allclose(curves.classes[:, 1], 1)
    result = score_matches(MATCHES, SCORE, np.zeros(3, bool), np.zeros(3, bool))
    assert curves.macro[::5].mean() == pytest.approx(result.full, abs=1e-12)


def test_calibration_by_hand() -> None:
    found = calibration_of(MATCHES, SCORE)
    # Edges 0, 0.001, ..., 0.215, 0.464, 1.
    assert found.num.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 4]
    assert found.score[[0, 8, 9]] == pytest.approx([0.0005, 0.4, 0.7])
    assert found.right[[0, 8, 9]] == pytest.approx([0, 0, 0.5])
    assert found.error == pytest.approx((0.0005 + 0.4 + 4 * 0.2) / 6)


def test_an_images_ap_is_over_all_its_triplets() -> None:
    found = image_ap(MATCHES, SCORE, 4, np.ones(3, bool))
    # Image 0: its truth comes first. Image 1: one of three truths, in second place.
    assert found[:2] == pytest.approx([1.0, 0.5 / 3])
    assert np.isnan(found[2:]).all()
    # Interaction 1 alone: image 0 has no truth of it, image 1 finds its only one first.
    only = image_ap(MATCHES, SCORE, 4, np.array([False, True, False]))
    assert np.isnan(only[[0, 2, 3]]).all()
    assert only[1] == 1


def test_disagreement_is_between_none_and_whole() -> None:
    image = np.array([0, 0, 1, 1, 2, 2])
    first, second = np.array([1.0, 3, 1, 0, 1, 1]), np.array([0.1, 0.3, 0, 5, 1, 3])
    assert image_disagreement(image, first, second, 4) == pytest.approx([0, 1, 0.25, 0])
