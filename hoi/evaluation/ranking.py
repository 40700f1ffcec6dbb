"""Rank matched predictions by score, and read average precision off the ranking.

Shapes: R predictions, G truth rows, K interactions, I images.

Source: ywchao/ho-rcnn, evaluation/.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Matches:
    """What each prediction would hit if no better one came first."""

    image: np.ndarray  # int64 [R]
    interaction: np.ndarray  # int64 [R]
    truth: np.ndarray  # int64 [R], truth row of the same image and interaction with the largest min(IoU_h, IoU_o)
    is_hit: np.ndarray  # bool [R], whether that overlap passes 0.5; elsewhere `truth` means nothing
    counts: np.ndarray  # bool [R], whether the protocol and setting look at the prediction at all
    truth_image: np.ndarray  # int64 [G]
    truth_interaction: np.ndarray  # int64 [G]
    num_interactions: int
    levels: np.ndarray  # float64 [11] recalls at which precision is read

    def num_positives(self, images: np.ndarray | None = None) -> np.ndarray:
        """Count the annotated instances of each interaction, int64 [K], in the given images (bool [I]) or all."""
        rows = slice(None) if images is None else images[self.truth_image]
        return np.bincount(self.truth_interaction[rows], minlength=self.num_interactions)


@dataclass(frozen=True)
class Ranking:
    """Counted predictions by interaction and falling score."""

    rows: np.ndarray  # int64 [R'], rows of the predictions
    is_true: np.ndarray  # bool [R'], true positives
    starts: np.ndarray  # int64 [K + 1], interaction k is rows[starts[k]:starts[k + 1]]


def rank(matches: Matches, score: np.ndarray, images: np.ndarray | None = None) -> Ranking:
    """Rank predictions by falling score within their interaction; ties go by image, then by row.

    A truth is found once: by the first in this order that would hit it. Later ones are false positives; none turns to
    the truth with the next largest overlap.

    Args:
        matches: Of the same rows as `score`.
        score: [R]; only its order within an interaction matters.
        images: bool [I], the images whose predictions are ranked; None for all.
    """
    rows = np.flatnonzero(matches.counts if images is None else matches.counts & images[matches.image])
    interaction = matches.interaction[rows]
    rows = rows[np.lexsort((matches.image[rows], -score[rows], interaction))]
    is_true = np.zeros(len(rows), bool)
    hits = np.flatnonzero(matches.is_hit[rows])
    _, first = np.unique(matches.truth[rows[hits]], return_index=True)
    is_true[hits[first]] = True
    starts = np.searchsorted(np.sort(interaction), np.arange(matches.num_interactions + 1))
    return Ranking(rows, is_true, starts)


def average_precision(ranking: Ranking, num_positives: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the mean over `levels` of the best precision at that recall or more.

    Args:
        ranking: Of K interactions.
        num_positives: int64 [K].
        levels: float64 [11].

    Returns:
        float64 [K]; 0 where `num_positives` is 0.
    """
    position = np.flatnonzero(ranking.is_true)
    bounds = np.searchsorted(position, ranking.starts)
    num_true = np.diff(bounds)
    nth = np.arange(len(position)) - np.repeat(bounds[:-1], num_true) + 1
    precision = nth / (position - np.repeat(ranking.starts[:-1], num_true) + 1)

    # The n-th true positive reaches recall n / num_positives; precision only peaks at true positives.
    needed = _positives_to_reach(levels, num_positives)
    reached = needed <= num_true[:, None]
    begin = (bounds[:-1, None] + needed - 1)[reached]
    end = np.broadcast_to(bounds[1:, None], needed.shape)[reached]
    best = np.zeros(needed.shape)
    slices = np.stack([begin, end], 1).ravel()
    best[reached] = np.maximum.reduceat(np.append(precision, 0.0), slices)[::2] if len(slices) else 0.0
    return np.where(num_positives > 0, best.sum(1) / len(levels), 0.0)


def _positives_to_reach(levels: np.ndarray, num_positives: np.ndarray) -> np.ndarray:
    # The smallest n ≥ 1 with n / num_positives ≥ level in float64, int64 [K, 11]; beyond reach without positives.
    total = np.maximum(num_positives, 1)[:, None]
    needed = np.maximum(np.floor(levels * total).astype(np.int64) - 1, 1)
    for _ in range(3):
        needed += needed / total < levels
    needed[num_positives == 0] = np.iinfo(np.int64).max // 2
    return needed
