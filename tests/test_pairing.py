"""Which detections become pairs."""

from __future__ import annotations

import numpy as np

from hoi.config import PairsConfig
from hoi.extraction import pair_detections
from hoi.records import Detections

PERSON, DOG = 0, 1


def detections(*found: tuple[int, float]) -> Detections:
    labels, scores = zip(*found, strict=True) if found else ((), ())
    boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (len(found), 1))
    return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64))


def pairs(found: Detections, **settings: float) -> list[list[int]]:
    return pair_detections(found, PERSON, PairsConfig(**settings)).tolist()


def test_two_people_and_an_object_make_four_pairs() -> None:
    found = detections((PERSON, 0.9), (DOG, 0.8), (PERSON, 0.7))
    assert pairs(found) == [[0, 1], [0, 2], [2, 0], [2, 1]]


def test_a_person_alone_an_object_alone_and_nothing_make_no_pair() -> None:
    for found in (detections((PERSON, 0.9)), detections((DOG, 0.9)), detections()):
        result = pair_detections(found, PERSON, PairsConfig())
        assert result.shape == (0, 2)
        assert result.dtype == np.int32


def test_each_human_pairs_with_itself_where_that_is_asked_for() -> None:
    found = detections((PERSON, 0.9), (DOG, 0.8), (PERSON, 0.7))
    result = pair_detections(found, PERSON, PairsConfig(), with_itself=True)
    assert result.tolist() == [[0, 0], [0, 1], [0, 2], [2, 0], [2, 1], [2, 2]]
    assert pair_detections(detections((PERSON, 0.9)), PERSON, PairsConfig(), with_itself=True).tolist() == [[0, 0]]


def test_detections_below_the_score_take_no_part_and_the_score_itself_counts() -> None:
    found = detections((PERSON, 0.9), (DOG, 0.5), (DOG, 0.25), (PERSON, 0.1))
    assert pairs(found, min_score=0.25) == [[0, 1], [0, 2]]


def test_only_the_best_humans_and_the_best_objects_are_kept() -> None:
    found = detections((PERSON, 0.9), (PERSON, 0.8), (DOG, 0.7), (PERSON, 0.6), (DOG, 0.5))
    assert pairs(found, max_humans=2, max_objects=1) == [[0, 1], [0, 2], [1, 0], [1, 2]]
