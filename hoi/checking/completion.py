"""Verdicts on some triplets to likely verdicts on all, many times over.

A triplet is right with the chance `logistic(a + a_k + (b + b_k) x + c z)`: x says how high it ranks in its phrase k, z
how high among all, a_k and b_k how phrases differ from one another. How much they differ is not known either: the
spreads (τ, τ') of a_k and b_k take every value of a grid, weighted by how well each explains the marks (Laplace's
approximation of the evidence), and the other parameters are drawn from the normal distribution around their most likely
values. Marked triplets keep their verdicts. With few marks a phrase leans on the others, and its draws spread widely.

Letters: N triplets, K phrases, G phrases with marks, n marks, P = 3 + 2G parameters, S draws.

Source: Laplace approximation and evidence as in Bishop, "Pattern Recognition and Machine Learning", 4.4 and 4.5.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from hoi.checking.sample import rank_share

SPREADS = tuple(product((0.25, 1.0, 2.0, 4.0), (0.25, 1.0, 2.0)))
"""Standard deviations of a_k and b_k, in logits."""
COMMON = (3.0, 4.0, 4.0)
"""Standard deviations of a, b and c."""
STEPS = 50
LONGEST_STEP = 2.0
SETTLED = 1e-5


def complete(
    phrase: np.ndarray,
    score: np.ndarray,
    marked: np.ndarray,
    right: np.ndarray,
    num_phrases: int,
    num: int,
    seed: int,
) -> np.ndarray:
    """Marks to verdicts on all triplets, bool [S, N].

    Args:
        phrase: int64 [N].
        score: [N], only its order counts.
        marked, right: bool [N]; at least one is marked.
        num_phrases: K.
        num: S.
        seed: Of the draws.
    """
    dice = np.random.default_rng(seed)
    x = _height(rank_share(phrase, score, num_phrases))
    z = _height(rank_share(np.zeros_like(phrase), score, 1))
    known, column = np.unique(phrase[marked], return_inverse=True)
    design = np.zeros((len(column), 3 + 2 * len(known)))
    design[:, :3] = np.stack([np.ones(len(column)), x[marked], z[marked]], axis=1)
    design[np.arange(len(column)), 3 + column] = 1
    design[np.arange(len(column)), 3 + len(known) + column] = x[marked]

    fits = [_fit(design, right[marked].astype(float), np.array(_prior(spread, len(known)))) for spread in SPREADS]
    evidence = np.array([fit[2] for fit in fits])
    weights = np.exp(evidence - evidence.max())
    counts = dice.multinomial(num, weights / weights.sum())
    verdicts = np.empty((num, len(phrase)), bool)
    begin = 0
    for (values, factor, _), spread, count in zip(fits, SPREADS, counts, strict=True):
        drawn = values + dice.normal(size=(count, len(values))) @ factor.T
        own = dice.normal(size=(2, count, num_phrases)) * np.array(spread)[:, None, None]
        own[0][:, known], own[1][:, known] = drawn[:, 3 : 3 + len(known)], drawn[:, 3 + len(known) :]
        logit = drawn[:, :1] + own[0][:, phrase] + (drawn[:, 1:2] + own[1][:, phrase]) * x + drawn[:, 2:3] * z
        verdicts[begin : begin + count] = dice.random(logit.shape) < _logistic(logit)
        begin += count
    verdicts[:, marked] = right[marked]
    return verdicts


def _height(share: np.ndarray) -> np.ndarray:
    """Places in a ranking, 0 the top, to heights of mean 0 and spread 1, steep at the top."""
    return (2 / 3 - np.sqrt(share)) / np.sqrt(1 / 18)


def _prior(spread: tuple[float, float], num_known: int) -> list[float]:
    """Standard deviations of all P parameters."""
    return [*COMMON, *[spread[0]] * num_known, *[spread[1]] * num_known]


def _fit(design: np.ndarray, right: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Marks to the most likely parameters [P], a factor [P, P] of their covariance, and the log evidence."""
    values, precision = np.zeros(len(prior)), prior**-2
    for _ in range(STEPS):
        chance = _logistic(design @ values)
        slope = design.T @ (right - chance) - precision * values
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(precision)
        step = np.linalg.solve(curvature, slope)
        values = values + step / max(1.0, np.abs(step).max() / LONGEST_STEP)
        if np.abs(step).max() < SETTLED:
            break
    logit = design @ values
    likelihood = float((right * logit - np.logaddexp(0, logit)).sum())
    penalty = float((precision * values**2).sum() - np.log(precision).sum() + np.linalg.slogdet(curvature)[1])
    factor = np.linalg.inv(np.linalg.cholesky(curvature)).T
    return values, factor, likelihood - penalty / 2


def _logistic(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -500, 500))))
