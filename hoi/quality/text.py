"""What was measured, as a table that a person can read, with its limits beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hoi.quality.coverage import THRESHOLDS

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
