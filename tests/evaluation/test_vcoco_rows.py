"""Triplets of V-COCO's vocabulary to rows of its evaluation: by hand, and that right triplets are worth 1."""

from __future__ import annotations

import numpy as np

from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS, vcoco_vocabulary
from hoi.evaluation.vcoco import VcocoRoles, evaluate, vcoco_rows
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import Triplets

VOCABULARY = vcoco_vocabulary("common_sense")
ANNA, BEN, BALL, RACKET = [0, 0, 10, 20], [40, 0, 50, 20], [10, 15, 15, 20], [10, 5, 20, 10]


def triplets(*rows: tuple[int, list[int], list[int], str, float]) -> Triplets:
    return Triplets(
        image=np.array([row[0] for row in rows], np.int64),
        boxes_h=np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        boxes_o=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        interaction=np.array([VOCABULARY.names.index(row[3]) for row in rows], np.int64),
        score=np.array([row[4] for row in rows], np.float64),
    )


FOUND = triplets(
    (3, ANNA, BALL, "kick_obj sports ball", 0.5),
    (3, ANNA, BALL, "hit_obj sports ball", 0.25),
    (3, ANNA, ANNA, "stand_agent no_object", 0.75),
    (3, ANNA, RACKET, "hit_instr tennis racket", 0.125),
    (1, BEN, BEN, "smile_agent no_object", 1.0),
    (3, ANNA, BALL, "kick_obj sports ball", 0.625),
)


def test_the_triplets_of_a_pair_are_one_row_and_people_alone_are_rows_without_object() -> None:
    rows = vcoco_rows(FOUND, VOCABULARY)
    assert rows.image.tolist() == [1, 3, 3, 3]
    assert rows.has_object.tolist() == [False, False, True, True]
    assert rows.boxes_h.tolist() == [BEN, ANNA, ANNA, ANNA]
    assert rows.boxes_o[2:].tolist() == [RACKET, BALL]
    scored = [{KEYS[column]: row[column] for column in np.flatnonzero(row)} for row in rows.scores]
    assert scored == [
        {"smile_agent": 1.0},
        {"stand_agent": 0.75},
        {"hit_instr": 0.125},
        {"kick_obj": 0.625, "hit_obj": 0.25},
    ]
    assert vcoco_rows(triplets(), VOCABULARY).scores.shape == (0, 29)


def test_right_triplets_are_worth_one_wherever_something_is_annotated() -> None:
    does, has_role, role_boxes = np.zeros((2, 26), bool), np.zeros((2, 25), bool), np.zeros((2, 25, 4))
    for person, action in ((0, "kick"), (0, "hit"), (0, "stand"), (1, "smile")):
        does[person, ACTIONS.index(action)] = True
    for action, role, box in (("kick", "obj", BALL), ("hit", "obj", BALL), ("hit", "instr", RACKET)):
        column = ACTION_ROLES.index((action, role))
        has_role[0, column], role_boxes[0, column] = True, box
    truth = VcocoTruth(np.array([3, 1]), np.array([ANNA, BEN], float), np.ones(2, bool), does, role_boxes, has_role)
    result = evaluate(vcoco_rows(FOUND, VOCABULARY), truth)
    for ap in (result.role_ap_s1, result.role_ap_s2):
        np.testing.assert_array_equal(ap, has_role[0].astype(float))
    np.testing.assert_array_equal(result.agent_ap, does.any(0).astype(float))
    figures = VcocoRoles(truth, 4, VOCABULARY).figures(FOUND)
    assert (figures["agent_ap"], figures["role_ap_s1"], figures["role_ap_s1_24"]) == (4 / 26, 3 / 25, 3 / 24)
