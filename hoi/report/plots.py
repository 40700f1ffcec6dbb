"""Curves, calibration and differences, computed and drawn as inline SVG that takes its colours from the page.

Series 1 to 6 are the CSS classes `s1` to `s6`. Plots are drawn in a box of fixed units and scaled by the page.
Everything that is text is escaped.

Shapes: R triplets, I images, K interactions, L recalls, N bins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from hoi.evaluation.hico import Matches, Ranking, average_precision, rank

LEVELS = np.arange(51) / 50  # recalls at which curves are read
EDGES = np.array([0.0, *10.0 ** (np.arange(-9, 1) / 3)])
"""Of the bins of scores: three a decade from 0.001 to 1, and one for what is less. Most scores are small products."""
WIDTH, HEIGHT = 360.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 10.0, 40.0
FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Curves:
    """Best precision at each recall of `LEVELS` or more, as fractions."""

    micro: np.ndarray  # float64 [L], all triplets in one ranking by score
    macro: np.ndarray  # float64 [L], the mean over interactions with truth, each ranked alone
    classes: np.ndarray  # float64 [L, K]


@dataclass(frozen=True)
class Calibration:
    """Triplets by their score, in the bins between `EDGES`."""

    num: np.ndarray  # int64 [N]
    score: np.ndarray  # float64 [N], their mean; 0 where there is none
    right: np.ndarray  # float64 [N], the share that is a true positive; 0 where there is none

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over triplets of |share that is right − mean score| of their bin."""
        return float((self.num * np.abs(self.right - self.score)).sum() / max(1, self.num.sum()))


def curves_of(matches: Matches, score: np.ndarray) -> Curves:
    """Return precision over recall of matched triplets."""
    ranking, num_positives = rank(matches, score), matches.num_positives()
    has_truth = num_positives > 0
    order = np.argsort(-score[ranking.rows], kind="stable")
    together = Ranking(ranking.rows[order], ranking.is_true[order], np.array([0, len(order)]))
    total = np.array([num_positives.sum()])
    classes = np.stack([average_precision(ranking, num_positives, level) for level in LEVELS[:, None]])
    micro = np.array([average_precision(together, total, level)[0] for level in LEVELS[:, None]])
    macro = classes[:, has_truth].mean(1) if has_truth.any() else np.zeros(len(LEVELS))
    return Curves(micro, macro, classes)


def calibration_of(matches: Matches, score: np.ndarray) -> Calibration:
    """Return how often matched triplets are right, by their scores in [0, 1]."""
    is_true = true_positives(matches, score)
    num_bins = len(EDGES) - 1
    bins = (np.searchsorted(EDGES, score, "right") - 1).clip(0, num_bins - 1)
    num = np.bincount(bins, minlength=num_bins)
    sums = (np.bincount(bins, values, minlength=num_bins) for values in (score, is_true))
    mean_score, right = (values / np.maximum(num, 1) for values in sums)
    return Calibration(num, mean_score, right)


def true_positives(matches: Matches, score: np.ndarray) -> np.ndarray:
    """Return which matched triplets are right, bool [R]: the first at a truth is, those after it are not."""
    ranking = rank(matches, score)
    is_true = np.zeros(len(score), bool)
    is_true[ranking.rows[ranking.is_true]] = True
    return is_true


def image_ap(matches: Matches, score: np.ndarray, num_images: int, counted: np.ndarray) -> np.ndarray:
    """Return each image's average precision in one ranking of its triplets, float64 [I].

    The mean over the image's truths of the precision at the rank where they are found, 0 where they are not; NaN for an
    image without truth. Only the triplets and truths of the counted interactions (bool [K]) are looked at.
    """
    is_true = true_positives(matches, score)
    order = np.lexsort((-score, matches.image))
    order = order[counted[matches.interaction[order]]]
    image, hit = matches.image[order], is_true[order]
    first = np.searchsorted(image, image)
    place = np.arange(len(image)) - first + 1
    num_hits = np.cumsum(hit)
    num_hits = num_hits - (num_hits - hit)[first]
    sums = np.bincount(image[hit], (num_hits / place)[hit], minlength=num_images)
    num_truths = np.bincount(matches.truth_image[counted[matches.truth_interaction]], minlength=num_images)
    return np.divide(sums, num_truths, out=np.full(num_images, np.nan), where=num_truths > 0)


def image_disagreement(image: np.ndarray, first: np.ndarray, second: np.ndarray, num_images: int) -> np.ndarray:
    """Return how differently two scores of the same triplets are spread over each image's triplets, float64 [I].

    Half the sum of absolute differences of the two, each divided by its sum over the image: 0 for equal spreads, 1
    where no triplet has a score in both.
    """
    shares = []
    for score in (first, second):
        total = np.bincount(image, score, minlength=num_images)[image]
        shares.append(np.divide(score, total, out=np.zeros(len(score)), where=total > 0))
    return np.bincount(image, np.abs(shares[0] - shares[1]), minlength=num_images) / 2


def recall_plot(title: str, series: Sequence[tuple[str, np.ndarray]]) -> Markup:
    """Draw precision ([L]) over recall: one line a series, with a legend below."""
    line = Markup('<polyline class="line s{}" points="{}"><title>{}</title></polyline>')
    lines = [
        line.format(number, _points(zip(LEVELS.tolist(), values.tolist(), strict=True)), name)
        for number, (name, values) in enumerate(series, start=1)
    ]
    plot = _frame(title, "recall", "precision", [(at, f"{at:.1f}") for at in FIFTHS], Markup("").join(lines))
    return _figure(plot, [name for name, _ in series])


def calibration_plot(title: str, series: Sequence[tuple[str, Calibration]]) -> Markup:
    """Draw the share that is right over the mean score, for bins with a triplet; scores on a logarithmic axis."""
    lowest = math.log10(EDGES[1])

    def across(score: float) -> float:
        return 1 - max(math.log10(score), lowest) / lowest if score > 0 else 0.0

    ideal = [10 ** (lowest * (1 - at / 50)) for at in range(51)]
    parts = [Markup('<polyline class="ideal" points="{}"/>').format(_points((across(s), s) for s in ideal))]
    for number, (name, bins) in enumerate(series, start=1):
        kept = [(s, r, n) for s, r, n in zip(bins.score, bins.right, bins.num, strict=True) if n > 0]
        points = _points((across(s), r) for s, r, _ in kept)
        parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(number, points))
        dot = Markup('<circle class="dot s{}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>')
        for s, r, n in kept:
            said = f"{name}: {n} triplets, mean score {s:.2g}, {100 * r:.0f} % right"
            parts.append(dot.format(number, _n(_x(across(s))), _n(_y(r)), said))
    ticks = [(across(10.0**power), f"{10.0**power:g}") for power in range(math.ceil(lowest), 1)]
    plot = _frame(title, "mean score of the bin", "share that is right", ticks, Markup("").join(parts))
    return _figure(plot, [name for name, _ in series])


def difference_bars(title: str, bars: Sequence[tuple[str, float]], series: int) -> Markup:
    """Draw names and differences of one sign as horizontal bars, from top to bottom; `series` gives the colour."""
    row, left, right, width = 22.0, 150.0, 44.0, 420.0
    largest = max((abs(value) for _, value in bars), default=1.0)
    bar, parts = Markup('<rect class="bar s{}" x="{}" y="{}" width="{}" height="14"/>'), []
    for place, (name, value) in enumerate(bars):
        y, length = row * place + row / 2, (width - left - right) * abs(value) / largest
        parts.append(_text(left - 8, y + 4, name, "end"))
        parts.append(bar.format(series, _n(left), _n(y - 7), _n(length)))
        parts.append(_text(left + length + 5, y + 4, f"{value:+.1f}".replace("-", "−"), "start", "number"))
    return _svg("plot", width, row * len(bars), title, parts)


def spread_plot(title: str, rows: Sequence[tuple[str, float, Sequence[float]]], series: Mapping[str, int]) -> Markup:
    """Draw one line a method: its mean as a dot, every seed as a ring.

    `rows` are name, mean and values of the seeds, in percent; names without a colour in `series` have the sixth.
    """
    row, left, right, width = 20.0, 142.0, 52.0, 460.0
    values = [value for _, mean, seeds in rows for value in (mean, *seeds)]
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(values) / 10)
    high, height = max(high, low + 10), row * len(rows)

    def x(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    parts = []
    for tick in range(low, high + 1, 10):
        parts.append(_line("grid", x(tick), 0, x(tick), height))
        parts.append(_text(x(tick), height + 14, str(tick), "middle", "number"))
    dot = Markup('<circle class="dot s{}" cx="{}" cy="{}" r="4.5"/>')
    ring = Markup('<circle class="seed" cx="{}" cy="{}" r="2.5"/>')
    for place, (name, mean, seeds) in enumerate(rows):
        y = row * place + row / 2
        parts.append(_text(left - 8, y + 4, name, "end"))
        parts.append(dot.format(series.get(name, 6), _n(x(mean)), _n(y)))
        parts += [ring.format(_n(x(value)), _n(y)) for value in seeds]
        parts.append(_text(width - 4, y + 4, f"{mean:.2f}", "end", "number"))
    return _svg("plot wide", width, height + 20, title, parts)


def _frame(title: str, x_name: str, y_name: str, x_ticks: Sequence[tuple[float, str]], inside: Markup) -> Markup:
    # A unit square with axes and their numbers; x_ticks are places from 0 to 1 with their numbers.
    parts = []
    for at, number in x_ticks:
        parts.append(_line("grid", _x(at), _y(0), _x(at), _y(1)))
        parts.append(_text(_x(at), _y(0) + 15, number, "middle", "number"))
    for at in FIFTHS:
        parts.append(_line("grid", _x(0), _y(at), _x(1), _y(at)))
        parts.append(_text(LEFT - 6, _y(at) + 4, f"{at:.1f}", "end", "number"))
    parts.append(_text((_x(0) + _x(1)) / 2, HEIGHT - 5, x_name, "middle"))
    upright = Markup('<text x="12" y="{0}" text-anchor="middle" transform="rotate(-90 12 {0})">{1}</text>')
    parts.append(upright.format(_n((_y(0) + _y(1)) / 2), y_name))
    return _svg("plot", WIDTH, HEIGHT, title, [*parts, inside])


def _figure(plot: Markup, names: Sequence[str]) -> Markup:
    item = Markup('<li><span class="key s{}"></span>{}</li>')
    legend = Markup("").join(item.format(number, name) for number, name in enumerate(names, start=1))
    return Markup('{}<ul class="legend">{}</ul>').format(plot, legend)


def _x(value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * value


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value


def _svg(kind: str, width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        kind, _n(width), _n(height), title, Markup("").join(parts)
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, _n(x1), _n(y1), _n(x2), _n(y2))


def _points(values: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_n(_x(x))},{_n(_y(y))}" for x, y in values)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _n(x), _n(y), anchor, text)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
