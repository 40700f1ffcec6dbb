"""How alike two scorers, or two looks of one scorer, rank the same pairs.

Average precision asks how the pairs of one interaction are ranked, so that is what is compared: Spearman's correlation
over the pairs that admit the interaction.

Letters: P pairs, K interactions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

MIN_PAIRS = 5
"""Fewer pairs have no ranking worth the name."""


def rank_agreement(
    first: Float[np.ndarray, "P K"], second: Float[np.ndarray, "P K"], admitted: Bool[np.ndarray, "P K"]
) -> list[float | None]:
    """Two scores of the same pairs to Spearman's correlation for each interaction.

    Returns:
        K numbers in [-1, 1]; None with fewer than `MIN_PAIRS` pairs, or where either scores all pairs alike.
    """
    return [spearman(first[admitted[:, k], k], second[admitted[:, k], k]) for k in range(first.shape[1])]


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Correlation of the ranks, ties sharing theirs; None where it has no meaning."""
    if len(first) < MIN_PAIRS:
        return None
    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(values) == 0 for values in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def same_first(
    first: Float[np.ndarray, "P K"], second: Float[np.ndarray, "P K"], admitted: Bool[np.ndarray, "P K"]
) -> float | None:
    """Share of the pairs that admit two interactions or more on which both put the same one first; None without any."""
    rows = np.flatnonzero(admitted.sum(1) > 1)
    if not len(rows):
        return None
    best = [np.where(admitted[rows], values[rows], -np.inf).argmax(1) for values in (first, second)]
    return float((best[0] == best[1]).mean())


def mean_of(values: list[float | None]) -> float | None:
    """Mean of those that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
