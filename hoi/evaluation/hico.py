"""Average precision by HICO-DET's official rule, or by a named other one.

Matching (which truth a prediction would take) does not depend on scores, ranking does: `match` once, `score_matches`
often. Boxes are pixel-edge, so the official widths `x2 - x1 + 1` of 1-based inclusive corners are plain widths of
`(x1 - 1, y1 - 1, x2, y2)`, and intersections over union are the same numbers.

Shapes: R predictions, G truth rows, K interactions, I images.

Source: ywchao/ho-rcnn, evaluation/; hitachi-rd-cv/qpic, datasets/hico_eval.py; fredzzhang/pocket, utils/meters.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hoi.boxes import min_pair_iou
from hoi.errors import UserError
from hoi.records import HoiLabels, Triplets

ProtocolName = Literal["official", "qpic", "pocket"]


@dataclass(frozen=True)
class Protocol:
    """Where the public evaluators differ."""

    levels: np.ndarray  # float64 [11] recalls at which precision is read; their last bits decide
    strict: bool  # whether an IoU of exactly 0.5 fails
    empty_images: bool  # whether predictions in images without any annotated pair count, as false positives


# 0:0.1:1 and numpy.arange(0, 1.1, 0.1) hold 0.30000000000000004, 0.6000000000000001 and 0.7000000000000001, which
# shuts out a recall of 3/10, 6/10 or 7/10. torch.linspace counts the upper half down from 1.
_MULTIPLES = np.arange(11) * 0.1
_FROM_BOTH_ENDS = np.where(np.arange(11) < 5, _MULTIPLES, 1 - _MULTIPLES[::-1])

PROTOCOLS: dict[str, Protocol] = {
    "official": Protocol(levels=_MULTIPLES, strict=False, empty_images=True),
    "qpic": Protocol(levels=_MULTIPLES, strict=False, empty_images=False),
    "pocket": Protocol(levels=_FROM_BOTH_ENDS, strict=True, empty_images=False),
}


@dataclass(frozen=True)
class HicoResult:
    """Average precision of every interaction, as fractions."""

    ap: np.ndarray  # float64 [K]; 0 where num_positives is 0
    num_positives: np.ndarray  # int64 [K] annotated instances; interactions without any are in no mean
    is_rare: np.ndarray  # bool [K]
    is_no_interaction: np.ndarray  # bool [K]

    def mean(self, chosen: np.ndarray) -> float | None:
        """Return the mean AP over the chosen (bool [K]) interactions that have truth; None where there is none."""
        counted = chosen & (self.num_positives > 0)
        return float(self.ap[counted].mean()) if counted.any() else None

    @property
    def full(self) -> float | None:
        return self.mean(np.ones(len(self.ap), bool))

    @property
    def rare(self) -> float | None:
        return self.mean(self.is_rare)

    @property
    def non_rare(self) -> float | None:
        return self.mean(~self.is_rare)

    @property
    def without_no_interaction(self) -> float | None:
        return self.mean(~self.is_no_interaction)


def zero_shot_means(result: HicoResult, splits: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return unseen, seen and full means, as fractions, of each zero-shot split (name → ids of unseen interactions)."""
    means: dict[str, dict[str, Any]] = {}
    for name, ids in splits.items():
        is_unseen = np.isin(np.arange(len(result.ap)), ids)
        means[name] = {
            "unseen": result.mean(is_unseen),
            "seen": result.mean(~is_unseen),
            "full": result.full,
            "num_unseen": int((is_unseen & (result.num_positives > 0)).sum()),
            "num_unseen_instances": int(result.num_positives[is_unseen].sum()),
        }
    return means


@dataclass(frozen=True)
class Matches:
    """What each prediction would hit if no better one came first."""

    image: np.ndarray  # int64 [R]
    interaction: np.ndarray  # int64 [R]
    truth: np.ndarray  # int64 [R], truth row of the same image and interaction with the largest min(IoU_h, IoU_o)
    is_hit: np.ndarray  # bool [R], whether that overlap passes 0.5; elsewhere `truth` means nothing
    counts: np.ndarray  # bool [R], whether the protocol and setting look at the prediction at all
    truth_image: np.ndarray  # int64 [G]
    truth_interaction: np.ndarray  # int64 [G]
    num_interactions: int
    levels: np.ndarray  # float64 [11] recalls at which precision is read

    def num_positives(self, images: np.ndarray | None = None) -> np.ndarray:
        """Count the annotated instances of each interaction, int64 [K], in the given images (bool [I]) or all."""
        rows = slice(None) if images is None else images[self.truth_image]
        return np.bincount(self.truth_interaction[rows], minlength=self.num_interactions)


@dataclass(frozen=True)
class Ranking:
    """Counted predictions by interaction and falling score."""

    rows: np.ndarray  # int64 [R'], rows of the predictions
    is_true: np.ndarray  # bool [R'], true positives
    starts: np.ndarray  # int64 [K + 1], interaction k is rows[starts[k]:starts[k + 1]]


def known_object_images(image_labels: np.ndarray, object_of: np.ndarray) -> np.ndarray:
    """Return whether any interaction with each interaction's object is in the image, bool [I, K].

    `image_labels` is bool [I, K], True where the image is labelled positive; `object_of` is int64 [K].
    """
    holds = np.zeros((len(image_labels), int(object_of.max()) + 1), bool)
    for k, object_row in enumerate(object_of):
        holds[:, object_row] |= image_labels[:, k]
    return holds[:, object_of]


def best_truth(
    truth_key: np.ndarray, key: np.ndarray, overlap_of: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the truth with the same key that each prediction overlaps most, the first of equals.

    `overlap_of` takes rows of the truth and rows of the predictions. Returns the truth's row, the overlap, and whether
    any truth has the key, each [R]; the first two are 0 where none has.
    """
    order = np.argsort(truth_key, kind="stable")
    first = np.searchsorted(truth_key[order], key, "left")
    num = np.searchsorted(truth_key[order], key, "right") - first
    met = np.flatnonzero(num)
    runs = num[met]
    begins = np.cumsum(runs) - runs
    candidate = order[np.arange(runs.sum()) + np.repeat(first[met] - begins, runs)]
    overlaps = overlap_of(candidate, np.repeat(met, runs))
    truth, best = np.zeros(len(key), np.int64), np.zeros(len(key))
    if len(met):
        best[met] = np.maximum.reduceat(overlaps, begins)
        is_best = np.flatnonzero(overlaps == np.repeat(best[met], runs))
        truth[met] = candidate[is_best[np.searchsorted(is_best, begins)]]
    return truth, best, num > 0


def match(
    predictions: Triplets,
    labels: HoiLabels,
    num_interactions: int,
    *,
    protocol: ProtocolName,
    allowed: np.ndarray | None = None,
) -> Matches:
    """Find the truth that each prediction would hit; predictions and labels are of the same split.

    `allowed` (bool [I, K], see `known_object_images`) says where predictions count; None for everywhere. Raises
    UserError: an interaction is outside 0..K-1.
    """
    rule = PROTOCOLS[protocol]
    for name, interaction in (("prediction", predictions.interaction), ("annotation", labels.interaction)):
        if len(interaction) and not 0 <= interaction.min() <= interaction.max() < num_interactions:
            wrong = int(np.flatnonzero((interaction < 0) | (interaction >= num_interactions))[0])
            raise UserError(
                f"{name} {wrong} names an unknown interaction",
                expected=f"0..{num_interactions - 1}",
                got=int(interaction[wrong]),
            )

    def overlap_of(truths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        boxes = predictions.boxes_h[rows], predictions.boxes_o[rows], labels.boxes_h[truths], labels.boxes_o[truths]
        return min_pair_iou(*(box.astype(np.float64) for box in boxes))

    truth_key = labels.image * num_interactions + labels.interaction
    key = predictions.image * num_interactions + predictions.interaction
    truth, overlap, _ = best_truth(truth_key, key, overlap_of)
    is_hit = overlap > 0.5 if rule.strict else overlap >= 0.5
    counts = np.ones(len(predictions), bool)
    if not rule.empty_images:
        counts &= np.isin(predictions.image, labels.image)
    if allowed is not None:
        counts &= allowed[predictions.image, predictions.interaction]
    pairs = (predictions.image, predictions.interaction, truth, is_hit, counts)
    return Matches(*pairs, labels.image, labels.interaction, num_interactions, rule.levels)


def rank(matches: Matches, score: np.ndarray, images: np.ndarray | None = None) -> Ranking:
    """Rank predictions by falling score [R] within their interaction; ties go by image, then by row.

    A truth is found once: by the first in this order that would hit it. Later ones are false positives; none turns to
    the truth with the next largest overlap. `images` (bool [I]) are those whose predictions are ranked; None for all.
    """
    rows = np.flatnonzero(matches.counts if images is None else matches.counts & images[matches.image])
    interaction = matches.interaction[rows]
    rows = rows[np.lexsort((matches.image[rows], -score[rows], interaction))]
    is_true = np.zeros(len(rows), bool)
    hits = np.flatnonzero(matches.is_hit[rows])
    _, first = np.unique(matches.truth[rows[hits]], return_index=True)
    is_true[hits[first]] = True
    starts = np.searchsorted(np.sort(interaction), np.arange(matches.num_interactions + 1))
    return Ranking(rows, is_true, starts)


def average_precision(ranking: Ranking, num_positives: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the mean over `levels` ([11]) of the best precision at that recall or more, float64 [K]; 0 if no truth."""
    position = np.flatnonzero(ranking.is_true)
    bounds = np.searchsorted(position, ranking.starts)
    num_true = np.diff(bounds)
    nth = np.arange(len(position)) - np.repeat(bounds[:-1], num_true) + 1
    precision = nth / (position - np.repeat(ranking.starts[:-1], num_true) + 1)

    # The n-th true positive reaches recall n / num_positives; precision only peaks at true positives.
    needed = _positives_to_reach(levels, num_positives)
    reached = needed <= num_true[:, None]
    begin = (bounds[:-1, None] + needed - 1)[reached]
    end = np.broadcast_to(bounds[1:, None], needed.shape)[reached]
    best = np.zeros(needed.shape)
    slices = np.stack([begin, end], 1).ravel()
    best[reached] = np.maximum.reduceat(np.append(precision, 0.0), slices)[::2] if len(slices) else 0.0
    return np.where(num_positives > 0, best.sum(1) / len(levels), 0.0)


def _positives_to_reach(levels: np.ndarray, num_positives: np.ndarray) -> np.ndarray:
    # The smallest n ≥ 1 with n / num_positives ≥ level in float64, int64 [K, 11]; beyond reach without positives.
    total = np.maximum(num_positives, 1)[:, None]
    needed = np.maximum(np.floor(levels * total).astype(np.int64) - 1, 1)
    for _ in range(3):
        needed += needed / total < levels
    needed[num_positives == 0] = np.iinfo(np.int64).max // 2
    return needed


def score_matches(
    matches: Matches,
    score: np.ndarray,
    rare: np.ndarray,
    no_interaction: np.ndarray,
    images: np.ndarray | None = None,
) -> HicoResult:
    """Return the average precision of matched predictions with these scores [R], over all images or some (bool [I])."""
    num_positives = matches.num_positives(images)
    ap = average_precision(rank(matches, score, images), num_positives, matches.levels)
    return HicoResult(ap, num_positives, rare, no_interaction)


def evaluate(
    predictions: Triplets,
    labels: HoiLabels,
    num_interactions: int,
    rare: np.ndarray,
    no_interaction: np.ndarray | None = None,
    *,
    protocol: ProtocolName = "official",
    allowed: np.ndarray | None = None,
) -> HicoResult:
    """Return the average precision of a split's predictions; `rare` and `no_interaction` are bool [K]; see `match`."""
    matches = match(predictions, labels, num_interactions, protocol=protocol, allowed=allowed)
    if no_interaction is None:
        no_interaction = np.zeros(num_interactions, bool)
    return score_matches(matches, predictions.score, rare, no_interaction)
