"""Triplets of a method to its row of the result table, and rows to differences, all through the one evaluator.

Letters: K interactions, I images, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hoi.evaluation.bootstrap import Difference, ResampledMap, Resamples, paired_difference, resample_map
from hoi.evaluation.hico import HicoResult, match, score_matches
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import Vocabulary

MEANS = ("full", "rare", "non_rare", "without_no_interaction", "one_pair", "several_pairs")


@dataclass(frozen=True)
class ResultRow:
    """One method, trained once or not at all.

    Args:
        name: As in the result table.
        seed: Of the training; None where nothing is trained.
        means: Percent, by the names in `MEANS`; None where no interaction with truth is among them. `one_pair` and
            `several_pairs` are over the images with so many annotated pairs.
        result: Every interaction's AP.
        resampled: For intervals of differences of `full`.
        knobs: What made the row.
        further: What another evaluation says of it, by that evaluation's name.
        resampled_means: For intervals of further means, by name.
    """

    name: str
    seed: int | None
    means: dict[str, float | None]
    result: HicoResult
    resampled: ResampledMap
    knobs: dict[str, Any]
    further: dict[str, Any] = field(default_factory=dict)
    resampled_means: dict[str, ResampledMap] = field(default_factory=dict)

    def to_dict(self, num_images: int) -> dict[str, Any]:
        """The plain form that goes into results.json."""
        return {
            "name": self.name,
            "seed": self.seed,
            **{name: None if value is None else round(value, 4) for name, value in self.means.items()},
            "num_images": num_images,
            "num_positives": int(self.result.num_positives.sum()),
            **self.further,
            "knobs": self.knobs,
        }


@dataclass(frozen=True)
class Comparison:
    """How much one method is better than another, over paired resamples of the images.

    Args:
        better, than: Row names.
        difference: As fractions.
        num_seeds: Of `better` and of `than`, averaged inside each resample.
        measure: One of `MEANS`.
    """

    better: str
    than: str
    difference: Difference
    num_seeds: tuple[int, int]
    measure: str = "full"

    def to_dict(self) -> dict[str, Any]:
        """The plain form, in percent."""
        found = self.difference
        percent = {name: round(100 * getattr(found, name), 4) for name in ("observed", "mean", "sd", "low", "high")}
        return {
            "better": self.better,
            "than": self.than,
            "measure": self.measure,
            **percent,
            "num_resamples": found.num_resamples,
            "num_seeds": list(self.num_seeds),
        }


class Examiner:
    """A labelled split that grades every method alike.

    Args:
        labels: Of the split.
        num_images: I.
        vocabulary: Whose interactions.
        rare: bool [K].
        num_resamples: S.
        further: Triplets to what another evaluation says of them, by name.
        intervals: Further means that are resampled.
    """

    def __init__(
        self,
        labels: HoiLabels,
        num_images: int,
        vocabulary: Vocabulary,
        rare: np.ndarray,
        num_resamples: int,
        further: Callable[[Triplets], dict[str, Any]] = lambda _: {},
        intervals: Sequence[str] = (),
    ) -> None:
        self._further, self._intervals = further, intervals
        self.labels, self.num_images, self.vocabulary, self.rare = labels, num_images, vocabulary, rare
        self.num_pairs = annotated_pairs(labels, num_images)
        self._resamples = Resamples.draw(num_resamples, num_images, seed=0)

    def grade(self, name: str, seed: int | None, predictions: Triplets, knobs: dict[str, Any]) -> ResultRow:
        """A method's triplets on the whole split to its row."""
        matches = match(predictions, self.labels, len(self.vocabulary), protocol="official")
        result, one, several = (
            score_matches(matches, predictions.score, self.rare, self.vocabulary.is_no_interaction, images)
            for images in (None, self.num_pairs == 1, self.num_pairs > 1)
        )
        fractions = (
            result.full,
            result.rare,
            result.non_rare,
            result.without_no_interaction,
            one.full,
            several.full,
        )
        means = {n: None if value is None else 100 * value for n, value in zip(MEANS, fractions, strict=True)}
        resampled = {
            mean: resample_map(matches, predictions.score, self._resamples, *self._part(mean))
            for mean in ("full", *self._intervals)
        }
        full = resampled.pop("full")
        return ResultRow(name, seed, means, result, full, knobs, self._further(predictions), resampled)

    def _part(self, mean: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Which images (bool [I]) and which interactions (bool [K]) one of `MEANS` is over; None for all."""
        images = {"one_pair": self.num_pairs == 1, "several_pairs": self.num_pairs > 1}
        interactions = {
            "rare": self.rare,
            "non_rare": ~self.rare,
            "without_no_interaction": ~self.vocabulary.is_no_interaction,
        }
        return images.get(mean), interactions.get(mean)


def annotated_pairs(labels: HoiLabels, num_images: int) -> np.ndarray:
    """Labels to the number of annotated pairs of each image, int64 [I]; rows with the same two boxes are one pair."""
    boxes = np.concatenate([labels.boxes_h, labels.boxes_o], 1).astype(np.float64)
    pairs = np.unique(np.column_stack([labels.image, boxes]), axis=0)
    return np.bincount(pairs[:, 0].astype(np.int64), minlength=num_images)


def compare(rows: Sequence[ResultRow], better: str, than: str, mean: str = "full") -> Comparison:
    """Two methods' rows to the interval of the difference of one of their means, taken over seeds."""
    a, b = (resampled(rows, name, mean) for name in (better, than))
    return Comparison(better, than, paired_difference(a, b), (len(a), len(b)), mean)


def resampled(rows: Sequence[ResultRow], name: str, mean: str = "full") -> list[ResampledMap]:
    """One of a method's means in every resample, one a seed."""
    return [row.resampled if mean == "full" else row.resampled_means[mean] for row in rows if row.name == name]


def per_class(rows: Sequence[ResultRow], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Rows to one plain record an interaction: its AP in percent under every row."""
    truth = rows[0].result
    return [
        {
            "interaction": name,
            "rare": bool(truth.is_rare[k]),
            "num_positives": int(truth.num_positives[k]),
            "ap": [
                {"name": row.name, "seed": row.seed, "percent": round(100 * float(row.result.ap[k]), 4)} for row in rows
            ],
        }
        for k, name in enumerate(vocabulary.names)
    ]


def to_plain(row: ResultRow) -> dict[str, Any]:
    """A row to what JSON can hold; floats come back as they were."""
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
        "knobs": row.knobs,
        "further": row.further,
        "resampled_means": {
            mean: {"observed": found.observed, "resampled": found.resampled.tolist()}
            for mean, found in row.resampled_means.items()
        },
    }


def from_plain(plain: dict[str, Any]) -> ResultRow:
    """What `to_plain` made, back."""
    result = HicoResult(
        np.array(plain["ap"]),
        np.array(plain["num_positives"], np.int64),
        np.array(plain["is_rare"], bool),
        np.array(plain["is_no_interaction"], bool),
    )
    means = {mean: _resampled(found) for mean, found in plain["resampled_means"].items()}
    own = {key: plain[key] for key in ("name", "seed", "means", "knobs", "further")}
    return ResultRow(**own, result=result, resampled=_resampled(plain), resampled_means=means)


def _resampled(plain: dict[str, Any]) -> ResampledMap:
    return ResampledMap(plain["observed"], np.array(plain["resampled"]))


@dataclass(frozen=True)
class Headroom:
    """(of − start) / (goal − start) in full mean average precision, means over seeds.

    Args:
        of, start, goal: Row names.
        share: On the images as they are; 0 at the start, 1 at the goal.
        low, high: The central 95 % of the resamples in which start and goal differ.
    """

    of: str
    start: str
    goal: str
    share: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """The plain form, in percent."""
        percent = {name: round(100 * getattr(self, name), 4) for name in ("share", "low", "high")}
        return {"of": self.of, "start": self.start, "goal": self.goal, **percent}

    def __str__(self) -> str:
        share, low, high = (100 * value for value in (self.share, self.low, self.high))
        return (
            f"{self.of}: {share:.1f} % of the way from {self.start} to {self.goal}, "
            f"95 % interval {low:.1f} to {high:.1f}"
        )


def headroom(rows: Sequence[ResultRow], of: str, start: str, goal: str) -> Headroom:
    """Rows to the share of the way that one of them has gone."""
    found = [resampled(rows, name) for name in (of, start, goal)]
    here, begin, end = (np.mean([[m.observed, *m.resampled] for m in maps], 0) for maps in found)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (here - begin) / (end - begin)
    low, high = np.percentile(share[1:][end[1:] != begin[1:]], [2.5, 97.5])
    return Headroom(of, start, goal, float(share[0]), float(low), float(high))
