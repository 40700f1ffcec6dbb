"""Measure how often the check page's 95 % intervals contain the truth, on simulated files with known verdicts.

    python -m benchmarks.checking [--files 60]

Shapes: N triplets, K phrases.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from hoi.checking.estimates import Estimate, estimate, ranked_precision
from hoi.checking.session import draw_sample

SHAPES = ("logistic", "steep", "flat", "rare", "frequent", "step")
SIZES = ((1, 50), (5, 50), (20, 50), (79, 50), (20, 200))
NAMES = ("precision", "AP", "precision of a phrase", "AP of a phrase", "mean AP")


def draw_file(shape: str, num_phrases: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample phrases [N], scores [N] and verdicts [N]; `shape` says how the verdicts follow the scores."""
    sizes = np.maximum(3, np.exp(rng.normal(4, 1, num_phrases))).astype(int)
    phrase = np.repeat(np.arange(num_phrases), sizes)
    score = rng.beta(0.6, 1.5, len(phrase))
    if shape == "step":
        chance = np.where(score > rng.uniform(0.1, 0.9, num_phrases)[phrase], 0.95, 0.05)
    elif shape == "flat":
        chance = np.full(len(phrase), 0.3)
    else:
        slope, middle, spread = {"logistic": (6, 0.5, 1), "steep": (15, 0.6, 2), "rare": (8, 0.9, 1)}.get(
            shape, (4, -0.3, 1)
        )
        chance = 1 / (1 + np.exp(-(slope * (score - middle) + rng.normal(0, spread, num_phrases)[phrase])))
    return phrase, score, rng.random(len(phrase)) < chance


def coverage(shape: str, num_phrases: int, num_marks: int, num_files: int) -> dict[str, tuple[float, float]]:
    """Return the share of intervals that contain the truth, and their mean width, by NAMES."""
    held, widths = defaultdict(list), defaultdict(list)

    def note(name: str, interval: Estimate | None, truth: float) -> None:
        if interval is not None:
            held[name].append(interval.low - 1e-9 <= truth <= interval.high + 1e-9)
            widths[name].append(interval.high - interval.low)

    for seed in range(num_files):
        phrase, score, right = draw_file(shape, num_phrases, np.random.default_rng(seed))
        sample = draw_sample(phrase, score, num_phrases, num_marks, seed)
        marked = np.isin(np.arange(len(phrase)), sample.asked)
        results = estimate(phrase, score, sample.stratum, marked, right, num_phrases)
        rows = [np.flatnonzero(phrase == k) for k in range(num_phrases)]
        truths = [_ap(right[of], score[of]) for of in rows]
        note("precision", results.together.precision, float(right.mean()))
        note("AP", results.together.ap, _ap(right, score))
        for of, truth, result in zip(rows, truths, results.phrases, strict=True):
            if result.ap is not None:
                note("precision of a phrase", result.precision, float(right[of].mean()))
                note("AP of a phrase", result.ap, truth)
        asked = [truth for truth, result in zip(truths, results.phrases, strict=True) if result.ap is not None]
        note("mean AP", results.mean_ap, float(np.mean(asked)) if asked else 0.0)
    return {name: (float(np.mean(held[name])), float(np.mean(widths[name]))) for name in NAMES if held[name]}


def _ap(right: np.ndarray, score: np.ndarray) -> float:
    return float(ranked_precision(right[np.argsort(-score, kind="stable")][None])[0])


def main() -> None:
    """Print coverage and widths, smallest to largest over the shapes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=60, help="of each kind (default: %(default)s)")
    num_files = parser.parse_args().files
    print(f"{'phrases, marks':16}" + "".join(f"{name:>26}" for name in NAMES))
    for num_phrases, num_marks in SIZES:
        by_shape = [coverage(shape, num_phrases, num_marks, num_files) for shape in SHAPES]
        cells = []
        for name in NAMES:
            shares, widths = zip(*(each[name] for each in by_shape if name in each), strict=True)
            cells.append(f"{min(shares):.2f}-{max(shares):.2f} wide {min(widths):.2f}-{max(widths):.2f}")
        print(f"{f'{num_phrases}, {num_marks}':16}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
