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
MOST = 0.5
"""Share of a phrase's score above which one image is said to hold most of it."""
TOP = 20
"""Best pairs of a phrase over which that share is taken."""
LIMITS = (
    "None of this is accuracy. A scorer may agree with its teacher, score mirrored images alike, and be wrong each "
    "time: mistakes of the teacher and of the detector are not seen here.",
    "Agreement falls where a student corrects its teacher as well as where it fails to learn.",
    "On a world with labels (docs/own-photographs.md) 'mirrored' ordered methods much as average precision did, and "
    "agreement hardly; neither said which phrases are good, and the best score of a phrase said a little.",
    "To know, mark pairs as right or wrong: hoi check-page.",
)
MEASURE_NAMES = {"teacher": "with CLIP", "flip": "mirrored"}


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
        top_image_share: Largest share that one image has of the score of the `TOP` best pairs.
    """

    num_images: int
    num_pairs: int
    above: tuple[int, ...]
    best_score: float
    top_image_share: float

    @property
    def notes(self) -> list[str]:
        """Warnings for the user."""
        if not self.num_pairs:
            return ["never seen: no person together with this object"]
        notes = []
        if self.num_images < FEW_IMAGES:
            notes.append(f"in {self.num_images} image{'s' if self.num_images > 1 else ''} only")
        elif self.top_image_share > MOST:
            notes.append(f"one image holds {100 * self.top_image_share:.0f} % of its score")
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
        of_pairs, of_images = scores[rows, k], image[rows]
        best = np.argsort(-of_pairs, kind="stable")[:TOP]
        mass = np.bincount(of_images[best], of_pairs[best]) if len(best) else np.zeros(1)
        covered.append(
            PhraseCoverage(
                num_images=len(np.unique(of_images)),
                num_pairs=len(rows),
                above=tuple(int((of_pairs >= threshold).sum()) for threshold in THRESHOLDS),
                best_score=float(of_pairs.max(initial=0.0)),
                top_image_share=float(mass.max() / mass.sum()) if mass.sum() > 0 else 0.0,
            )
        )
    return covered


def most_frequent(labels_o: Int[np.ndarray, " P"], num_objects: int) -> tuple[int, float]:
    """Return the most frequent object of the pairs and its share of them; (0, 0) without a pair."""
    counts = np.bincount(labels_o, minlength=num_objects)
    return (int(counts.argmax()), float(counts.max() / counts.sum())) if counts.sum() else (0, 0.0)


def format_quality(content: dict[str, Any]) -> str:
    """Format the content of quality.json: overall, then each phrase by the first student, then the limits."""
    scorers = content["scorers"]
    largest, num_mirrored = content["largest_object"], content["num_images_looked_at_again"]
    head = (
        f"{content['name']}, split {content['split']} (evaluation.split=NAME for another): "
        f"{content['num_images']} images, "
        f"{content['num_readable']} readable, {content['num_images_with_pair']} with a pair, "
        f"{content['num_pairs']} pairs, "
        f"{100 * largest['share_of_pairs']:.0f} % of them with {largest['name']}"
    )
    overall = []
    for name, of in scorers.items():
        ranks = [of["measures"].get(key, {}).get("rank") for key in MEASURE_NAMES]
        overall.append([name, *("–" if rank is None else f"{rank:.2f}" for rank in ranks)])
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
        indent(align(["", *MEASURE_NAMES.values()], overall), "  "),
        f"each phrase, by {student}: pairs of its object, and those of at least so high a final score",
        "\n".join(noted),
        "limits\n" + "\n".join(f"  {limit}" for limit in content["limits"]),
    ]
    return "\n\n".join(parts)
