"""Annotated pairs found again among cached pairs: by hand, and on HICO-DET's real test annotations."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi.datasets.hicodet import hicodet_vocabulary, unseen
from hoi.evaluation.hico import evaluate
from hoi.labels.hicodet_files import read_annotations
from hoi.labels.zero_shot import drop_unseen
from hoi.matching import CEILING, LabelledPairs, label_targets, match_pairs
from hoi.records import HoiLabels, PairBatch
from hoi.scoring import score_split
from tests.fakes.splits import VOCABULARY, labels_of, make_split

HUMAN, BICYCLE = [0, 0, 100, 100], [100, 0, 200, 100]
RIDE, PUSH, PET = 0, 1, 3
CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
TEST_FILE = CHECK_DATA / "annotations/hicodet_instances_test2015.json"
needs_annotations = pytest.mark.skipif(
    not TEST_FILE.is_file(), reason="needs HOI_CHECK_DATA: the real test annotations"
)
NUM_IMAGES, NUM_LABELS = 9_658, 33_405


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
    labels = labels_of((0, HUMAN, BICYCLE, RIDE), (0, HUMAN, BICYCLE, PUSH), (0, HUMAN, [0, 0, 9, 9], PET))
    matched = match_pairs(split.whole, labels, VOCABULARY)
    # Exactly 0.5 counts, 0.49 does not, another object class does not, nor does another image.
    assert np.argwhere(matched).tolist() == [[0, RIDE], [0, PUSH], [1, RIDE], [1, PUSH]]


def test_targets_do_not_depend_on_batches() -> None:
    split = make_split((3, 0, 1, 2))
    both = joined(split.labels, labels_of((1, HUMAN, BICYCLE, PUSH)))
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
    assert match_pairs(split.whole, labels_of((1, HUMAN, BICYCLE, RIDE)), VOCABULARY).shape == (0, 6)
    assert not match_pairs(make_split((2,)).whole, labels_of(), VOCABULARY).any()


def test_labels_on_cached_pairs_find_all_truth_with_a_pair() -> None:
    split = make_split((3, 0, 1, 2))
    everything = score_split(LabelledPairs(split.labels, VOCABULARY), split.batches(2, None), VOCABULARY, 0.0, "cpu")
    triplets = everything[CEILING]
    assert set(triplets.score) == {0.0, 1.0}
    nothing = np.zeros(len(VOCABULARY), bool)
    assert evaluate(triplets, split.labels, len(VOCABULARY), nothing).full == 1
    more = joined(split.labels, labels_of((1, HUMAN, BICYCLE, PUSH)))
    assert evaluate(triplets, more, len(VOCABULARY), nothing).full < 1


@cache
def annotated() -> HoiLabels:
    real = read_annotations(TEST_FILE, "test2015")
    order = np.argsort(real.image, kind="stable")
    return HoiLabels(real.image[order], real.boxes_h[order], real.boxes_o[order], real.interaction[order])


def as_detections(share: float) -> PairBatch:
    """Every annotated pair as a cached one, its boxes shifted right and down by a share of their sides."""
    labels, num = annotated(), NUM_LABELS
    nothing = torch.zeros(num, 1, 1)

    def moved(boxes: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((boxes + share * np.tile(boxes[:, 2:] - boxes[:, :2], 2)).astype(np.float32))

    return PairBatch(
        image_rows=torch.arange(NUM_IMAGES),
        size_hw=torch.ones(NUM_IMAGES, 2),
        image_embedding=torch.zeros(NUM_IMAGES, 1),
        image_similarity=torch.zeros(NUM_IMAGES, 1),
        pair_image=torch.from_numpy(labels.image),
        boxes_h=moved(labels.boxes_h),
        boxes_o=moved(labels.boxes_o),
        scores_h=torch.ones(num),
        scores_o=torch.ones(num),
        labels_o=torch.from_numpy(hicodet_vocabulary().object_of[labels.interaction]),
        pair_rows=torch.arange(num),
        rows_h=torch.arange(num),
        rows_o=torch.arange(num),
        human_feature=nothing,
        object_feature=nothing,
        union_feature=nothing,
        union_similarity=nothing,
    )


def own(matched: np.ndarray) -> int:
    """How many pairs hold the very label whose boxes they are."""
    return int(matched[np.arange(NUM_LABELS), annotated().interaction].sum())


@needs_annotations
def test_annotated_boxes_match_their_own_labels() -> None:
    matched = match_pairs(as_detections(0.0), annotated(), hicodet_vocabulary())
    assert own(matched) == NUM_LABELS
    # Boxes are drawn anew for each interaction, so most pairs are another row's as well.
    assert matched.sum() == 66_135
    objects = hicodet_vocabulary().object_of
    pair, interaction = matched.nonzero()
    assert (objects[interaction] == objects[annotated().interaction[pair]]).all()


@needs_annotations
def test_moved_boxes_match_while_the_overlap_is_a_half() -> None:
    # A box moved by d of its sides overlaps itself by (1 - d)² / (2 - (1 - d)²): 0.506 at 0.18, 0.489 at 0.19.
    labels, vocabulary = annotated(), hicodet_vocabulary()
    # What is left beyond holds the label by boxes that were drawn anew beside its own.
    for share, num in ((0.1, NUM_LABELS), (0.18, NUM_LABELS), (0.19, 12), (1.0, 1)):
        assert own(match_pairs(as_detections(share), labels, vocabulary)) == num


@needs_annotations
@pytest.mark.parametrize(
    ("split", "num_unseen"),
    [("rare_first", 836), ("non_rare_first", 21_259), ("unseen_object", 4_988), ("unseen_verb", 6_580)],
)
def test_zero_shot_targets_hold_no_unseen_instance(split: str, num_unseen: int) -> None:
    ids, vocabulary = unseen(split), hicodet_vocabulary()
    kept, _ = drop_unseen(annotated(), ids)
    assert len(kept) == NUM_LABELS - num_unseen
    found = label_targets([as_detections(0.0)], kept, vocabulary, NUM_IMAGES, ids)
    assert not found.pairs[:, ids].any()
    assert not found.images[:, ids].any()
    assert (~found.seen).nonzero().flatten().tolist() == ids.tolist()
    assert own(found.pairs.numpy()) == len(kept)
    with pytest.raises(ValueError, match="unseen interaction is among"):
        label_targets([as_detections(0.0)], annotated(), vocabulary, NUM_IMAGES, ids)
