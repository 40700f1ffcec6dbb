"""V-COCO's agent and role AP, of rows and of triplets: by hand. Against vsrl_eval's own output: test_score.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS, vcoco_vocabulary
from hoi.evaluation.vcoco import VcocoPredictions, VcocoResult, VcocoRoles, evaluate, vcoco_rows
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import Triplets
from tests.fakes.splits import triplets_of

PERSON, ANOTHER, BALL, CUP = (0, 0, 10, 20), (50, 0, 60, 20), (10, 10, 16, 16), (30, 30, 36, 36)
KICK = ACTIONS.index("kick")
KICK_OBJ = ACTION_ROLES.index(("kick", "obj"))


def truth_of(*persons: tuple) -> VcocoTruth:
    """(image, box, kind, ball) rows: `kicks`, `idle`, or `unknown` for a person without annotation; ball or None."""
    num = len(persons)
    does, has_role = np.zeros((num, 26), bool), np.zeros((num, 25), bool)
    role_boxes = np.zeros((num, 25, 4))
    for row, (_, _, kind, ball) in enumerate(persons):
        does[row, KICK] = kind == "kicks"
        if ball is not None:
            has_role[row, KICK_OBJ], role_boxes[row, KICK_OBJ] = True, ball
    image, boxes_h, kinds, _ = zip(*persons, strict=True)
    is_annotated = np.array([kind != "unknown" for kind in kinds])
    return VcocoTruth(np.array(image), np.array(boxes_h, float), is_annotated, does, role_boxes, has_role)


def kicks(truth: VcocoTruth, *rows: tuple) -> tuple[float, float, float]:
    """(image, person box, object box or None, score) rows to agent AP and role AP of scenarios 1 and 2 of `kick`."""
    image, boxes_h, boxes_o, score = zip(*rows, strict=True)
    scores = np.zeros((len(rows), len(KEYS)))
    scores[:, KEYS.index("kick_obj")] = score
    filled = np.array([(0, 0, 0, 0) if box is None else box for box in boxes_o], float)
    has_object = np.array([box is not None for box in boxes_o])
    result = evaluate(VcocoPredictions(np.array(image), np.array(boxes_h, float), filled, has_object, scores), truth)
    assert result.num_positives[KICK] == truth.does[:, KICK].sum()
    return result.agent_ap[KICK], result.role_ap_s1[KICK_OBJ], result.role_ap_s2[KICK_OBJ]


@pytest.mark.parametrize(
    ("ball", "found", "expected"),
    [
        (BALL, BALL, (1, 1, 1)),
        (BALL, CUP, (1, 0, 0)),
        (BALL, None, (1, 0, 0)),
        (None, None, (1, 1, 1)),
        (None, CUP, (1, 0, 1)),
    ],
)
def test_a_wrong_object_fails_the_role_but_not_the_agent(ball: Any, found: Any, expected: tuple) -> None:
    assert kicks(truth_of((0, PERSON, "kicks", ball)), (0, PERSON, found, 0.9)) == expected


def test_a_person_is_found_once() -> None:
    truth = truth_of((0, PERSON, "kicks", BALL), (1, PERSON, "kicks", BALL), (1, ANOTHER, "idle", None))
    rows = [(0, PERSON, BALL, 0.9), (0, PERSON, BALL, 0.8), (1, ANOTHER, CUP, 0.7), (1, PERSON, BALL, 0.6)]
    # True positives at ranks 1 and 4: (1/1 + 2/4) / 2.
    assert kicks(truth, *rows) == (0.75, 0.75, 0.75)


def test_rows_on_persons_without_annotation_are_ignored() -> None:
    unknown_first = truth_of((0, ANOTHER, "unknown", None), (0, PERSON, "kicks", BALL))
    on_unknown, astray, right = (0, ANOTHER, CUP, 0.9), (0, (200, 200, 210, 220), CUP, 0.8), (0, PERSON, BALL, 0.1)
    assert kicks(unknown_first, on_unknown, astray, right) == (1, 1, 1)
    # What overlaps nobody belongs to the image's first person.
    known_first = truth_of((0, PERSON, "kicks", BALL), (0, ANOTHER, "unknown", None))
    assert kicks(known_first, on_unknown, astray, right) == (0.5, 0.5, 0.5)


def test_half_iou_is_enough_and_empty_images_count() -> None:
    truth = truth_of((0, PERSON, "kicks", BALL))
    assert kicks(truth, (0, (0, 0, 10, 10), BALL, 0.9)) == (1, 1, 1)
    assert kicks(truth, (0, (0, 0, 10, 9), BALL, 0.9)) == (0, 0, 0)
    assert kicks(truth, (1, PERSON, BALL, 0.9), (0, PERSON, BALL, 0.8)) == (0.5, 0.5, 0.5)


def test_papers_mean_leaves_out_point() -> None:
    ap = np.array([1.0 if action == "point" else 0.5 for action, _ in ACTION_ROLES])
    result = VcocoResult(np.full(26, 0.25), ap, ap / 2, np.ones(26, int))
    assert (result.agent, result.role("scenario_1"), result.role("scenario_2")) == (0.25, 0.5, 0.25)
    assert result.role("scenario_1", 25) == pytest.approx((24 * 0.5 + 1) / 25)


VOCABULARY = vcoco_vocabulary("common_sense")
ANNA, BEN, THE_BALL, RACKET = [0, 0, 10, 20], [40, 0, 50, 20], [10, 15, 15, 20], [10, 5, 20, 10]


def triplets(*rows: tuple[int, list[int], list[int], str, float]) -> Triplets:
    return triplets_of(*((*row[:3], VOCABULARY.names.index(row[3]), row[4]) for row in rows))


FOUND = triplets(
    (3, ANNA, THE_BALL, "kick_obj sports ball", 0.5),
    (3, ANNA, THE_BALL, "hit_obj sports ball", 0.25),
    (3, ANNA, ANNA, "stand_agent no_object", 0.75),
    (3, ANNA, RACKET, "hit_instr tennis racket", 0.125),
    (1, BEN, BEN, "smile_agent no_object", 1.0),
    (3, ANNA, THE_BALL, "kick_obj sports ball", 0.625),
)


def test_the_triplets_of_a_pair_are_one_row() -> None:
    rows = vcoco_rows(FOUND, VOCABULARY)
    assert rows.image.tolist() == [1, 3, 3, 3]
    assert rows.has_object.tolist() == [False, False, True, True]
    assert rows.boxes_h.tolist() == [BEN, ANNA, ANNA, ANNA]
    assert rows.boxes_o[2:].tolist() == [RACKET, THE_BALL]
    scored = [{KEYS[column]: row[column] for column in np.flatnonzero(row)} for row in rows.scores]
    assert scored == [
        {"smile_agent": 1.0},
        {"stand_agent": 0.75},
        {"hit_instr": 0.125},
        {"kick_obj": 0.625, "hit_obj": 0.25},
    ]
    assert vcoco_rows(triplets(), VOCABULARY).scores.shape == (0, 29)


def test_right_triplets_are_worth_one() -> None:
    does, has_role, role_boxes = np.zeros((2, 26), bool), np.zeros((2, 25), bool), np.zeros((2, 25, 4))
    for person, action in ((0, "kick"), (0, "hit"), (0, "stand"), (1, "smile")):
        does[person, ACTIONS.index(action)] = True
    for action, role, box in (("kick", "obj", THE_BALL), ("hit", "obj", THE_BALL), ("hit", "instr", RACKET)):
        column = ACTION_ROLES.index((action, role))
        has_role[0, column], role_boxes[0, column] = True, box
    truth = VcocoTruth(np.array([3, 1]), np.array([ANNA, BEN], float), np.ones(2, bool), does, role_boxes, has_role)
    result = evaluate(vcoco_rows(FOUND, VOCABULARY), truth)
    for ap in (result.role_ap_s1, result.role_ap_s2):
        np.testing.assert_array_equal(ap, has_role[0].astype(float))
    np.testing.assert_array_equal(result.agent_ap, does.any(0).astype(float))
    figures = VcocoRoles(truth, 4, VOCABULARY).figures(FOUND)
    assert (figures["agent_ap"], figures["role_ap_s1"], figures["role_ap_s1_24"]) == (4 / 26, 3 / 25, 3 / 24)
