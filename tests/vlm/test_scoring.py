from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from hoi.vlm import Likelihoods
from hoi.vlm.scoring import (
    Confidences,
    candidate_rows,
    confidences_by_likelihood,
    confidences_by_text,
    confidences_by_yes,
    vocabulary_lexicon,
)
from hoi.vocabulary import Vocabulary

WORDS = Vocabulary(
    ("person", "horse", "dog", "cup"),
    ("ride", "hold", "pet", "no_interaction"),
    (
        ("ride", "horse"),
        ("hold", "horse"),
        ("no_interaction", "horse"),
        ("pet", "dog"),
        ("hold", "dog"),
        ("no_interaction", "dog"),
        ("hold", "cup"),
    ),
)
ROWS = np.array([0, 1, 3, 4])
SAID = Likelihoods(np.log(np.array([0.3, 0.1, 0.02, 0.06], np.float32)), np.array([2, 4, 1, 1], np.int32))


def present(*names: str) -> np.ndarray:
    return np.isin(WORDS.objects, names)


def test_the_interactions_of_detected_objects_are_asked() -> None:
    assert candidate_rows(WORDS, present("horse", "person")).tolist() == [0, 1]
    assert candidate_rows(WORDS, present("horse", "dog"), with_no_interaction=True).tolist() == [0, 1, 2, 3, 4, 5]
    assert candidate_rows(WORDS, present()).tolist() == []


@pytest.mark.parametrize(
    ("length", "group", "temperature", "expected"),
    [
        ("sum", "object", 1.0, [0.75, 0.25, 0.25, 0.75]),
        ("sum", "object", 0.5, [0.9, 0.1, 0.1, 0.9]),
        ("sum", "all", 1.0, [0.625, 0.2083333, 0.0416667, 0.125]),
        ("sum", "none", 1.0, [0.3, 0.1, 0.02, 0.06]),
        ("mean", "none", 1.0, [0.3**0.5, 0.1**0.25, 0.02, 0.06]),
    ],
)
def test_likelihoods_become_shares_by_hand(
    length: Literal["sum", "mean"], group: Literal["object", "all", "none"], temperature: float, expected: list[float]
) -> None:
    found = confidences_by_likelihood(SAID, ROWS, WORDS, length=length, group=group, temperature=temperature)
    np.testing.assert_allclose(found.scores[ROWS], expected, rtol=1e-5)
    assert found.asked.tolist() == [True, True, False, True, True, False, False]
    assert (found.scores[~found.asked] == 0).all()


def test_what_a_text_says_of_a_blank_image_can_be_taken_off() -> None:
    blank = Likelihoods(np.log(np.array([0.3, 0.05, 1.0, 1.0], np.float32)), SAID.num_tokens)
    whole = confidences_by_likelihood(SAID, ROWS, WORDS, length="sum", blank=blank, prior_weight=1.0)
    np.testing.assert_allclose(whole.scores[ROWS], [1 / 3, 2 / 3, 0.25, 0.75], rtol=1e-5)
    none = confidences_by_likelihood(SAID, ROWS, WORDS, length="sum", blank=blank, prior_weight=0.0)
    np.testing.assert_array_equal(none.scores, confidences_by_likelihood(SAID, ROWS, WORDS, length="sum").scores)
    same = confidences_by_likelihood(SAID, ROWS, WORDS, length="sum", group="none", blank=SAID, prior_weight=1.0)
    np.testing.assert_allclose(same.scores[ROWS], 1.0)


@pytest.mark.parametrize("group", ["object", "all", "none"])
@pytest.mark.parametrize("length", ["sum", "mean"])
def test_permuted_candidates_have_the_same_scores_and_shares_sum_to_one(
    length: Literal["sum", "mean"], group: Literal["object", "all", "none"]
) -> None:
    random = np.random.default_rng(0)
    said = Likelihoods(random.uniform(-900, -1, 4).astype(np.float32), random.integers(1, 9, 4).astype(np.int32))
    found = confidences_by_likelihood(said, ROWS, WORDS, length=length, group=group)
    order = np.array([2, 0, 3, 1])
    moved = Likelihoods(said.log_likelihood[order], said.num_tokens[order])
    again = confidences_by_likelihood(moved, ROWS[order], WORDS, length=length, group=group)
    np.testing.assert_allclose(again.scores, found.scores, rtol=1e-6)
    np.testing.assert_array_equal(again.asked, found.asked)
    if group == "object":
        np.testing.assert_allclose([found.scores[:3].sum(), found.scores[3:6].sum()], 1.0, rtol=1e-6)
    if group == "all":
        np.testing.assert_allclose(found.scores.sum(), 1.0, rtol=1e-6)


def test_a_probability_of_yes_is_the_confidence() -> None:
    found = confidences_by_yes(np.array([0.2, 0.5, 1.0, 0.0], np.float32), ROWS, WORDS)
    np.testing.assert_allclose(found.scores, [0.2, 0.5, 0, 1, 0, 0, 0])
    assert found.asked.sum() == 4


def test_no_interaction_is_what_no_verb_takes() -> None:
    yes = np.array([0.2, 0.5, 1.0, 0.0], np.float32)
    found = confidences_by_yes(yes, ROWS, WORDS, no_interaction="product")
    np.testing.assert_allclose(found.scores[[2, 5]], [0.4, 0.0], atol=1e-6)
    assert found.asked.tolist() == [True] * 6 + [False]
    of_horse = confidences_by_yes(yes[:2], ROWS[:2], WORDS, no_interaction="product")
    assert of_horse.asked.tolist() == [True] * 3 + [False] * 4
    own = confidences_by_yes(np.array([0.2, 0.7]), np.array([0, 2]), WORDS, no_interaction="product")
    assert own.scores[2] == pytest.approx(0.7)


def test_free_text_is_one_for_what_it_says_and_zero_for_the_rest() -> None:
    lexicon = vocabulary_lexicon(WORDS)
    found = confidences_by_text("a man rides a horse and holds a cup", ROWS, WORDS, lexicon)
    assert found.scores.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert found.asked.tolist() == [True, True, False, True, True, False, False]


def test_nothing_asked_is_a_valid_answer() -> None:
    empty = Likelihoods(np.zeros(0, np.float32), np.zeros(0, np.int32))
    found = confidences_by_likelihood(empty, np.zeros(0, np.int64), WORDS, length="sum", no_interaction="product")
    assert not found.asked.any()
    assert not found.scores.any()


def test_a_score_where_nothing_was_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="not 0 where nothing was asked"):
        Confidences(np.array([0.5], np.float32), np.array([False]))
    with pytest.raises(ValueError, match="a blank image"):
        confidences_by_likelihood(SAID, ROWS, WORDS, length="sum", prior_weight=0.5)


def test_no_interaction_may_be_a_candidate_among_others() -> None:
    rows = candidate_rows(WORDS, present("horse"), with_no_interaction=True)
    said = Likelihoods(np.log(np.array([0.3, 0.1, 0.6], np.float32)), np.array([2, 4, 2], np.int32))
    found = confidences_by_likelihood(said, rows, WORDS, length="sum", no_interaction="asked")
    np.testing.assert_allclose(found.scores[rows], [0.3, 0.1, 0.6], rtol=1e-5)
    assert found.asked.tolist() == [True] * 3 + [False] * 4
