"""How alike two scorers, or two looks of one scorer, rank the same pairs.

Average precision asks how the pairs of one interaction are ranked, so that is what is compared: Spearman's correlation
over the pairs that admit the interaction.

Letters: P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
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


THRESHOLDS = (0.01, 0.1, 0.3)
"""Of the final score."""
FEW_IMAGES = 5
MOSTLY = 0.5
"""Share of a phrase's score above which one image is said to hold most of it."""
TOP = 20
"""Best pairs among which that share is looked at."""


@dataclass(frozen=True)
class PhraseCoverage:
    """What a split holds of one interaction.

    Args:
        num_images: Images with a pair of its object.
        num_pairs: Such pairs.
        above: Such pairs with a final score of at least each of `THRESHOLDS`.
        num_images_above: Images of those that pass the first.
        best_score: Of any pair; 0 without one.
        top_image_share: Share of its `TOP` best pairs' score that one image has.
    """

    num_images: int
    num_pairs: int
    above: tuple[int, ...]
    num_images_above: int
    best_score: float
    top_image_share: float

    @property
    def notes(self) -> list[str]:
        """What its owner should know."""
        if not self.num_pairs:
            return ["never seen: no person together with this object"]
        found = []
        if self.num_images < FEW_IMAGES:
            found.append(f"in {self.num_images} image{'s' if self.num_images > 1 else ''} only")
        elif self.top_image_share > MOSTLY:
            found.append(f"one image holds {100 * self.top_image_share:.0f} % of its score")
        if not self.above[0]:
            found.append(f"no pair reaches {THRESHOLDS[0]:g}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        return {**asdict(self), "above": dict(zip(map(str, THRESHOLDS), self.above, strict=True)), "notes": self.notes}


def coverage(
    scores: Float[np.ndarray, "P K"], admitted: Bool[np.ndarray, "P K"], image: Int[np.ndarray, " P"]
) -> list[PhraseCoverage]:
    """Final scores of a split's pairs to the coverage of each of the K interactions.

    Args:
        scores: With the detection prior.
        admitted: Which interactions a pair's object admits.
        image: The image of each pair.
    """
    found = []
    for k in range(scores.shape[1]):
        rows = np.flatnonzero(admitted[:, k])
        of_pairs, of_images = scores[rows, k], image[rows]
        best = np.argsort(-of_pairs, kind="stable")[:TOP]
        mass = np.bincount(of_images[best], of_pairs[best]) if len(best) else np.zeros(1)
        found.append(
            PhraseCoverage(
                num_images=len(np.unique(of_images)),
                num_pairs=len(rows),
                above=tuple(int((of_pairs >= threshold).sum()) for threshold in THRESHOLDS),
                num_images_above=len(np.unique(of_images[of_pairs >= THRESHOLDS[0]])),
                best_score=float(of_pairs.max(initial=0.0)),
                top_image_share=float(mass.max() / mass.sum()) if mass.sum() > 0 else 0.0,
            )
        )
    return found


def largest_object(labels_o: Int[np.ndarray, " P"], num_objects: int) -> tuple[int, float]:
    """Objects of all pairs to the most frequent one and its share of them; (0, 0) without a pair."""
    counts = np.bincount(labels_o, minlength=num_objects)
    return (int(counts.argmax()), float(counts.max() / counts.sum())) if counts.sum() else (0, 0.0)


LIMITS = (
    "None of this is accuracy. A scorer may agree with its teacher, say the same of every view, and be wrong each "
    "time: the teacher's mistakes, and those of the detector, are not seen here.",
    "Agreement falls where a student corrects its teacher as well as where it fails to learn.",
    "On a world with labels (docs/own-photographs.md) 'mirrored' ordered methods much as average precision did, "
    "agreement hardly, and none of the four said which phrases are good; the best score of a phrase said a little.",
    "A ranking over few pairs says little: below five it is left out, and below fifty it is noise in good part.",
    "To know, mark pairs as right or wrong: make check-page.",
)
VIEW_NAMES = {"teacher": "with CLIP", "flip": "mirrored", "crop": "cropped", "shift": "boxes moved"}


def format_quality(content: dict[str, Any]) -> str:
    """The content of quality.json to text: overall, then each phrase by the first student, then the limits."""
    scorers = content["scorers"]
    largest, looked = content["largest_object"], content["num_images_looked_at_again"]
    head = (
        f"{content['name']}, split {content['split']} (evaluation.split=NAME for another): "
        f"{content['num_images']} images, "
        f"{content['num_readable']} readable, {content['num_images_with_pair']} with a pair, "
        f"{content['num_pairs']} pairs, "
        f"{100 * largest['share_of_pairs']:.0f} % of them with {largest['name']}"
    )
    overall = [["", *(f"{title}" for title in VIEW_NAMES.values()), "same first: with CLIP", "mirrored"]]
    for name, found in scorers.items():
        measures = found["measures"]
        row = [_number(measures.get(key, {}).get("rank")) for key in VIEW_NAMES]
        first = [_percent(measures.get(key, {}).get("same_first")) for key in ("teacher", "flip")]
        overall.append([name, *row, *first])
    student = next(iter(scorers))
    lines = [["phrase", "images", "pairs", *(f">= {at:g}" for at in THRESHOLDS), "best", *VIEW_NAMES.values(), "note"]]
    for phrase, found in zip(content["phrases"], scorers[student]["phrases"], strict=True):
        counts = [str(found["num_images"]), str(found["num_pairs"]), *map(str, found["above"].values())]
        ranks = [_number(found["rank"].get(key)) for key in VIEW_NAMES]
        lines.append([phrase, *counts, _score(found["best_score"]), *ranks, "; ".join(found["notes"])])
    parts = [
        head,
        "rank correlation over the pairs of each phrase, mean over phrases (1: the same order, 0: none)"
        + (f"; views of {looked} images" if looked else "; no image was looked at again"),
        _table(overall),
        f"each phrase, by {student}: pairs of its object, and those of at least so high a final score",
        _table(lines),
        *_detector(content),
        "limits\n" + "\n".join(f"  {limit}" for limit in content["limits"]),
    ]
    return "\n\n".join(parts)


def _detector(content: dict[str, Any]) -> list[str]:
    share = content["detections_found_again"]
    return [] if share is None else [f"the detector finds {100 * share:.0f} % of its boxes again in the mirrored image"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _score(value: float) -> str:
    """Scores of a phrase may be far below 0.01 and yet tell its pairs apart."""
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.1g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Cells to aligned columns: the first and the last to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place == 0 or (place == last and rows[0][last] == "note") else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
