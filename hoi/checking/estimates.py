"""Marks of a sample to precision and average precision, each with a 95 % interval.

Precision is a weighted mean over strata: what a stratum's marks say counts for all its triplets. A stratum without a
mark (yet) counts with the nearest one by rank. The interval is Wilson's with the effective number of marks
`1 / Σ W²(1 - f)/n` (W a stratum's share, n its marks, f the part of it that is marked): it needs no model, and closes
when all is marked. Strata that differ make it wider than it need be.

Average precision needs a verdict on every triplet. `hoi.checking.estimates` draws the missing ones many times; the
value is the mean over these, the interval their central 95 %. It is the plain kind, the mean of the precision at each
right triplet, over the triplets of the file: what no prediction found is not in it.

Letters: N triplets, H strata, K phrases, S completions.

Source: Wilson, JASA 1927; effective number as in Franco et al., "Comparative study of confidence intervals for
proportions in complex sample surveys", Journal of Survey Statistics and Methodology 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from hoi.checking.sample import MIN_MARKS, rank_share

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


Z = 1.959964
"""Of 95 %."""
MAX_CELLS = 8_000_000
"""Verdicts drawn at most, and at least MIN_COMPLETIONS of each triplet."""
COMPLETIONS = 1000
MIN_COMPLETIONS = 200


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} ({100 * self.low:.0f} to {100 * self.high:.0f})"


@dataclass(frozen=True)
class Result:
    """What marks say of a phrase, or of all.

    Args:
        num_triplets, num_marked, num_right: Of it.
        precision: None without a mark.
        ap: None below two marks.
    """

    num_triplets: int
    num_marked: int
    num_right: int
    precision: Estimate | None
    ap: Estimate | None


@dataclass(frozen=True)
class Results:
    """All that marks say.

    Args:
        phrases: K.
        together: Every triplet, in one ranking.
        mean_ap: Over the phrases that have an AP; None where there is none.
    """

    phrases: list[Result]
    together: Result
    mean_ap: Estimate | None


def estimate(
    phrase: np.ndarray,
    score: np.ndarray,
    stratum: np.ndarray,
    marked: np.ndarray,
    right: np.ndarray,
    num_phrases: int,
    seed: int = 0,
) -> Results:
    """Verdicts on some triplets to the figures of all.

    Args:
        phrase: int64 [N], 0..K-1.
        score: [N], only its order counts.
        stratum: int64 [N], from which marks were drawn alike.
        marked, right: bool [N]; `right` is read where `marked` is True.
        num_phrases: K.
        seed: Of the completions.
    """
    rows = [np.flatnonzero(phrase == k) for k in range(num_phrases)]
    everything = np.arange(len(phrase))
    all_ap, mean_ap = None, None
    phrase_ap: list[Estimate | None] = [None] * num_phrases
    if marked.sum() >= MIN_MARKS:
        num = int(np.clip(MAX_CELLS // len(phrase), MIN_COMPLETIONS, COMPLETIONS))
        drawn = complete(phrase, score, marked, right, num_phrases, num, seed)
        all_ap = _average(ranked_precision(drawn[:, _falling(score, everything)]))
        each = {
            k: ranked_precision(drawn[:, _falling(score, rows[k])])
            for k in range(num_phrases)
            if marked[rows[k]].sum() >= MIN_MARKS
        }
        phrase_ap = [_average(each[k]) if k in each else None for k in range(num_phrases)]
        mean_ap = _average(np.mean(list(each.values()), 0)) if each else None

    def result(of: np.ndarray, ap: Estimate | None) -> Result:
        found = precision(stratum[of], marked[of], right[of])
        return Result(len(of), int(marked[of].sum()), int((marked & right)[of].sum()), found, ap)

    phrases = [result(of, ap) for of, ap in zip(rows, phrase_ap, strict=True)]
    return Results(phrases, result(everything, all_ap), mean_ap)


def precision(stratum: np.ndarray, marked: np.ndarray, right: np.ndarray) -> Estimate | None:
    """Strata and verdicts of some triplets to the share that is right; None without a mark."""
    num_strata = int(stratum.max(initial=-1)) + 1
    size = np.bincount(stratum, minlength=num_strata)
    num_marked = np.bincount(stratum[marked], minlength=num_strata)
    num_right = np.bincount(stratum[marked & right], minlength=num_strata)
    has, here = np.flatnonzero(num_marked), np.flatnonzero(size)
    if not len(has):
        return None
    nearest = has[np.abs(has[None, :] - here[:, None]).argmin(1)]
    size = np.bincount(nearest, weights=size[here], minlength=num_strata)[has]
    num_marked, num_right = num_marked[has], num_right[has]
    share = size / size.sum()
    value = float((share * num_right / num_marked).sum())
    spread = float((share**2 * (1 - num_marked / size) / num_marked).sum())
    return Estimate(value, *wilson(value, 1 / spread)) if spread > 0 else Estimate(value, value, value)


def wilson(share: float, num: float) -> tuple[float, float]:
    """A share of `num` to its 95 % interval."""
    middle = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z / (1 + Z**2 / num) * np.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def ranked_precision(right: np.ndarray) -> np.ndarray:
    """Verdicts by falling score, bool [S, N], to the mean precision at each right one, float64 [S]; 0 without any."""
    found = np.cumsum(right, axis=1)
    at_each = found / np.arange(1, right.shape[1] + 1)
    return (at_each * right).sum(1) / np.maximum(found[:, -1:].sum(1), 1)


def _falling(score: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-score[rows], kind="stable")]


def _average(values: np.ndarray) -> Estimate:
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))
