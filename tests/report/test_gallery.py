"""What the gallery shows of an image, and which images it takes."""

from __future__ import annotations

import numpy as np

from hoi.evaluation.hico import match
from hoi.records import HoiLabels, Triplets
from hoi.report.gallery import choose_images, choose_pairs
from hoi.vocabulary import NO_INTERACTION, Vocabulary
from tests.fakes.splits import labels_of, triplets_of

VOCABULARY = Vocabulary(
    ("person", "ball"),
    ("hold", "sit_on", "kick", NO_INTERACTION),
    (("hold", "ball"), ("sit_on", "ball"), ("kick", "ball"), (NO_INTERACTION, "ball")),
)
BOXES = np.array([[0, 0, 10, 10], [100, 0, 110, 10], [0, 100, 10, 110]], np.float32)


def labels(rows: list[tuple]) -> HoiLabels:
    return labels_of(*((image, BOXES[box], BOXES[box], k) for image, box, k in rows))


def triplets(rows: list[tuple]) -> Triplets:
    return triplets_of(*((image, BOXES[box], BOXES[box], k, score) for image, box, k, score in rows))


def test_as_many_triplets_are_shown_as_are_annotated() -> None:
    truth = labels([(1, 0, 0), (1, 0, 1), (1, 1, 2), (1, 2, 3), (0, 0, 2)])
    found = triplets([(1, 0, 0, 0.9), (1, 0, 3, 0.95), (1, 0, 1, 0.5), (1, 2, 2, 0.7), (1, 1, 2, 0.4), (0, 0, 2, 0.99)])
    matches = match(found, truth, len(VOCABULARY), protocol="official")
    shown = choose_pairs(1, found, matches, VOCABULARY, truth)
    assert [(pair.verdict, line) for pair, line in shown] == [
        ("right", "hold + sit on ball (0.90, 0.50)"),
        ("wrong", "kick ball (0.70)"),
        ("missed", "kick ball"),
    ]
    assert shown[2][0].human_xyxy == (100, 0, 110, 10)


def test_without_labels_the_best_are_shown_and_nothing_is_judged() -> None:
    found = triplets([(0, 0, 0, 0.1), (0, 0, 1, 0.2), (0, 1, 0, 0.3), (0, 2, 3, 0.9), (0, 2, 0, 0.4)])
    shown = choose_pairs(0, found, None, VOCABULARY, None)
    assert [(pair.verdict, line) for pair, line in shown] == [
        (None, "hold ball (0.40)"),
        (None, "hold ball (0.30)"),
        (None, "sit on ball (0.20)"),
    ]
    assert choose_pairs(1, found, None, VOCABULARY, None) == []


def test_leads_and_lags_are_taken_and_the_lot_decides_others() -> None:
    lead = np.array([0.0, 0.5, -0.2, np.nan, 0.1, 0.0, -0.7])
    chosen = choose_images(lead, 2, 9)
    assert chosen == {"by lot": [0, 5], "ahead": [1, 4], "behind": [6, 2]}
    assert choose_images(np.array([0.0, np.nan]), 2, 1) == {"by lot": [0], "ahead": [], "behind": []}
