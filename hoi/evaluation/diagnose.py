"""Where mean average precision is lost: each error's cause, and the mAP without that cause; docs/diagnose.md.

Matching and ranking are those of the evaluators. Every pair of a prediction and a truth of one image is looked at once.

Shapes: R predictions, G truth rows, K interactions, C pairs of a prediction and a truth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from hoi.boxes import row_iou
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.evaluation.hico import PROTOCOLS, ProtocolName, Ranking, average_precision, match
from hoi.evaluation.vcoco import LEFT_OUT, VcocoPredictions, all_point_ap, match_persons
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import NO_INTERACTION

CAUSES = {
    "duplicate": "right, but its annotation is found by a higher score",
    "verb": "boxes and object right, verb wrong",
    "object_class": "boxes and verb right, object of another class",
    "verb_and_object": "boxes right, verb wrong and object of another class",
    "pairing": "both boxes right, but not with each other",
    "person": "object right, person box on nobody annotated",
    "object": "person right, object box on none annotated of its class",
    "background": "neither box right",
}
"""Causes of a false positive; the first that holds is the cause."""
MISSES = {
    "missed_person": "no predicted person box fits",
    "missed_object": "no predicted object box of its class fits",
    "missed_pair": "both boxes are there, but never as a pair",
    "missed_verb": "the pair is there, without this interaction",
    "missed_taken": "what fits it fits another annotation better",
}
"""Causes of a truth that is not found; the first that holds is the cause."""
TOGETHER = {
    "false_positives": "every false positive mended",
    "missed": "every miss mended",
    "everything": "both: 100 in every class of which anything is found",
}
VCOCO_MEASURE = "role AP in scenario 1 over 24 roles"
MOST_AT_ONCE = 2_000_000  # pairs of a prediction and a truth in memory

Ap = Callable[[Ranking, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Compared:
    """Predictions and truth after matching."""

    predictions: Triplets
    labels: HoiLabels
    object_of: np.ndarray  # int64 [K]
    verb_of: np.ndarray  # int64 [K]
    is_hit: np.ndarray  # bool [R], whether the prediction fits `truth`
    truth: np.ndarray  # int64 [R]
    counts: np.ndarray  # bool [R], whether the prediction is looked at
    counted: np.ndarray  # bool [K], interactions in the mean
    is_no_interaction: np.ndarray  # bool [K]
    ap: Ap
    strict: bool = False  # whether an IoU of exactly 0.5 fails
    alone: tuple[np.ndarray, np.ndarray] | None = None  # whether predictions [R] and truth [G] have no object
    measure: str = "mAP"  # name of the mean


@dataclass(frozen=True)
class Diagnosis:
    """Counts, and fractions of mAP; a mean over no interaction is None."""

    full: float | None
    interacting: float | None  # the mean without no_interaction
    no_interaction: float | None  # the mean over no_interaction alone
    pair_recall: float | None  # share of annotated pairs that any prediction finds, whatever its verb
    num_pairs: int
    num_true: int
    counts: dict[str, int]  # false positives by CAUSES, truth that is not found by MISSES
    gains: dict[str, float]  # mAP gained by mending each alone, and by TOGETHER
    measure: str

    @property
    def num_missed(self) -> int:
        return sum(self.counts[name] for name in MISSES)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "num_missed": self.num_missed}


def compare(
    predictions: Triplets,
    labels: HoiLabels,
    pairs: Sequence[tuple[str, str]],
    protocol: ProtocolName = "official",
    allowed: np.ndarray | None = None,
    images: np.ndarray | None = None,
) -> Compared:
    """Match as `hoi.evaluation.hico` does, with its `allowed` and `images`; `pairs` are K verbs and objects."""
    if images is not None:
        predictions, labels = _select(predictions, images), _select(labels, images)
    num, rule = len(pairs), PROTOCOLS[protocol]
    verbs, objects = (list(names) for names in zip(*pairs, strict=True))
    matches = match(predictions, labels, num, protocol=protocol, allowed=allowed)
    return Compared(
        predictions,
        labels,
        np.unique(objects, return_inverse=True)[1],
        np.unique(verbs, return_inverse=True)[1],
        matches.is_hit,
        matches.truth,
        matches.counts,
        matches.num_positives() > 0,
        np.array([verb == NO_INTERACTION for verb in verbs]),
        partial(average_precision, levels=rule.levels),
        rule.strict,
    )


def _select(of_images: Any, images: np.ndarray) -> Any:
    rows = images[of_images.image]
    return replace(of_images, **{name: values[rows] for name, values in vars(of_images).items()})


def compare_vcoco(rows: VcocoPredictions, truth: VcocoTruth) -> Compared:
    """Match as vsrl_eval does in scenario 1: 24 roles stand for interactions, and objects have no class."""
    person, near, counts = match_persons(rows, truth)
    num_rows, num = len(rows), len(ACTION_ROLES)
    does = truth.does[:, [ACTIONS.index(action) for action, _ in ACTION_ROLES]]
    truth_row = np.full(does.shape, -1)
    truth_row[does] = np.arange(does.sum())
    of_person, role = np.nonzero(does)
    labels = HoiLabels(truth.image[of_person], truth.boxes_h[of_person], truth.role_boxes[of_person, role], role)
    alone = ~truth.has_role[of_person, role]
    column = [KEYS.index(f"{action}_{name}") for action, name in ACTION_ROLES]

    # Row n with role q is prediction q * N + n, so that equal scores go by row.
    row = np.tile(np.arange(num_rows), num)
    of_role = np.repeat(np.arange(num), num_rows)
    score = rows.scores[:, column].T.ravel().astype(np.float64)
    predictions = Triplets(rows.image[row], rows.boxes_h[row], rows.boxes_o[row], of_role, score)
    hit, without = truth_row[person[row], of_role], ~rows.has_object[row]
    fits = row_iou(labels.boxes_o[hit], predictions.boxes_o) >= 0.5
    is_hit = near[row] & (hit >= 0) & np.where(alone[hit], without, ~without & fits)
    names = np.array([action for action, _ in ACTION_ROLES])
    objects, no_interaction = np.zeros(num, np.int64), np.zeros(num, bool)
    everything = (predictions, labels, objects, np.arange(num), is_hit, hit, counts[row], names != LEFT_OUT)
    return Compared(*everything, no_interaction, _all_points, alone=(without, alone), measure=VCOCO_MEASURE)


def _all_points(ranking: Ranking, num_positives: np.ndarray) -> np.ndarray:
    hits = np.split(ranking.is_true, ranking.starts[1:-1])
    return np.array([all_point_ap(np.flatnonzero(of), num) for of, num in zip(hits, num_positives, strict=True)])


class Loss:
    """Every false positive and every miss with its cause, and AP as if some causes were mended."""

    def __init__(self, compared: Compared) -> None:
        of, labels = compared.predictions, compared.labels
        self.compared, self._interaction, num = compared, of.interaction, len(compared.object_of)
        self._order = np.lexsort((of.image, -of.score))
        self._order = self._order[compared.counts[self._order]]
        hits = self._order[compared.is_hit[self._order]]
        found, first = np.unique(compared.truth[hits], return_index=True)
        self.is_true, self.is_found = np.zeros(len(of), bool), np.zeros(len(labels.image), bool)
        self.is_true[hits[first]], self.is_found[found] = True, True
        self.num_positives = np.bincount(labels.interaction, minlength=num)
        self._find_causes()

    def _find_causes(self) -> None:
        """Find the cause of each error, and the free truth that each false positive is mended to, -1 for none."""
        compared, theirs = self.compared, self.compared.labels.interaction
        least = np.nextafter(0.5, 1) if compared.strict else 0.5
        self.cause = np.full(len(self.is_true), list(CAUSES).index("background"))
        self.target = np.full(len(self.is_true), -1)
        seen = np.zeros((len(MISSES) - 1, len(theirs)), bool)
        for row, truth, iou_h, iou_o in self._pairs():
            same_object, same_verb = (
                of[self._interaction[row]] == of[theirs[truth]] for of in (compared.object_of, compared.verb_of)
            )
            person, box, same = iou_h >= least, iou_o >= least, same_object & same_verb
            obj, pair = box & same_object, person & box
            for held, fits in zip(seen, (person, obj, pair & same_object, pair & same), strict=True):
                held[truth[fits]] = True

            # A prediction's truth is all in one chunk: its cause is the first that holds with any of it.
            chunk, within = slice(row[0], row[-1] + 1), row - row[0]
            verb, object_class = pair & same_object & ~same, pair & same_verb & ~same
            kinds = (verb, object_class, pair & ~same, person, obj)
            *wrong, has_person, has_object = (np.bincount(within[fits], minlength=within[-1] + 1) > 0 for fits in kinds)
            holds = (compared.is_hit[chunk], *wrong, has_person & has_object, has_object, has_person)
            cause = self.cause[chunk] = np.select(holds, range(len(holds)), len(holds))

            # By CAUSES, what may be mended to a free truth; the largest overlap is taken.
            none = np.zeros(len(row), bool)
            near = (none, verb, object_class, none, same & (person | box), same & box, same & person, none)
            may = np.flatnonzero(np.choose(cause[within], near) & ~self.is_found[truth])
            may = may[np.lexsort((-(iou_h + iou_o)[may], row[may]))]
            mended, first = np.unique(row[may], return_index=True)
            self.target[mended] = truth[may[first]]
        self.cause[self.is_true | ~compared.counts] = -1
        self.target[self.cause < 0] = -1
        self._is_paired = seen[list(MISSES).index("missed_pair")]
        self.miss = np.select(list(~seen), range(len(seen)), len(seen))
        self.miss[self.is_found] = -1

    def _pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield rows of predictions and of truth of the same image, [C] each, and their overlaps; rows ascend."""
        of, labels, alone = self.compared.predictions, self.compared.labels, self.compared.alone
        order = np.argsort(labels.image, kind="stable")
        first = np.searchsorted(labels.image[order], of.image, "left")
        num = np.searchsorted(labels.image[order], of.image, "right") - first
        num[~self.compared.counts] = 0
        total = np.cumsum(num)
        cuts = np.searchsorted(total, np.arange(0, total.max(initial=1), MOST_AT_ONCE), "right")
        for begin, end in zip(cuts, [*cuts[1:], len(num)], strict=True):
            runs = num[begin:end]
            row = np.repeat(np.arange(begin, end), runs)
            if len(row):
                within = np.arange(len(row)) - np.repeat(np.cumsum(runs) - runs, runs)
                truth = order[first[row] + within]
                ours = (boxes[row].astype(np.float64) for boxes in (of.boxes_h, of.boxes_o))
                theirs = (boxes[truth].astype(np.float64) for boxes in (labels.boxes_h, labels.boxes_o))
                iou_h, iou_o = map(row_iou, ours, theirs)
                if alone is not None:
                    iou_o = np.where(alone[1][truth], alone[0][row], np.where(alone[0][row], 0.0, iou_o))
                yield row, truth, iou_h, iou_o

    def ap(self, mended: Collection[str] = ()) -> np.ndarray:
        """Return AP [K] as if these of CAUSES and MISSES were mended; where no truth is left, the AP as it is."""
        causes = [i for i, name in enumerate(CAUSES) if name in mended]
        misses = [i for i, name in enumerate(MISSES) if name in mended]
        is_bad = np.isin(self.cause, causes)
        better = self._order[(is_bad & (self.target >= 0))[self._order]]
        target, first = np.unique(self.target[better], return_index=True)
        better = better[first]
        is_true, interaction = self.is_true.copy(), self._interaction.copy()
        is_true[better], is_bad[better] = True, False
        interaction[better] = self.compared.labels.interaction[target]

        rows = self._order[~is_bad[self._order]]
        num = len(self.num_positives)
        key = interaction[rows].astype(np.uint16 if num < 2**16 else np.int64)  # 16 bits are sorted by radix
        rows = rows[np.argsort(key, kind="stable")]
        starts = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=num))])
        gone = np.isin(self.miss, misses)
        gone[target] = False
        left = self.num_positives - np.bincount(self.compared.labels.interaction[gone], minlength=num)
        return self.compared.ap(Ranking(rows, is_true[rows], starts), np.where(left > 0, left, self.num_positives))

    def mean(self, mended: Collection[str] = (), chosen: np.ndarray | None = None) -> float | None:
        """Return the mean of `ap` over the counted interactions, or the chosen ones (bool [K]) of them."""
        counted = self.compared.counted & (True if chosen is None else chosen)
        return float(self.ap(mended)[counted].mean()) if counted.any() else None

    def pairs(self) -> tuple[int, int]:
        """Return how many annotated pairs a prediction with their object fits, and how many there are."""
        labels, alone = self.compared.labels, self.compared.alone
        object_of = self.compared.object_of[labels.interaction]
        columns = np.column_stack([labels.image, object_of, labels.boxes_h, labels.boxes_o]).astype(np.float64)
        rows = slice(None) if alone is None else ~alone[1]
        _, pair = np.unique(columns[rows], axis=0, return_inverse=True)
        is_paired = np.bincount(pair.reshape(-1), self._is_paired[rows]) > 0
        return int(is_paired.sum()), len(is_paired)


def diagnose(compared: Compared) -> Diagnosis:
    """Return the loss by cause."""
    loss, no_interaction = Loss(compared), compared.is_no_interaction
    full = loss.mean()
    counts = {name: int((loss.cause == i).sum()) for i, name in enumerate(CAUSES)}
    counts |= {name: int((loss.miss == i).sum()) for i, name in enumerate(MISSES)}
    sets: dict[str, Collection[str]] = {name: (name,) for name in counts}
    sets |= zip(TOGETHER, (CAUSES, MISSES, counts), strict=True)
    gains = {name: (loss.mean(mended) or 0.0) - (full or 0.0) for name, mended in sets.items()}
    num_paired, num_pairs = loss.pairs()
    return Diagnosis(
        full,
        loss.mean(chosen=~no_interaction),
        loss.mean(chosen=no_interaction),
        num_paired / num_pairs if num_pairs else None,
        num_pairs,
        int(loss.is_true.sum()),
        counts,
        gains,
        compared.measure,
    )


def table(found: Diagnosis) -> list[str]:
    """Return the lines of a text table, in percent."""
    width = max(map(len, (*CAUSES, *MISSES, *TOGETHER)))

    def line(name: str, about: str) -> str:
        count = f"{found.counts[name]:>10,}" if name in found.counts else " " * 10
        return f"  {name:{width}}{count}{100 * found.gains[name]:>+9.2f}  {about}"

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f}"

    means = f"{found.measure} {percent(found.full)}"
    if found.no_interaction is not None:
        means += f", interacting {percent(found.interacting)}, no_interaction {percent(found.no_interaction)}"
    return [
        means,
        f"pairs found, whatever their verb: {percent(found.pair_recall)} % of {found.num_pairs:,}",
        f"{found.num_true:,} true positives, {found.num_missed:,} annotations missed; "
        f"gain: points of {found.measure} if this alone were mended",
        f"{'false positives':{width + 2}}{'number':>10}{'gain':>9}",
        *(line(name, about) for name, about in CAUSES.items()),
        "annotations missed",
        *(line(name, about) for name, about in MISSES.items()),
        "together",
        *(line(name, about) for name, about in TOGETHER.items()),
    ]
