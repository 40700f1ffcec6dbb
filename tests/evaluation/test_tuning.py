"""Tuning finds the best of the grid, and the plainest of equals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hoi.evaluation.baselines import EXPONENTS, Tuner
from hoi.records import BranchScores, HoiLabels, PairBatch
from hoi.vocabulary import Vocabulary

VOCABULARY = Vocabulary(objects=("person", "ball"), verbs=("kick",), interactions=(("kick", "ball"),))
CPU = torch.device("cpu")


class Fixed:
    """Gives the pairs the same scores whatever the batch."""

    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor(scores)[:, None]

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        return {"row": self.scores}


def tuner(detection: list[float]) -> Tuner:
    """Four images with one pair each; the pairs of images 0 and 1 are true."""
    boxes, features = torch.tensor([[0.0, 0, 10, 10]]).repeat(4, 1), torch.zeros(4, 1, 2)
    batch = PairBatch(
        image_rows=torch.arange(4),
        size_hw=torch.full((4, 2), 50.0),
        image_embedding=torch.zeros(4, 2),
        image_similarity=torch.zeros(4, 1),
        pair_image=torch.arange(4),
        boxes_h=boxes,
        boxes_o=boxes,
        scores_h=torch.tensor(detection),
        scores_o=torch.ones(4),
        labels_o=torch.ones(4, dtype=torch.int64),
        pair_rows=torch.arange(4),
        rows_h=torch.arange(4),
        rows_o=torch.arange(4),
        human_feature=features,
        object_feature=features,
        union_feature=features,
        union_similarity=torch.zeros(4, 1, 1),
    )
    labels = HoiLabels(np.array([0, 1]), boxes[:2].numpy(), boxes[:2].numpy(), np.zeros(2, int))
    return Tuner(lambda extra: [batch], labels, VOCABULARY, CPU)


def test_the_best_scorer_is_found_with_the_plainest_exponent_among_equals() -> None:
    found = tuner([0.5, 0.5, 0.5, 0.5]).tune([Fixed(0.1, 0.2, 0.8, 0.9), Fixed(0.9, 0.8, 0.2, 0.1)], "row")
    assert (found.choice, found.exponent, found.quality) == (1, 1.0, pytest.approx(1))
    assert found.num_tried == 2 * len(EXPONENTS)
    assert tuner([0.5] * 4).tune([Fixed(0.9, 0.8, 0.2, 0.1)] * 2, "row").choice == 0


def test_the_exponent_weighs_detection_against_the_score() -> None:
    # The true pairs score twice the false ones but are detected at 0.4 against 0.9: γ must stay below ln 2 / ln 2.25.
    found = tuner([0.4, 0.4, 0.9, 0.9]).tune([Fixed(0.8, 0.8, 0.4, 0.4)], "row")
    assert found.quality == pytest.approx(1)
    assert found.exponent == 0.0
    # The scores are wrong and detection is right: γ must be large.
    found = tuner([0.9, 0.9, 0.4, 0.4]).tune([Fixed(0.2, 0.2, 0.5, 0.5)], "row")
    assert found.exponent == 1.4
