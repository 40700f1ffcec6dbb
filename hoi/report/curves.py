"""Ranked triplets to what the page plots: precision over recall, calibration, and each image's own average precision.

Letters: R triplets, K interactions, I images, L recall levels, N bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hoi.evaluation.ranking import Matches, Ranking, average_precision, rank

LEVELS = np.arange(51) / 50
"""Recalls at which curves are read."""
EDGES = np.array([0.0, *10.0 ** (np.arange(-9, 1) / 3)])
"""Of the bins of scores: three a decade from 0.001 to 1, and one for what is less. Most scores are small products."""


@dataclass(frozen=True)
class Curves:
    """Best precision at each recall of `LEVELS` or more, as fractions.

    Args:
        micro: float64 [L], all triplets in one ranking by score.
        macro: float64 [L], the mean over interactions with truth, each ranked alone.
        classes: float64 [L, K].
    """

    micro: np.ndarray
    macro: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Triplets by their score, in the bins between `EDGES`.

    Args:
        num: int64 [N] triplets.
        score: float64 [N], their mean; 0 where there is none.
        right: float64 [N], the share of them that is a true positive; 0 where there is none.
    """

    num: np.ndarray
    score: np.ndarray
    right: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over triplets of |share that is right − mean score| of their bin."""
        return float((self.num * np.abs(self.right - self.score)).sum() / max(1, self.num.sum()))


def curves_of(matches: Matches, score: np.ndarray) -> Curves:
    """Scores [R] of matched triplets to precision over recall."""
    ranking, num_positives = rank(matches, score), matches.num_positives()
    has_truth = num_positives > 0
    order = np.argsort(-score[ranking.rows], kind="stable")
    together = Ranking(ranking.rows[order], ranking.is_true[order], np.array([0, len(order)]))
    total = np.array([num_positives.sum()])
    classes = np.stack([average_precision(ranking, num_positives, LEVELS[at : at + 1]) for at in range(len(LEVELS))])
    micro = np.array([average_precision(together, total, LEVELS[at : at + 1])[0] for at in range(len(LEVELS))])
    macro = classes[:, has_truth].mean(1) if has_truth.any() else np.zeros(len(LEVELS))
    return Curves(micro, macro, classes)


def calibration_of(matches: Matches, score: np.ndarray) -> Calibration:
    """Scores [R] in [0, 1] of matched triplets to how often they are right."""
    is_true = true_positives(matches, score)
    num_bins = len(EDGES) - 1
    bins = (np.searchsorted(EDGES, score, "right") - 1).clip(0, num_bins - 1)
    num = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, values, minlength=num_bins) for values in (score, is_true))
    mean_score, right = (values / np.maximum(num, 1) for values in sums)
    return Calibration(num, mean_score, right)


def true_positives(matches: Matches, score: np.ndarray) -> np.ndarray:
    """Scores [R] of matched triplets to bool [R]: the first at a truth is right, those after it are not."""
    ranking = rank(matches, score)
    is_true = np.zeros(len(score), bool)
    is_true[ranking.rows[ranking.is_true]] = True
    return is_true


def image_ap(matches: Matches, score: np.ndarray, num_images: int, counted: np.ndarray) -> np.ndarray:
    """Scores [R] of matched triplets to each image's average precision in one ranking of its triplets, float64 [I].

    The mean over the image's truths of the precision at the rank where they are found, 0 where they are not; NaN for an
    image without truth, which has none.

    Args:
        matches, score: Of the triplets.
        num_images: I.
        counted: bool [K], the interactions whose triplets and truths are looked at.
    """
    is_true = true_positives(matches, score)
    order = np.lexsort((-score, matches.image))
    order = order[counted[matches.interaction[order]]]
    image, hit = matches.image[order], is_true[order]
    first = np.searchsorted(image, image)
    place = np.arange(len(image)) - first + 1
    found = np.cumsum(hit)
    found = found - (found - hit)[first]
    sums = np.bincount(image[hit], (found / place)[hit], minlength=num_images)
    num_truths = np.bincount(matches.truth_image[counted[matches.truth_interaction]], minlength=num_images)
    return np.divide(sums, num_truths, out=np.full(num_images, np.nan), where=num_truths > 0)


def image_disagreement(image: np.ndarray, first: np.ndarray, second: np.ndarray, num_images: int) -> np.ndarray:
    """Two scores of the same triplets to how differently they are spread over each image's triplets, float64 [I].

    Half the sum of absolute differences of the two, each divided by its sum over the image: 0 for equal spreads, 1
    where no triplet has a score in both.
    """
    shares = []
    for score in (first, second):
        total = np.bincount(image, score, minlength=num_images)[image]
        shares.append(np.divide(score, total, out=np.zeros(len(score)), where=total > 0))
    return np.bincount(image, np.abs(shares[0] - shares[1]), minlength=num_images) / 2
