"""How alike two scorers rank the same pairs, what a split holds of each phrase, and the table of both.

Average precision is about the ranking of the pairs of one interaction, so rankings are compared: by Spearman's
correlation over the pairs that admit the interaction.

Shapes: P pairs, K interactions, N detections.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from textwrap import indent
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from hoi.evaluation.rows import align
from hoi.records import Detections

MIN_PAIRS = 5
"""Fewer pairs have no meaningful ranking."""
THRESHOLDS = (0.01, 0.1, 0.3)
"""Of the final score."""
FEW_IMAGES = 5
LIMITS = (
    "None of this is accuracy. A scorer may agree with its teacher, score mirrored images alike, and be wrong each "
    "time: mistakes of the teacher and of the detector are not seen here.",
    "On a world with labels (docs/own-photographs.md) 'mirrored' ordered methods much as average precision did, but "
    "did not say which phrases are good; the best score of a phrase said a little.",
    "To know, mark pairs as right or wrong: hoi check-page.",
)


def agreement(
    first: Float[np.ndarray, "P K"], second: Float[np.ndarray, "P K"], admitted: Bool[np.ndarray, "P K"]
) -> float | None:
    """Return the rank correlation of two scores of the same pairs, mean over interactions that have one."""
    ranks = [spearman(first[rows, k], second[rows, k]) for k, rows in enumerate(admitted.T)]
    known = [rank for rank in ranks if rank is not None]
    return float(np.mean(known)) if known else None


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the correlation of the ranks; None below `MIN_PAIRS`, or where either scores all alike."""
    if len(first) < MIN_PAIRS:
        return None
    ranks = [rankdata(values) for values in (first, second)]
    if any(np.ptp(values) == 0 for values in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def mirror(image: np.ndarray, detections: Detections) -> tuple[np.ndarray, Detections]:
    """Mirror an image, uint8 [H, W, 3], and its detections, left to right."""
    x1, y1, x2, y2 = detections.boxes_xyxy.T
    width = image.shape[1]
    boxes = np.stack([width - x2, y1, width - x1, y2], 1).astype(np.float32)
    return np.ascontiguousarray(image[:, ::-1]), Detections(boxes, detections.scores, detections.labels)


@dataclass(frozen=True)
class PhraseCoverage:
    """What a split holds of one interaction.

    Args:
        num_images, num_pairs: With its object.
        above: Of these, pairs with a final score of at least each of `THRESHOLDS`.
    """

    num_images: int
    num_pairs: int
    above: tuple[int, ...]
    best_score: float

    @property
    def notes(self) -> list[str]:
        """Warnings for the user."""
        if not self.num_pairs:
            return ["never seen: no person together with this object"]
        notes = []
        if self.num_images < FEW_IMAGES:
            notes.append(f"in {self.num_images} image{'s' if self.num_images > 1 else ''} only")
        if not self.above[0]:
            notes.append(f"no pair reaches {THRESHOLDS[0]:g}")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "above": dict(zip(map(str, THRESHOLDS), self.above, strict=True)), "notes": self.notes}


def coverage(
    scores: Float[np.ndarray, "P K"], admitted: Bool[np.ndarray, "P K"], image: Int[np.ndarray, " P"]
) -> list[PhraseCoverage]:
    """Return the coverage of each of the K interactions, from final scores and the image of each pair."""
    covered = []
    for k in range(scores.shape[1]):
        rows = np.flatnonzero(admitted[:, k])
        of_pairs = scores[rows, k]
        covered.append(
            PhraseCoverage(
                num_images=len(np.unique(image[rows])),
                num_pairs=len(rows),
                above=tuple(int((of_pairs >= threshold).sum()) for threshold in THRESHOLDS),
                best_score=float(of_pairs.max(initial=0.0)),
            )
        )
    return covered


def format_quality(content: dict[str, Any]) -> str:
    """Format the content of quality.json: overall, then each phrase by the first student, then the limits."""
    scorers, num_mirrored = content["scorers"], content["num_images_looked_at_again"]
    head = (
        f"{content['name']}, split {content['split']} (evaluation.split=NAME for another): "
        f"{content['num_images']} images, "
        f"{content['num_readable']} readable, {content['num_images_with_pair']} with a pair, "
        f"{content['num_pairs']} pairs"
    )
    ranks = {name: of["measures"].get("flip", {}).get("rank") for name, of in scorers.items()}
    overall = [[name, "–" if rank is None else f"{rank:.2f}"] for name, rank in ranks.items()]
    student = next(iter(scorers))
    lines, notes = [], ["note"]
    for phrase, of in zip(content["phrases"], scorers[student]["phrases"], strict=True):
        # Scores of a phrase may be far below 0.01 and yet tell its pairs apart.
        best = of["best_score"]
        counts = map(str, (of["num_images"], of["num_pairs"], *of["above"].values()))
        lines.append([phrase, *counts, f"{best:.2f}" if best >= 0.1 or not best else f"{best:.1g}"])
        notes.append("; ".join(of["notes"]))
    heading = ["phrase", "images", "pairs", *(f">= {at:g}" for at in THRESHOLDS), "best"]
    noted = (f"  {line}  {note}".rstrip() for line, note in zip(align(heading, lines).splitlines(), notes, strict=True))
    parts = [
        head,
        "rank correlation over the pairs of each phrase, mean over phrases (1: the same order, 0: none); "
        + (f"{num_mirrored} images were mirrored" if num_mirrored else "no image was mirrored"),
        indent(align(["", "mirrored"], overall), "  "),
        f"each phrase, by {student}: pairs of its object, and those of at least so high a final score",
        "\n".join(noted),
        "limits\n" + "\n".join(f"  {limit}" for limit in content["limits"]),
    ]
    return "\n\n".join(parts)
