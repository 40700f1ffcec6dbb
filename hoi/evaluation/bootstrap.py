"""Paired bootstrap: mean average precision of methods under the same resamples of the images.

Drawing an image w times copies its predictions and its truth w times. Which predictions are true positives is settled
inside an image, so a resample only reweighs a fixed ranking: precision and recall become ratios of weighted sums.

Shapes: S resamples, I images, R ranked predictions, T true positives, K interactions.

Source: the bootstrap is Efron's percentile interval; pairing means that both methods see the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from hoi.evaluation.hico import Matches, rank

_MAX_CELLS = 1 << 22  # size of the largest table held at once; bounds memory, changes nothing


@dataclass(frozen=True)
class Resamples:
    """Draws of the images of a split, with replacement."""

    weights: np.ndarray  # int32 [S, I], how often each draw holds each image; rows sum to I

    @classmethod
    def draw(cls, num_resamples: int, num_images: int, seed: int) -> Resamples:
        """Draw; the same numbers give the same draws."""
        rng = np.random.default_rng(seed)
        shares = np.full(num_images, 1 / num_images)
        return cls(rng.multinomial(num_images, shares, num_resamples).astype(np.int32))


@dataclass(frozen=True)
class ResampledMap:
    """Mean AP of one set of predictions, as a fraction."""

    observed: float  # on the images as they are
    resampled: np.ndarray  # float64 [S], in every resample


@dataclass(frozen=True)
class Difference:
    """A − B in mean AP, as fractions."""

    observed: float  # on the images as they are
    mean: float  # over the resamples, as is sd
    sd: float
    low: float  # the central 95 % of the resamples
    high: float
    num_resamples: int


def resample_map(
    matches: Matches,
    score: np.ndarray,
    resamples: Resamples,
    images: np.ndarray | None = None,
    interactions: np.ndarray | None = None,
) -> ResampledMap:
    """Return mean AP of matched predictions (scores [R]) on the images as they are and in every resample.

    Only the given images (bool [I]) and interactions (bool [K]) count. Interactions that lose all their truth in a
    resample leave its mean, for every method alike.
    """
    as_it_is = np.ones((1, resamples.weights.shape[1]), np.int32)
    weights = np.concatenate([as_it_is, resamples.weights])
    maps = _weighted_maps(matches, score, weights if images is None else weights * images, interactions)
    return ResampledMap(float(maps[0]), maps[1:])


def paired_difference(a: Sequence[ResampledMap], b: Sequence[ResampledMap]) -> Difference:
    """Return the interval of A − B on the same resamples.

    A resample takes the mean over the seeds of a method: scores of one trained model are never mixed with another's.
    """
    observed = np.mean([m.observed for m in a]) - np.mean([m.observed for m in b])
    resampled = np.mean([m.resampled for m in a], 0) - np.mean([m.resampled for m in b], 0)
    mean, sd, (low, high) = float(resampled.mean()), float(resampled.std()), np.percentile(resampled, [2.5, 97.5])
    return Difference(float(observed), mean, sd, float(low), float(high), len(resampled))


def _weighted_maps(
    matches: Matches, score: np.ndarray, weights: np.ndarray, interactions: np.ndarray | None
) -> np.ndarray:
    # Mean AP of the chosen interactions under each row of image weights [S, I], float64 [S].
    ranking = rank(matches, score)
    image = matches.image[ranking.rows]
    position = np.flatnonzero(ranking.is_true)
    bounds = np.searchsorted(position, ranking.starts)
    interaction = np.repeat(np.arange(matches.num_interactions), np.diff(bounds))
    is_first = np.isin(np.arange(len(position)), bounds)

    num_positives = _weigh(weights, matches.truth_image, matches.truth_interaction, matches.num_interactions)
    # Ranked rows go to the next true positive of their interaction; what comes after its last one decides nothing.
    next_true = np.searchsorted(position, np.arange(len(image)))
    counts = next_true < np.repeat(bounds[1:], np.diff(ranking.starts))
    num_ranked = _weigh(weights, image[counts], next_true[counts], len(position))

    maps = np.zeros(len(weights))
    at_once = max(1, _MAX_CELLS // max(1, len(position)))
    for start in range(0, len(maps), at_once):
        here = slice(start, start + at_once)
        num_true = _restarting_sums(weights[here][:, image[position]], is_first)
        precision = num_true / np.maximum(_restarting_sums(num_ranked[here], is_first), 1)
        recall = num_true / np.maximum(num_positives[here][:, interaction], 1)
        # A level is read at the true positive that first reaches it, as the best precision from there on.
        reached = np.searchsorted(matches.levels, recall, "right")
        before = np.where(is_first, 0, np.roll(reached, 1, axis=1))
        # Precision never exceeds 1, so offsets of 2 from interaction to interaction restart the running maximum.
        offsets = 2.0 * (interaction[-1:] - interaction)
        highest = np.maximum.accumulate((precision + offsets)[:, ::-1], axis=1)[:, ::-1] - offsets
        steps = (reached - before) * highest
        counted = num_positives[here] > 0
        if interactions is not None:
            steps, counted = steps * interactions[interaction], counted & interactions
        maps[here] = steps.sum(1) / len(matches.levels) / np.maximum(counted.sum(1), 1)
    return maps


def _weigh(weights: np.ndarray, image: np.ndarray, column: np.ndarray, num_columns: int) -> np.ndarray:
    # Summed weights of the rows, each of an image and for a column, in every resample: int64 [S, num_columns].
    counts = coo_array((np.ones(len(image), np.int64), (column, image)), (num_columns, weights.shape[1]))
    return np.ascontiguousarray((counts @ weights.T).T)


def _restarting_sums(values: np.ndarray, is_first: np.ndarray) -> np.ndarray:
    """Return running sums along the columns of [S, T] that start anew wherever `is_first` ([T]), int64."""
    sums = np.cumsum(values, axis=1, dtype=np.int64)
    firsts = np.flatnonzero(is_first)
    offsets = (sums - values)[:, firsts]
    return sums - np.repeat(offsets, np.diff(firsts, append=len(is_first)), axis=1)
