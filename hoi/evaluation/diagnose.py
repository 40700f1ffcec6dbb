"""Where mean average precision is lost: a cause for each false positive, and the mAP without that cause.

Matching and ranking are those of `hoi.evaluation.hico`. The first cause in `CAUSES` that holds is the cause. Mending
takes the false positives of one cause away, as TIDE does; mending misses takes unmatched truth out of the positives.

Shapes: R predictions, G truth rows, K interactions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hoi.boxes import min_pair_iou, row_iou
from hoi.evaluation.hico import average_precision, best_truth, match, rank
from hoi.records import HoiLabels, Triplets

CAUSES = ("duplicate", "verb", "object_class", "pairing", "person", "object", "background")


@dataclass(frozen=True)
class Diagnosis:
    """Counts and fractions."""

    full: float
    counts: dict[str, int]  # false positives by cause
    num_missed: int  # truth rows that no prediction finds
    gains: dict[str, float]  # mAP gained by mending each cause alone, and `missed`


def diagnose(predictions: Triplets, labels: HoiLabels, object_of: np.ndarray) -> Diagnosis:
    """Return the loss by cause under the official rule; `object_of` is int64 [K]."""
    num = len(object_of)
    matches = match(predictions, labels, num, protocol="official")
    ranking = rank(matches, predictions.score)
    is_true = np.zeros(len(predictions), bool)
    is_true[ranking.rows[ranking.is_true]] = True
    boxes = [b.astype(np.float64) for b in (predictions.boxes_h, predictions.boxes_o, labels.boxes_h, labels.boxes_o)]
    ph, po, th, to = boxes

    def near(by_object: bool, kind: str) -> np.ndarray:
        def overlap(t: np.ndarray, r: np.ndarray) -> np.ndarray:
            if kind == "pair":
                return min_pair_iou(ph[r], po[r], th[t], to[t])
            return row_iou(ph[r], th[t]) if kind == "person" else row_iou(po[r], to[t])

        stride = int(object_of.max()) + 1
        keys = (x.image * stride + (object_of[x.interaction] if by_object else 0) for x in (labels, predictions))
        return best_truth(*keys, overlap)[1] >= 0.5

    person, obj = near(False, "person"), near(True, "object")
    holds = [matches.is_hit, near(True, "pair"), near(False, "pair"), person & obj, obj, person]
    cause = np.select(holds, range(6), 6)
    found = np.zeros(len(labels.image), bool)
    found[matches.truth[is_true]] = True
    positives = matches.num_positives()
    counted = positives > 0

    def mean(kept: np.ndarray, num_positives: np.ndarray) -> float:
        of_kept = type(matches)(**{**vars(matches), "counts": matches.counts & kept})
        ap = average_precision(rank(of_kept, predictions.score), num_positives, matches.levels)
        return float(ap[counted & (num_positives > 0)].mean()) if (counted & (num_positives > 0)).any() else 0.0

    everything = np.ones(len(predictions), bool)
    full = mean(everything, positives)
    gains = {name: mean(is_true | (cause != i), positives) - full for i, name in enumerate(CAUSES)}
    counts = {name: int((~is_true & (cause == i)).sum()) for i, name in enumerate(CAUSES)}
    recalled = np.bincount(labels.interaction[found], minlength=num)
    # Classes of which nothing is found keep their AP of 0, so that this mean is over the same classes.
    ap = average_precision(ranking, np.where(recalled > 0, recalled, positives), matches.levels)
    gains["missed"] = float(ap[counted].mean()) - full if counted.any() else 0.0
    return Diagnosis(full, counts, int((~found).sum()), gains)
