"""Matches annotated pairs to cached pairs: the targets of `supervision: labels`, and the labels as a baseline.

Shapes: P pairs of a batch or split, B images of a batch, I of the split, K interactions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from hoi.boxes import min_pair_iou
from hoi.records import BranchScores, HoiLabels, PairBatch
from hoi.vocabulary import Vocabulary

CEILING = "labels_on_detections"
"""Row name of `LabelledPairs`."""
MIN_IOU = 0.5
"""Of the human boxes and of the object boxes."""


@dataclass(frozen=True)
class LabelTargets:
    """Multi-hot labels of a whole split."""

    pairs: Bool[Tensor, "P K"]  # by row of the split's pair table
    images: Bool[Tensor, "I K"]  # every annotated interaction, whether a cached pair matches it or not
    seen: Bool[Tensor, " K"]  # False for what a zero-shot split hides: there a label says nothing, not even "no"

    def of(self, batch: PairBatch) -> tuple[Bool[Tensor, "P K"], Bool[Tensor, "B K"]]:
        """Return the labels of a batch's pairs and of its images."""
        pair_rows, image_rows = batch.pair_rows.to(self.pairs.device), batch.image_rows.to(self.images.device)
        return self.pairs[pair_rows].to(batch.pair_rows.device), self.images[image_rows].to(batch.image_rows.device)


def match_pairs(batch: PairBatch, labels: HoiLabels, vocabulary: Vocabulary) -> np.ndarray:
    """Return bool [P, K]: pair p has interaction k if both boxes reach `MIN_IOU` and the object class is k's.

    A cached pair may take the interactions of several annotated rows, and a row may be matched by several pairs.
    """
    pair_image = batch.pair_image.cpu().numpy()
    image_rows = batch.image_rows.cpu().numpy()
    order = np.argsort(image_rows)
    slot = order[np.searchsorted(image_rows[order], labels.image).clip(max=len(order) - 1)]
    inside = np.flatnonzero(image_rows[slot] == labels.image)
    first = np.searchsorted(pair_image, slot[inside], "left")
    num = np.searchsorted(pair_image, slot[inside], "right") - first
    row = np.repeat(inside, num)
    pair = np.arange(num.sum()) + np.repeat(first - (np.cumsum(num) - num), num)
    iou = min_pair_iou(
        batch.boxes_h.cpu().numpy().astype(np.float64)[pair],
        batch.boxes_o.cpu().numpy().astype(np.float64)[pair],
        labels.boxes_h[row].astype(np.float64),
        labels.boxes_o[row].astype(np.float64),
    )
    same_object = batch.labels_o.cpu().numpy()[pair] == vocabulary.object_of[labels.interaction[row]]
    hit = same_object & (iou >= MIN_IOU)
    targets = np.zeros((batch.num_pairs, len(vocabulary)), bool)
    targets[pair[hit], labels.interaction[row[hit]]] = True
    return targets


@dataclass(frozen=True)
class LabelledPairs:
    """Scores pairs by the labels: the upper bound that detections and the choice of pairs leave to every method."""

    labels: HoiLabels
    vocabulary: Vocabulary

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        return {CEILING: torch.from_numpy(match_pairs(batch, self.labels, self.vocabulary)).to(batch.boxes_h)}


def label_targets(
    batches: Iterable[PairBatch],
    labels: HoiLabels,
    vocabulary: Vocabulary,
    num_images: int,
    unseen_ids: np.ndarray | None = None,
) -> LabelTargets:
    """Return the targets of a split from all of its images, each once, and from its labels.

    `labels.image` is a row of the split. `unseen_ids`, int64, are hidden; a ValueError if `labels` hold one of them.
    """
    seen = np.ones(len(vocabulary), bool)
    if unseen_ids is not None:
        seen[unseen_ids] = False
        if not seen[labels.interaction].all():
            raise ValueError("a label of an unseen interaction is among those to train with")
    images = torch.zeros(num_images, len(vocabulary), dtype=torch.bool)
    images[labels.image, labels.interaction] = True
    matches = [(batch.pair_rows.cpu(), match_pairs(batch, labels, vocabulary)) for batch in batches]
    pairs = torch.zeros(sum(len(rows) for rows, _ in matches), len(vocabulary), dtype=torch.bool)
    for rows, matched in matches:
        pairs[rows] = torch.from_numpy(matched)
    return LabelTargets(pairs, images, torch.from_numpy(seen))
