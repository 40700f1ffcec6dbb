"""V-COCO's agent AP and role AP, scenarios 1 and 2, of person-object rows or of triplets.

Boxes are pixel-edge: vsrl_eval's inclusive corners (x2 = x1 + w - 1, widths + 1) are (x1, y1, x2 + 1, y2 + 1) here.

Shapes: N predicted rows, H annotated and other persons of the truth, A actions, Q action-role pairs.

Source: s-gupta/v-coco, vsrl_eval.py. Ties in score go by row here, backwards there. Rows in an image without any person
are false positives here; there they crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hoi.boxes import row_iou
from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig, VcocoDataset
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS, ROLES
from hoi.evaluation.hico import best_truth
from hoi.evaluation.rows import ResultRow, align, mean_and_sd, rows_by_name, with_spread
from hoi.labels.vcoco import find_label_files, vcoco_truth
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import Triplets
from hoi.vocabulary import Vocabulary

LEFT_OUT = "point"  # 31 test instances; papers report the mean over the other 24 action-role pairs
FIGURES = {
    "agent_ap": "agent",
    "role_ap_s1_24": "S1",
    "role_ap_s2_24": "S2",
    "role_ap_s1": "S1, 25 roles",
    "role_ap_s2": "S2, 25 roles",
}
"""Printed figures, by name and heading."""

Scenario = Literal["scenario_1", "scenario_2"]


@dataclass(frozen=True)
class VcocoPredictions:
    """Persons, each with an object or none, and what they do with it."""

    image: np.ndarray  # int64 [N], row of the split
    boxes_h: np.ndarray  # float [N, 4]
    boxes_o: np.ndarray  # float [N, 4], read where has_object is True
    has_object: np.ndarray  # bool [N]
    scores: np.ndarray  # float [N, 29], by KEYS

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class VcocoResult:
    """Average precision as fractions."""

    agent_ap: np.ndarray  # float64 [A]; an action's agent score is the largest of its roles' scores
    role_ap_s1: np.ndarray  # float64 [Q], by ACTION_ROLES
    role_ap_s2: np.ndarray
    num_positives: np.ndarray  # int64 [A] persons that do the action, whether a role is boxed or not

    @property
    def agent(self) -> float:
        return float(self.agent_ap.mean())

    def role(self, scenario: Scenario, num_roles: Literal[24, 25] = 24) -> float:
        """Return the mean role AP: over 24 pairs as papers do, without `point`, or over all 25."""
        ap = self.role_ap_s1 if scenario == "scenario_1" else self.role_ap_s2
        kept = [num_roles == 25 or action != LEFT_OUT for action, _ in ACTION_ROLES]
        return float(ap[np.array(kept)].mean())

    def to_dict(self) -> dict[str, Any]:
        """Return plain figures; `role_ap_s1` and `role_ap_s2` are over all 25 roles, `..._24` without `point`."""
        role_ap = np.stack([self.role_ap_s1, self.role_ap_s2], axis=1).tolist()
        return {
            "agent_ap": self.agent,
            "role_ap_s1": self.role("scenario_1", 25),
            "role_ap_s2": self.role("scenario_2", 25),
            "role_ap_s1_24": self.role("scenario_1", 24),
            "role_ap_s2_24": self.role("scenario_2", 24),
            "per_role": {
                f"{action}_{role}": {"s1": s1, "s2": s2}
                for (action, role), (s1, s2) in zip(ACTION_ROLES, role_ap, strict=True)
            },
            "per_agent": dict(zip(ACTIONS, self.agent_ap.tolist(), strict=True)),
            "num_positives": dict(zip(ACTIONS, self.num_positives.tolist(), strict=True)),
        }


def match_persons(predictions: VcocoPredictions, truth: VcocoTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's person of the truth, whether the row is near it, and whether the row counts, [N] each."""

    def overlap_of(persons: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return row_iou(truth.boxes_h[persons], predictions.boxes_h[rows])

    # The first person where none overlaps, as in vsrl_eval: whether the row is ignored hangs on that person.
    person, overlap, has_person = best_truth(truth.image, predictions.image, overlap_of)
    return person, has_person & (overlap >= 0.5), ~has_person | truth.is_annotated[person]


def evaluate(predictions: VcocoPredictions, truth: VcocoTruth) -> VcocoResult:
    """Return agent and role AP of a split.

    A row belongs to the person that it overlaps most. It is a true positive if that overlap is at least 0.5, the person
    does the action, the role is right, and no row of higher score has found that person with this action and role. A
    role is right if its boxes overlap by at least 0.5. Where the truth has no box, scenario 1 wants a row without
    object and scenario 2 takes any; a row without object is wrong where the truth has a box.
    """
    person, near, counts = match_persons(predictions, truth)
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


def _average_precision(score: np.ndarray, is_hit: np.ndarray, person: np.ndarray, num_positives: int) -> float:
    # Of the hits on one person only the first counts.
    order = np.argsort(-score, kind="stable")
    hits = np.flatnonzero(is_hit[order])
    _, first = np.unique(person[order[hits]], return_index=True)
    return all_point_ap(hits[np.sort(first)], num_positives)


def all_point_ap(position: np.ndarray, num_positives: int) -> float:
    """Return all-point interpolated AP; `position` (ascending) are places of the true positives in the ranking."""
    precision = np.arange(1, len(position) + 1) / (position + 1)
    return float(np.maximum.accumulate(precision[::-1]).sum() / max(num_positives, 1))


def vcoco_rows(triplets: Triplets, vocabulary: Vocabulary) -> VcocoPredictions:
    """Gather triplets into one row for each human and object, and one without object for each human that acts alone.

    A key for which a row has no triplet, because its object does not admit it, scores 0. A row without object scores
    the four actions that have no role, and nothing else: no role is ever said to be unseen. [choice] Rows go by image,
    those without object first, then by boxes.
    """
    key = np.array([KEYS.index(verb) for verb in vocabulary.verbs], np.int64)[vocabulary.verb_of]
    has_object = np.array([name != vocabulary.no_object_idx for name in vocabulary.object_of.tolist()])
    named = [triplets.image, has_object[triplets.interaction], triplets.boxes_h, triplets.boxes_o]
    columns = np.column_stack(named).astype(np.float64)
    # A pair's triplets mostly follow each other: finding the runs first leaves a tenth of the rows to sort.
    is_first = np.ones(len(columns), bool)
    is_first[1:] = (columns[1:] != columns[:-1]).any(1)
    rows, row_of_run = np.unique(columns[is_first], axis=0, return_inverse=True)
    row_of = row_of_run.reshape(-1)[np.cumsum(is_first) - 1]
    scores = np.zeros((len(rows), len(KEYS)))
    # Two detections of one box may both admit a key: the likelier one counts.
    np.maximum.at(scores, (row_of, key[triplets.interaction]), triplets.score.astype(np.float64))
    return VcocoPredictions(rows[:, 0].astype(np.int64), rows[:, 2:6], rows[:, 6:10], rows[:, 1] == 1, scores)


class VcocoRoles:
    """V-COCO's own evaluation of every row; see `hoi.evaluation.rows.Metric`."""

    def __init__(self, truth: VcocoTruth, num_images: int, vocabulary: Vocabulary) -> None:
        self.truth, self.num_images, self.vocabulary = truth, num_images, vocabulary

    @classmethod
    def open(cls, config: PipelineConfig, split: CacheSplit) -> VcocoRoles | None:
        dataset, name = config.dataset, config.evaluation.split
        if not isinstance(dataset, VcocoDataset) or find_label_files(dataset, name) is None:
            return None
        return cls(vcoco_truth(dataset, name), split.num_images, split.vocabulary)

    def figures(self, triplets: Triplets) -> dict[str, Any]:
        rows = vcoco_rows(triplets, self.vocabulary)
        num = {"num_images": self.num_images, "num_predictions": len(rows)}
        return {**evaluate(rows, self.truth).to_dict(), **num}

    @staticmethod
    def summary(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "num_seeds": len(seeds) if seeds[0].seed is not None else None,
                **{figure: mean_and_sd([100 * row.extra["vcoco"][figure] for row in seeds]) for figure in FIGURES},
            }
            for name, seeds in rows_by_name(rows).items()
        ]

    @staticmethod
    def table(summary: Sequence[dict[str, Any]]) -> str:
        heading = "V-COCO's evaluation in percent, over 24 roles where no number is said, ± sd over seeds"
        lines = [[r["name"], *(with_spread(r[figure], r["num_seeds"]) for figure in FIGURES)] for r in summary]
        return f"{heading}\n{align(['', *map(with_spread, FIGURES.values())], lines)}"
