"""Label matching on HICO-DET's real test annotations: annotated boxes, and boxes moved by a known overlap."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi.datasets.hicodet import hicodet_vocabulary, unseen
from hoi.labels.hicodet_files import read_annotations
from hoi.labels.zero_shot import drop_unseen
from hoi.matching import label_targets, match_pairs
from hoi.records import HoiLabels, PairBatch

CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
TEST_FILE = CHECK_DATA / "annotations/hicodet_instances_test2015.json"
pytestmark = pytest.mark.skipif(not TEST_FILE.is_file(), reason="needs HOI_CHECK_DATA: the real test annotations")
NUM_IMAGES, NUM_LABELS = 9_658, 33_405


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


def test_annotated_boxes_match_their_own_labels() -> None:
    matched = match_pairs(as_detections(0.0), annotated(), hicodet_vocabulary())
    assert own(matched) == NUM_LABELS
    # Boxes are drawn anew for each interaction, so most pairs are another row's as well.
    assert matched.sum() == 66_135
    objects = hicodet_vocabulary().object_of
    pair, interaction = matched.nonzero()
    assert (objects[interaction] == objects[annotated().interaction[pair]]).all()


def test_moved_boxes_match_while_the_overlap_is_a_half() -> None:
    # A box moved by d of its sides overlaps itself by (1 - d)² / (2 - (1 - d)²): 0.506 at 0.18, 0.489 at 0.19.
    labels, vocabulary = annotated(), hicodet_vocabulary()
    # What is left beyond holds the label by boxes that were drawn anew beside its own.
    for share, num in ((0.1, NUM_LABELS), (0.18, NUM_LABELS), (0.19, 12), (1.0, 1)):
        assert own(match_pairs(as_detections(share), labels, vocabulary)) == num


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
