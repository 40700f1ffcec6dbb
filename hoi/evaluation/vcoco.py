"""Scored person-object rows and V-COCO's annotated persons to agent AP and role AP, scenarios 1 and 2.

Boxes are pixel-edge: vsrl_eval's inclusive corners (x2 = x1 + w - 1, widths + 1) are (x1, y1, x2 + 1, y2 + 1) here.

Letters: N predicted rows, H annotated and other persons of the truth, A actions, Q action-role pairs.

Source: s-gupta/v-coco, vsrl_eval.py. Ties in score go by row here, backwards there. Rows in an image without any person
are false positives here; there they crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hoi.boxes import row_iou
from hoi.datasets.vcoco import (
    ACTION_ROLES,
    ACTIONS,
    KEYS,
    ROLES,
)
from hoi.labels.vcoco_files import VcocoTruth

LEFT_OUT = "point"
"""31 test instances; papers report the mean over the other 24 action-role pairs."""

Scenario = Literal["scenario_1", "scenario_2"]


@dataclass(frozen=True)
class VcocoPredictions:
    """Persons, each with an object or none, and what they do with it.

    Args:
        image: int64 [N], row of the split.
        boxes_h: float [N, 4].
        boxes_o: float [N, 4], read where `has_object` is True.
        has_object: bool [N].
        scores: float [N, 29], by `KEYS`.
    """

    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    has_object: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class VcocoResult:
    """Average precision as fractions.

    Args:
        agent_ap: float64 [A]; an action's agent score is the largest of its roles' scores.
        role_ap_s1, role_ap_s2: float64 [Q], by `ACTION_ROLES`.
        num_positives: int64 [A] persons that do the action, whether a role is boxed or not.
    """

    agent_ap: np.ndarray
    role_ap_s1: np.ndarray
    role_ap_s2: np.ndarray
    num_positives: np.ndarray

    @property
    def agent(self) -> float:
        return float(self.agent_ap.mean())

    def role(self, scenario: Scenario, num_roles: Literal[24, 25] = 24) -> float:
        """Mean role AP: over 24 pairs as papers do, without `point`, or over all 25."""
        ap = self.role_ap_s1 if scenario == "scenario_1" else self.role_ap_s2
        kept = [num_roles == 25 or action != LEFT_OUT for action, _ in ACTION_ROLES]
        return float(ap[np.array(kept)].mean())


def evaluate(predictions: VcocoPredictions, truth: VcocoTruth) -> VcocoResult:
    """Predictions and truth of a split to agent and role AP.

    A row belongs to the person that it overlaps most. It is a true positive if that overlap is at least 0.5, the person
    does the action, the role is right, and no row of higher score has found that person with this action and role. A
    role is right if its boxes overlap by at least 0.5. Where the truth has no box, scenario 1 wants a row without
    object and scenario 2 takes any; a row without object is wrong where the truth has a box.
    """
    person, overlap, has_person = _best_person(predictions, truth)
    counts = ~has_person | truth.is_annotated[person]
    near = has_person & (overlap >= 0.5)
    num_positives = truth.does.sum(0)

    agent_ap = np.zeros(len(ACTIONS))
    role_ap = np.zeros((2, len(ACTION_ROLES)))
    for a, (action, roles) in enumerate(ROLES):
        does = near & truth.does[person, a]
        columns = [KEYS.index(f"{action}_{role}") for role in roles or ("agent",)]
        agent_ap[a] = _average_precision(
            predictions.scores[:, columns].max(1)[counts], does[counts], person[counts], num_positives[a]
        )
        for role in roles:
            q = ACTION_ROLES.index((action, role))
            score = predictions.scores[:, KEYS.index(f"{action}_{role}")]
            boxed = truth.has_role[person, q]
            box_right = predictions.has_object & (row_iou(truth.role_boxes[person, q], predictions.boxes_o) >= 0.5)
            for scenario, unboxed_right in enumerate((~predictions.has_object, np.ones_like(boxed))):
                hit = does & ((boxed & box_right) | (~boxed & unboxed_right))
                role_ap[scenario, q] = _average_precision(score[counts], hit[counts], person[counts], num_positives[a])
    return VcocoResult(agent_ap, role_ap[0], role_ap[1], num_positives)


def _best_person(predictions: VcocoPredictions, truth: VcocoTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to the truth person with the largest IoU, that IoU, and whether the image has a person at all, each [N].

    The first person where none overlaps, as in vsrl_eval: whether the row is ignored hangs on that person.
    """
    order = np.argsort(truth.image, kind="stable")
    first = np.searchsorted(truth.image[order], predictions.image, "left")
    num = np.searchsorted(truth.image[order], predictions.image, "right") - first
    met = np.flatnonzero(num)
    runs = num[met]
    begins = np.cumsum(runs) - runs
    candidate = order[np.arange(runs.sum()) + np.repeat(first[met] - begins, runs)]
    iou = row_iou(truth.boxes_h[candidate], predictions.boxes_h[np.repeat(met, runs)])
    person, overlap = np.zeros(len(num), np.int64), np.zeros(len(num))
    if len(met):
        overlap[met] = np.maximum.reduceat(iou, begins)
        is_best = np.flatnonzero(iou == np.repeat(overlap[met], runs))
        person[met] = candidate[is_best[np.searchsorted(is_best, begins)]]
    return person, overlap, num > 0


def _average_precision(score: np.ndarray, is_hit: np.ndarray, person: np.ndarray, num_positives: int) -> float:
    """Rows to all-point interpolated AP; of the hits on one person only the first counts."""
    if num_positives == 0:
        return 0.0
    order = np.argsort(-score, kind="stable")
    hits = np.flatnonzero(is_hit[order])
    _, first = np.unique(person[order[hits]], return_index=True)
    position = hits[np.sort(first)]
    precision = np.arange(1, len(position) + 1) / (position + 1)
    return float(np.maximum.accumulate(precision[::-1]).sum() / num_positives)
