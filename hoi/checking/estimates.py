"""Precision and average precision of all predictions from marks on a sample, each with a 95 % interval.

Precision is a weighted mean over strata: a stratum's marks stand for all its triplets. A stratum without a mark (yet)
takes those of the nearest one by rank. The interval is Wilson's with the effective number of marks `1 / Σ W²(1 - f)/n`
(W a stratum's share of the triplets, n its marks, f its marked fraction): it needs no model, and closes when all is
marked. Strata that differ make it wider than necessary.

Average precision needs a verdict on every triplet. The missing ones are sampled many times from a logistic regression
of the marks on rank; the value is the mean over these samples, the interval their central 95 %. It is the mean of the
precision at each right triplet, over the triplets of the file: what no prediction found is not in it.

Shapes: N triplets, K phrases, S samples, P parameters of the regression.

Source: Wilson, JASA 1927; effective number as in Franco et al., "Comparative study of confidence intervals for
proportions in complex sample surveys", Journal of Survey Statistics and Methodology 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

MIN_MARKS = 2
"""Fewer in a stratum or of a phrase say nothing of a spread."""
SPREADS = tuple(product((0.25, 1.0, 2.0, 4.0), (0.25, 1.0, 2.0)))
"""Prior standard deviations of a phrase's own intercept and slope, in logits; averaged over by evidence."""
COMMON = (3.0, 4.0, 4.0)
"""Prior standard deviations of the common intercept, slope in the phrase's rank, and slope in the rank of all."""
STEPS = 50
LONGEST_STEP = 2.0
SETTLED = 1e-5
Z = 1.959964
"""Of 95 %."""
MAX_CELLS = 8_000_000
"""Verdicts sampled at most, but at least MIN_SAMPLES of each triplet."""
NUM_SAMPLES = 1000
MIN_SAMPLES = 200


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
    """What the marks say of a phrase, or of all: no precision without a mark, no AP below two."""

    num_triplets: int
    num_marked: int
    num_right: int
    precision: Estimate | None
    ap: Estimate | None


@dataclass(frozen=True)
class Results:
    """What the marks say of K phrases, of all triplets in one ranking, and the mean over phrases that have an AP."""

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
    """Estimate precision and AP of all triplets from verdicts on some.

    Args:
        phrase: int64 [N], 0..K-1.
        score: [N], of which only the order counts.
        stratum: int64 [N], from which marks were drawn alike.
        marked, right: bool [N]; `right` is read where `marked` is True.
    """
    rows = [np.flatnonzero(phrase == k) for k in range(num_phrases)]
    everything = np.arange(len(phrase))
    all_ap, mean_ap = None, None
    phrase_ap: list[Estimate | None] = [None] * num_phrases
    if marked.sum() >= MIN_MARKS:
        num = int(np.clip(MAX_CELLS // len(phrase), MIN_SAMPLES, NUM_SAMPLES))
        verdicts = sample_verdicts(phrase, score, marked, right, num_phrases, num, seed)
        all_ap = _interval(ranked_precision(verdicts[:, _by_score(score, everything)]))
        samples = {
            k: ranked_precision(verdicts[:, _by_score(score, rows[k])])
            for k in range(num_phrases)
            if marked[rows[k]].sum() >= MIN_MARKS
        }
        phrase_ap = [_interval(samples[k]) if k in samples else None for k in range(num_phrases)]
        mean_ap = _interval(np.mean(list(samples.values()), 0)) if samples else None

    def result(of: np.ndarray, ap: Estimate | None) -> Result:
        share = precision(stratum[of], marked[of], right[of])
        return Result(len(of), int(marked[of].sum()), int((marked & right)[of].sum()), share, ap)

    phrases = [result(of, ap) for of, ap in zip(rows, phrase_ap, strict=True)]
    return Results(phrases, result(everything, all_ap), mean_ap)


def sample_verdicts(
    phrase: np.ndarray, score: np.ndarray, marked: np.ndarray, right: np.ndarray, num_phrases: int, num: int, seed: int
) -> np.ndarray:
    """Sample complete verdicts, bool [S, N], from the posterior given some marks; see `estimate`."""
    rng = np.random.default_rng(seed)
    x = _height(rank_share(phrase, score, num_phrases))
    z = _height(rank_share(np.zeros_like(phrase), score, 1))
    known, column = np.unique(phrase[marked], return_inverse=True)
    design = np.zeros((len(column), 3 + 2 * len(known)))
    design[:, :3] = np.stack([np.ones(len(column)), x[marked], z[marked]], axis=1)
    design[np.arange(len(column)), 3 + column] = 1
    design[np.arange(len(column)), 3 + len(known) + column] = x[marked]

    priors = [np.array([*COMMON, *[a] * len(known), *[b] * len(known)]) for a, b in SPREADS]
    fits = [_fit(design, right[marked].astype(float), prior) for prior in priors]
    evidence = np.array([fit[2] for fit in fits])
    weights = np.exp(evidence - evidence.max())
    counts = rng.multinomial(num, weights / weights.sum())
    verdicts = np.empty((num, len(phrase)), bool)
    begin = 0
    for (values, factor, _), spread, count in zip(fits, SPREADS, counts, strict=True):
        drawn = values + rng.normal(size=(count, len(values))) @ factor.T
        per_phrase = rng.normal(size=(2, count, num_phrases)) * np.array(spread)[:, None, None]
        per_phrase[0][:, known], per_phrase[1][:, known] = drawn[:, 3 : 3 + len(known)], drawn[:, 3 + len(known) :]
        intercept, slope = drawn[:, :1] + per_phrase[0][:, phrase], drawn[:, 1:2] + per_phrase[1][:, phrase]
        logit = intercept + slope * x + drawn[:, 2:3] * z
        verdicts[begin : begin + count] = rng.random(logit.shape) < _logistic(logit)
        begin += count
    verdicts[:, marked] = right[marked]
    return verdicts


def rank_share(phrase: np.ndarray, score: np.ndarray, num_phrases: int) -> np.ndarray:
    """Return each triplet's place in the ranking of its phrase, float64 [N]: (rank - 1/2) / number, so 0 is the top."""
    order = np.lexsort((np.arange(len(score)), -score, phrase))
    sizes = np.bincount(phrase, minlength=num_phrases)
    starts = np.cumsum(sizes) - sizes
    share = np.zeros(len(score))
    share[order] = (np.arange(len(score)) - starts[phrase[order]] + 0.5) / sizes[phrase[order]]
    return share


def _height(share: np.ndarray) -> np.ndarray:
    # Places in a ranking, 0 the top, scaled to mean 0 and spread 1, steep at the top.
    return (2 / 3 - np.sqrt(share)) / np.sqrt(1 / 18)


def _fit(design: np.ndarray, right: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    # The most likely parameters [P], a factor [P, P] of their covariance, and the log evidence.
    values, precisions = np.zeros(len(prior)), prior**-2
    for _ in range(STEPS):
        chance = _logistic(design @ values)
        slope = design.T @ (right - chance) - precisions * values
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(precisions)
        step = np.linalg.solve(curvature, slope)
        values = values + step / max(1.0, np.abs(step).max() / LONGEST_STEP)
        if np.abs(step).max() < SETTLED:
            break
    logit = design @ values
    likelihood = float((right * logit - np.logaddexp(0, logit)).sum())
    penalty = float((precisions * values**2).sum() - np.log(precisions).sum() + np.linalg.slogdet(curvature)[1])
    factor = np.linalg.inv(np.linalg.cholesky(curvature)).T
    return values, factor, likelihood - penalty / 2


def _logistic(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -500, 500))))


def precision(stratum: np.ndarray, marked: np.ndarray, right: np.ndarray) -> Estimate | None:
    """Estimate the share of triplets that is right from strata and verdicts; None without a mark."""
    num_strata = int(stratum.max(initial=-1)) + 1
    size = np.bincount(stratum, minlength=num_strata)
    num_marked = np.bincount(stratum[marked], minlength=num_strata)
    num_right = np.bincount(stratum[marked & right], minlength=num_strata)
    has_marks, here = np.flatnonzero(num_marked), np.flatnonzero(size)
    if not len(has_marks):
        return None
    nearest = has_marks[np.abs(has_marks[None, :] - here[:, None]).argmin(1)]
    size = np.bincount(nearest, weights=size[here], minlength=num_strata)[has_marks]
    num_marked, num_right = num_marked[has_marks], num_right[has_marks]
    share = size / size.sum()
    value = float((share * num_right / num_marked).sum())
    spread = float((share**2 * (1 - num_marked / size) / num_marked).sum())
    return Estimate(value, *wilson(value, 1 / spread)) if spread > 0 else Estimate(value, value, value)


def wilson(share: float, num: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `num`."""
    middle = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    half = Z / (1 + Z**2 / num) * np.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def ranked_precision(right: np.ndarray) -> np.ndarray:
    """Return the mean precision at the right ones of verdicts by falling score, bool [S, N]: float64 [S], 0 without."""
    num_right = np.cumsum(right, axis=1)
    at_each = num_right / np.arange(1, right.shape[1] + 1)
    return (at_each * right).sum(1) / np.maximum(num_right[:, -1:].sum(1), 1)


def _by_score(score: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows[np.argsort(-score[rows], kind="stable")]


def _interval(values: np.ndarray) -> Estimate:
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high))
