"""Rows of the result table: made by one evaluator for every method, compared over paired resamples, and printed.

Shapes: K interactions, I images, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import Struct

from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.evaluation.bootstrap import Difference, ResampledMap, Resamples, paired_difference, resample_map
from hoi.evaluation.hico import HicoResult, match, score_matches, zero_shot_means
from hoi.files import convert, read_json
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import Vocabulary

MEANS = ("full", "rare", "non_rare", "without_no_interaction", "one_pair", "several_pairs")
COLUMNS = {"full": "full", "rare": "rare", "non_rare": "non-rare", "one_pair": "1 pair", "several_pairs": "2+ pairs"}
"""Printed means, by name and heading."""
SHARES = ("unseen", "seen", "full")  # zero-shot means
NO_SPREAD = " " * len(" ± 0.00")


@dataclass(frozen=True)
class ResultRow:
    """One method, trained once or not at all."""

    name: str
    seed: int | None  # of the training; None where nothing is trained
    means: dict[str, float | None]  # percent, by MEANS; None where no interaction has truth
    result: HicoResult
    resampled: ResampledMap  # for intervals of differences of `full`
    settings: dict[str, Any]  # what made the row
    extra: dict[str, Any] = field(default_factory=dict)  # figures of other metrics, by their name
    resampled_means: dict[str, ResampledMap] = field(default_factory=dict)  # for intervals of other means

    def to_dict(self, num_images: int) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            **{name: None if value is None else round(value, 4) for name, value in self.means.items()},
            "num_images": num_images,
            "num_positives": int(self.result.num_positives.sum()),
            **self.extra,
            "knobs": self.settings,
        }


class Metric(Protocol):
    """Figures of every row beside mean average precision; registered in `METRICS`."""

    @classmethod
    def open(cls, config: PipelineConfig, split: CacheSplit) -> Metric | None:
        """Read what the evaluated split needs; None where its dataset has no such figures."""

    def figures(self, triplets: Triplets) -> dict[str, Any]:
        """Return a method's figures, which go into results.json under the metric's name."""

    @staticmethod
    def summary(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
        """Return one plain record a method, for summary.json."""

    @staticmethod
    def table(summary: Sequence[dict[str, Any]]) -> str:
        """Return the summary as printed."""


class Evaluator:
    """A labelled split that evaluates every method alike: S resamples of `full` and of the means `intervals`."""

    def __init__(
        self,
        labels: HoiLabels,
        num_images: int,
        vocabulary: Vocabulary,
        rare: np.ndarray,  # bool [K]
        num_resamples: int,
        metrics: Mapping[str, Metric] | None = None,
        intervals: Sequence[str] = (),
    ) -> None:
        self.labels, self.vocabulary, self.rare = labels, vocabulary, rare
        self.metrics, self.intervals = metrics or {}, intervals
        self.num_pairs = annotated_pairs(labels, num_images)
        self._resamples = Resamples.draw(num_resamples, num_images, seed=0)

    def evaluate(self, name: str, seed: int | None, predictions: Triplets, settings: dict[str, Any]) -> ResultRow:
        """Return the row of a method's triplets on the whole split."""
        matches = match(predictions, self.labels, len(self.vocabulary), protocol="official")
        result, one, several = (
            score_matches(matches, predictions.score, self.rare, self.vocabulary.is_no_interaction, images)
            for images in (None, self.num_pairs == 1, self.num_pairs > 1)
        )
        means = [result.full, result.rare, result.non_rare, result.without_no_interaction, one.full, several.full]
        percent = {n: None if value is None else 100 * value for n, value in zip(MEANS, means, strict=True)}
        resampled = {
            mean: resample_map(matches, predictions.score, self._resamples, *self._part(mean))
            for mean in ("full", *self.intervals)
        }
        full = resampled.pop("full")
        extra = {metric: self.metrics[metric].figures(predictions) for metric in self.metrics}
        return ResultRow(name, seed, percent, result, full, settings, extra, resampled)

    def _part(self, mean: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        # The images (bool [I]) and the interactions (bool [K]) that a mean is over; None for all.
        images = {"one_pair": self.num_pairs == 1, "several_pairs": self.num_pairs > 1}
        interactions = {
            "rare": self.rare,
            "non_rare": ~self.rare,
            "without_no_interaction": ~self.vocabulary.is_no_interaction,
        }
        return images.get(mean), interactions.get(mean)


def annotated_pairs(labels: HoiLabels, num_images: int) -> np.ndarray:
    """Count the annotated pairs of each image, int64 [I]; rows with the same two boxes are one pair."""
    boxes = np.concatenate([labels.boxes_h, labels.boxes_o], 1).astype(np.float64)
    pairs = np.unique(np.column_stack([labels.image, boxes]), axis=0)
    return np.bincount(pairs[:, 0].astype(np.int64), minlength=num_images)


@dataclass(frozen=True)
class Comparison:
    """The difference of two methods over paired resamples of the images."""

    better: str
    than: str
    difference: Difference  # fractions
    num_seeds: tuple[int, int]  # of `better` and of `than`, averaged inside each resample
    measure: str = "full"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form, in percent."""
        names = ("observed", "mean", "sd", "low", "high")
        return {
            "better": self.better,
            "than": self.than,
            "measure": self.measure,
            **{name: round(100 * getattr(self.difference, name), 4) for name in names},
            "num_resamples": self.difference.num_resamples,
            "num_seeds": list(self.num_seeds),
        }

    def __str__(self) -> str:
        d = self.difference
        measure = "" if self.measure == "full" else f", {COLUMNS.get(self.measure, self.measure)}"
        return (
            f"{self.better} − {self.than}{measure}: {100 * d.observed:+.2f} mAP, "
            f"95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f} (sd {100 * d.sd:.2f})"
        )


def compare(rows: Sequence[ResultRow], better: str, than: str, mean: str = "full") -> Comparison:
    """Return the paired bootstrap interval of the difference in one mean, over the seeds of both methods."""
    a, b = (_resampled(rows, name, mean) for name in (better, than))
    return Comparison(better, than, paired_difference(a, b), (len(a), len(b)), mean)


def _resampled(rows: Sequence[ResultRow], name: str, mean: str = "full") -> list[ResampledMap]:
    return [row.resampled if mean == "full" else row.resampled_means[mean] for row in rows if row.name == name]


@dataclass(frozen=True)
class Headroom:
    """(of − start) / (goal − start) in full mean average precision, means over seeds."""

    of: str
    start: str
    goal: str
    share: float  # on the images as they are; 0 at the start, 1 at the goal
    low: float  # central 95 % of the resamples in which start and goal differ
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form, in percent."""
        percent = {name: round(100 * getattr(self, name), 4) for name in ("share", "low", "high")}
        return {"of": self.of, "start": self.start, "goal": self.goal, **percent}

    def __str__(self) -> str:
        share, low, high = (100 * value for value in (self.share, self.low, self.high))
        way = f"{self.of}: {share:.1f} % of the way from {self.start} to {self.goal}"
        return f"{way}, 95 % interval {low:.1f} to {high:.1f}"


def headroom(rows: Sequence[ResultRow], of: str, start: str, goal: str) -> Headroom:
    """Return the share of the way from one row to another that a third has gone."""
    seeds = [_resampled(rows, name) for name in (of, start, goal)]
    here, begin, end = (np.mean([[m.observed, *m.resampled] for m in maps], 0) for maps in seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (here - begin) / (end - begin)
    low, high = np.percentile(share[1:][end[1:] != begin[1:]], [2.5, 97.5])
    return Headroom(of, start, goal, float(share[0]), float(low), float(high))


def per_class(rows: Sequence[ResultRow], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return one plain record an interaction: its AP in percent under every row."""
    truth = rows[0].result
    records = []
    for k, name in enumerate(vocabulary.names):
        aps = [{"name": r.name, "seed": r.seed, "percent": round(100 * float(r.result.ap[k]), 4)} for r in rows]
        counts = {"rare": bool(truth.is_rare[k]), "num_positives": int(truth.num_positives[k])}
        records.append({"interaction": name, **counts, "ap": aps})
    return records


def to_plain(row: ResultRow) -> dict[str, Any]:
    """Return a row as JSON can hold it; floats come back as they were."""
    result = row.result
    return {
        "name": row.name,
        "seed": row.seed,
        "means": row.means,
        "ap": result.ap.tolist(),
        "num_positives": result.num_positives.tolist(),
        "is_rare": result.is_rare.tolist(),
        "is_no_interaction": result.is_no_interaction.tolist(),
        "observed": row.resampled.observed,
        "resampled": row.resampled.resampled.tolist(),
        "knobs": row.settings,
        "further": row.extra,
        "resampled_means": {
            mean: {"observed": m.observed, "resampled": m.resampled.tolist()} for mean, m in row.resampled_means.items()
        },
    }


class _Resampled(Struct):
    observed: float
    resampled: list[float]


class _Plain(Struct):
    name: str
    seed: int | None
    means: dict[str, float | None]
    ap: list[float]
    num_positives: list[int]
    is_rare: list[bool]
    is_no_interaction: list[bool]
    observed: float
    resampled: list[float]
    knobs: dict[str, Any]
    further: dict[str, Any]
    resampled_means: dict[str, _Resampled]


def read_rows(path: Path) -> list[ResultRow] | None:
    """Return the rows of a file that `to_plain` filled, one or a list; None where there is no such file.

    Raises:
        UserError: the file is damaged; it can be removed and made again.
    """
    fix = f"rm {path}, then run the same command again"
    plain = read_json(path, what="a result of this sweep", fix=fix)
    try:
        rows = plain if isinstance(plain, list) else [plain]
        return None if plain is None else [from_plain(convert(row, _Plain) and row) for row in rows]
    except ValueError as error:
        raise UserError("a result of this sweep is damaged", where=path, got=error, fix=fix) from None


def from_plain(plain: dict[str, Any]) -> ResultRow:
    result = HicoResult(
        np.array(plain["ap"]),
        np.array(plain["num_positives"], np.int64),
        np.array(plain["is_rare"], bool),
        np.array(plain["is_no_interaction"], bool),
    )
    maps = {m: ResampledMap(v["observed"], np.array(v["resampled"])) for m, v in plain["resampled_means"].items()}
    full = ResampledMap(plain["observed"], np.array(plain["resampled"]))
    means, settings, extra = plain["means"], plain["knobs"], plain["further"]
    return ResultRow(plain["name"], plain["seed"], means, result, full, settings, extra, maps)


def rows_by_name(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Group the seeds of each method, in the order in which methods first come."""
    grouped: dict[str, list[ResultRow]] = {}
    for row in rows:
        grouped.setdefault(row.name, []).append(row)
    return grouped


def mean_and_sd(values: Sequence[float | None], digits: int = 4) -> dict[str, float] | None:
    """Return the mean and the standard deviation (n − 1; 0 of one value), rounded; None where all values are."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    sd = float(np.std(present, ddof=1)) if len(present) > 1 else 0.0
    return {"mean": round(float(np.mean(present)), digits), "sd": round(sd, digits)}


def means_over_seeds(rows: Sequence[ResultRow], digits: int = 4) -> list[dict[str, Any]]:
    """Return one plain record a method: number of seeds, and mean and standard deviation of each of `MEANS`."""
    return [
        {
            "name": name,
            "num_seeds": len(seeds) if seeds[0].seed is not None else None,
            **{mean: mean_and_sd([row.means[mean] for row in seeds], digits) for mean in MEANS},
        }
        for name, seeds in rows_by_name(rows).items()
    ]


def best_of(rows: Sequence[ResultRow], names: Sequence[str]) -> str:
    """Return the name, out of those given, with the highest full mAP over its seeds."""
    full = {name: [row.means["full"] or 0.0 for row in rows if row.name == name] for name in names}
    return max((name for name in names if full[name]), key=lambda name: float(np.mean(full[name])))


def with_spread(value: dict[str, float] | str | None, num_seeds: int | None = None) -> str:
    """Return a cell `mean ± sd`, or a heading or a dash, padded so that decimal points align."""
    if value is None or isinstance(value, str):
        return (value or "–") + NO_SPREAD
    return f"{value['mean']:.2f}" + (f" ± {value['sd']:.2f}" if (num_seeds or 1) > 1 else NO_SPREAD)


def align(heading: Sequence[str], lines: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Return lines of cells as text, the first column left aligned and the others right, or all of them left."""
    widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
    pad = str.ljust if left else str.rjust
    padded = ([n.ljust(widths[0]), *map(pad, cells, widths[1:])] for n, *cells in (heading, *lines))
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def format_table(rows: Sequence[ResultRow]) -> str:
    """Return one line a method: mean ± standard deviation over its seeds, in percent."""
    lines = []
    for record in means_over_seeds(rows, digits=12):
        num = record["num_seeds"]
        cells = [with_spread(record[column], num) for column in COLUMNS]
        lines.append([record["name"], "–" if num is None else str(num), *cells])
    return align(["", "seeds", *map(with_spread, COLUMNS.values())], lines)


def zero_shot_of(row: ResultRow, splits: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return a row's unseen, seen and full means in percent, by split: its own split where it was trained in one, else
    all. Counts stay as they are."""
    trained_in = row.settings.get("zero_shot")
    means = zero_shot_means(row.result, {name: ids for name, ids in splits.items() if trained_in in (None, name)})
    for of_split in means.values():
        of_split.update({key: round(100 * of_split[key], 4) for key in SHARES if of_split[key] is not None})
    return means


def format_zero_shot(rows: Sequence[ResultRow], splits: Mapping[str, np.ndarray]) -> str:
    """Return one line a method and zero-shot split: means over its seeds, in percent.

    A method that learned from labels of unseen interactions is marked with a *: its unseen mean is no zero-shot result.
    """
    lines, is_marked = [f"{'':30}{'zero-shot split':18}{'unseen':>8}{'seen':>8}{'full':>8}"], False
    for name, seeds in rows_by_name(rows).items():
        settings = seeds[0].settings
        saw = settings.get("supervision") == "labels" and settings.get("zero_shot") is None
        is_marked |= saw
        means = [zero_shot_of(row, splits) for row in seeds]
        for split in means[0]:
            over_seeds = (mean_and_sd([of_seed[split][key] for of_seed in means]) for key in SHARES)
            cells = "".join(f"{value['mean']:>8.2f}" if value else f"{'–':>8}" for value in over_seeds)
            lines.append(f"{name + ' *' * saw:30}{split:18}{cells}")
    return "\n".join([*lines, *(["* trained with labels of unseen interactions, too"] if is_marked else [])])
