"""Annotated pairs found again among cached pairs."""

from __future__ import annotations

import numpy as np
import torch

from hoi.evaluation.hico import evaluate
from hoi.matching import CEILING, LabelledPairs, label_targets, match_pairs
from hoi.records import HoiLabels
from hoi.scoring import score_split
from tests.fakes.splits import VOCABULARY, make_split

HUMAN, BICYCLE = [0, 0, 100, 100], [100, 0, 200, 100]
RIDE, PUSH, PET = 0, 1, 3


def truth(*rows: tuple[int, list[float], list[float], int]) -> HoiLabels:
    image, boxes_h, boxes_o, interaction = zip(*rows, strict=True) if rows else ((), (), (), ())
    human, obj = (np.array(each, np.float32).reshape(-1, 4) for each in (boxes_h, boxes_o))
    return HoiLabels(np.array(image, np.int64), human, obj, np.array(interaction, np.int64))


def joined(*parts: HoiLabels) -> HoiLabels:
    columns = ("image", "boxes_h", "boxes_o", "interaction")
    return HoiLabels(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))


def test_matching_by_hand() -> None:
    half, less = [0, 0, 100, 50], [0, 0, 100, 49]
    split = make_split((4, 1)).with_pairs(
        boxes_h=torch.tensor([HUMAN, half, less, HUMAN, HUMAN], dtype=torch.float32),
        boxes_o=torch.tensor([BICYCLE] * 5, dtype=torch.float32),
        labels_o=torch.tensor([1, 1, 1, 2, 1]),
    )
    labels = truth((0, HUMAN, BICYCLE, RIDE), (0, HUMAN, BICYCLE, PUSH), (0, HUMAN, [0, 0, 9, 9], PET))
    matched = match_pairs(split.whole, labels, VOCABULARY)
    # Exactly 0.5 counts, 0.49 does not, another object class does not, nor does another image.
    assert np.argwhere(matched).tolist() == [[0, RIDE], [0, PUSH], [1, RIDE], [1, PUSH]]


def test_targets_do_not_depend_on_batches() -> None:
    split = make_split((3, 0, 1, 2))
    both = joined(split.labels, truth((1, HUMAN, BICYCLE, PUSH)))
    in_order = label_targets(split.batches(4, None), both, VOCABULARY, 4)
    shuffled = label_targets(split.batches(3, np.random.default_rng(3)), both, VOCABULARY, 4)
    assert torch.equal(in_order.pairs, shuffled.pairs)
    assert in_order.pairs.sum(1).tolist() == [1, 0, 0, 1, 1, 0]
    assert in_order.images.sum(1).tolist() == [1, 1, 1, 1]
    pairs, images = in_order.of(split.batch(np.array([3, 0])))
    assert torch.equal(pairs, in_order.pairs[[4, 5, 0, 1, 2]])
    assert torch.equal(images, in_order.images[[3, 0]])


def test_no_labels_and_no_pairs_are_fine() -> None:
    split = make_split((0, 0))
    assert match_pairs(split.whole, truth((1, HUMAN, BICYCLE, RIDE)), VOCABULARY).shape == (0, 6)
    assert not match_pairs(make_split((2,)).whole, truth(), VOCABULARY).any()


def test_labels_on_cached_pairs_find_all_truth_with_a_pair() -> None:
    split = make_split((3, 0, 1, 2))
    everything = score_split(LabelledPairs(split.labels, VOCABULARY), split.batches(2, None), VOCABULARY, 0.0, "cpu")
    triplets = everything[CEILING]
    assert set(triplets.score) == {0.0, 1.0}
    nothing = np.zeros(len(VOCABULARY), bool)
    assert evaluate(triplets, split.labels, len(VOCABULARY), nothing).full == 1
    more = joined(split.labels, truth((1, HUMAN, BICYCLE, PUSH)))
    assert evaluate(triplets, more, len(VOCABULARY), nothing).full < 1
