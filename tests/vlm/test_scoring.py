from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hoi.vlm import Likelihoods
from hoi.vlm.scoring import (
    Confidences,
    candidate_rows,
    confidences_by_likelihood,
    confidences_by_text,
    confidences_by_yes,
    named_objects,
    said_interactions,
    vocabulary_lexicon,
)
from hoi.vocabulary import Vocabulary
from hoi.world.models.captioner import caption_questions, world_lexicon

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
LIKELIHOODS = Likelihoods(np.log(np.array([0.3, 0.1, 0.02, 0.06], np.float32)), np.array([2, 4, 1, 1], np.int32))
YES = np.array([0.2, 0.5, 1.0, 0.0], np.float32)
PHRASES = Vocabulary(
    ("person", "bicycle", "park_bench", "bench", "bus"),
    ("ride", "sit_on", "carry", "wash", "no_interaction"),
    (("ride", "bicycle"), ("sit_on", "bench"), ("carry", "bicycle"), ("wash", "bus"), ("no_interaction", "bus")),
    (None, "resting on a bench", None, None, None),
    ((), ("lying on a bench",), (), (), ()),
)


def present(*names: str) -> np.ndarray:
    return np.isin(WORDS.objects, names)


def test_the_interactions_of_detected_objects_are_asked() -> None:
    assert candidate_rows(WORDS, present("horse", "person")).tolist() == [0, 1]
    assert candidate_rows(WORDS, present("horse", "dog"), with_no_interaction=True).tolist() == [0, 1, 2, 3, 4, 5]
    assert candidate_rows(WORDS, present()).tolist() == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"length": "sum"}, [0.75, 0.25, 0.25, 0.75]),
        ({"length": "sum", "temperature": 0.5}, [0.9, 0.1, 0.1, 0.9]),
        ({"length": "sum", "group": "all"}, [0.625, 0.2083333, 0.0416667, 0.125]),
        ({"length": "sum", "group": "none"}, [0.3, 0.1, 0.02, 0.06]),
        ({"length": "mean", "group": "none"}, [0.3**0.5, 0.1**0.25, 0.02, 0.06]),
    ],
)
def test_likelihoods_become_shares_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    scored = confidences_by_likelihood(LIKELIHOODS, ROWS, WORDS, **settings)
    np.testing.assert_allclose(scored.scores[ROWS], expected, rtol=1e-5)
    assert scored.asked.tolist() == [True, True, False, True, True, False, False]
    assert (scored.scores[~scored.asked] == 0).all()


def test_the_likelihood_on_a_blank_image_can_be_taken_off() -> None:
    blank = Likelihoods(np.log(np.array([0.3, 0.05, 1.0, 1.0], np.float32)), LIKELIHOODS.num_tokens)
    whole = confidences_by_likelihood(LIKELIHOODS, ROWS, WORDS, length="sum", blank=blank, prior_weight=1.0)
    np.testing.assert_allclose(whole.scores[ROWS], [1 / 3, 2 / 3, 0.25, 0.75], rtol=1e-5)
    same: dict[str, Any] = {"group": "none", "blank": LIKELIHOODS, "prior_weight": 1.0}
    by_itself = confidences_by_likelihood(LIKELIHOODS, ROWS, WORDS, length="sum", **same)
    np.testing.assert_allclose(by_itself.scores[ROWS], 1.0)


@pytest.mark.parametrize("group", ["object", "all", "none"])
@pytest.mark.parametrize("length", ["sum", "mean"])
def test_the_order_of_candidates_does_not_matter(length: Any, group: Any) -> None:
    rng = np.random.default_rng(0)
    drawn = Likelihoods(rng.uniform(-900, -1, 4).astype(np.float32), rng.integers(1, 9, 4).astype(np.int32))
    scored = confidences_by_likelihood(drawn, ROWS, WORDS, length=length, group=group)
    order = np.array([2, 0, 3, 1])
    moved = Likelihoods(drawn.log_likelihood[order], drawn.num_tokens[order])
    again = confidences_by_likelihood(moved, ROWS[order], WORDS, length=length, group=group)
    np.testing.assert_allclose(again.scores, scored.scores, rtol=1e-6)
    np.testing.assert_array_equal(again.asked, scored.asked)
    if group == "object":
        np.testing.assert_allclose([scored.scores[:3].sum(), scored.scores[3:6].sum()], 1.0, rtol=1e-6)
    if group == "all":
        np.testing.assert_allclose(scored.scores.sum(), 1.0, rtol=1e-6)


def test_a_probability_of_yes_is_the_confidence() -> None:
    scored = confidences_by_yes(YES, ROWS, WORDS)
    np.testing.assert_allclose(scored.scores, [0.2, 0.5, 0, 1, 0, 0, 0])
    assert scored.asked.sum() == 4


def test_no_interaction_is_what_no_verb_takes() -> None:
    scored = confidences_by_yes(YES, ROWS, WORDS, no_interaction="product")
    np.testing.assert_allclose(scored.scores[[2, 5]], [0.4, 0.0], atol=1e-6)
    assert scored.asked.tolist() == [True] * 6 + [False]
    of_horse = confidences_by_yes(YES[:2], ROWS[:2], WORDS, no_interaction="product")
    assert of_horse.asked.tolist() == [True] * 3 + [False] * 4
    itself = confidences_by_yes(np.array([0.2, 0.7]), np.array([0, 2]), WORDS, no_interaction="product")
    assert itself.scores[2] == pytest.approx(0.7)


def test_free_text_is_one_for_what_it_says() -> None:
    text, lexicon = "a man rides a horse and holds a cup", vocabulary_lexicon(WORDS)
    scored = confidences_by_text(text, ROWS, WORDS, lexicon)
    assert scored.scores.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert scored.asked.tolist() == [True, True, False, True, True, False, False]


def test_nothing_asked_is_a_valid_answer() -> None:
    empty = Likelihoods(np.zeros(0, np.float32), np.zeros(0, np.int32))
    scored = confidences_by_likelihood(empty, np.zeros(0, np.int64), WORDS, length="sum", no_interaction="product")
    assert not scored.asked.any()
    assert not scored.scores.any()


def test_scores_that_contradict_their_mask_are_refused() -> None:
    with pytest.raises(ValueError, match="not 0 where nothing was asked"):
        Confidences(np.array([0.5], np.float32), np.array([False]))
    with pytest.raises(ValueError, match="a blank image"):
        confidences_by_likelihood(LIKELIHOODS, ROWS, WORDS, length="sum", prior_weight=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man riding a bicycle.", {("ride", "bicycle")}),
        ("Two women carry bicycles; a boy washes the buses", {("carry", "bicycle"), ("wash", "bus")}),
        ("a man riding and carrying a bicycle", {("ride", "bicycle"), ("carry", "bicycle")}),
        ("a man rides a bicycle and carries it", {("ride", "bicycle"), ("carry", "bicycle")}),
        ("a man on a bicycle, carrying a child", {("carry", "bicycle")}),
        ("a man carrying a child. a bicycle", set()),
        ("a man riding, and a woman near a bicycle", set()),
        ("sitting on a park bench", {("sit_on", "park_bench")}),
        ("a girl resting on a bench", {("sit_on", "bench")}),
        ("Two boys lying on a bench.", {("sit_on", "bench")}),
        ("a bicycle", set()),
        ("", set()),
    ],
)
def test_a_verb_belongs_to_the_next_object_of_its_clause(text: str, expected: set[tuple[str, str]]) -> None:
    assert said_interactions(text, vocabulary_lexicon(PHRASES)) == expected


def test_synonyms_are_added_by_name() -> None:
    lexicon = vocabulary_lexicon(PHRASES, {"bicycle": ["bike"], "ride": ["cycling on"]})
    assert said_interactions("a man cycling on a bike", lexicon) == {("ride", "bicycle")}
    assert named_objects("a bike, a bus and a bike", lexicon) == ("bicycle", "bus")


def test_the_worlds_captions_are_read() -> None:
    lexicon = world_lexicon()
    said = said_interactions("photo of a rider on a park bench seated on it, a guy tugging a crate in town", lexicon)
    assert said == {("sit_on", "bench"), ("pull", "box")}
    grip = said_interactions("a lady riding a pony, reins in hand and a kid with a dog", lexicon)
    assert grip == {("ride", "horse"), ("hold", "horse")}


def test_questions_come_from_the_captions_words() -> None:
    captions = ["a man riding a horse", "a lady holding a pony", "a guy and a horse", "a man kicking a ball"]
    texts, yes, no = caption_questions(captions)
    words = ("holding a horse", "riding a horse", "kicking a ball")
    hold, ride, kick = (texts.index(f"is a person {doing}?") for doing in words)
    assert len(texts) == 3
    answers = [([ride], [hold]), ([hold], [ride]), ([], sorted((hold, ride))), ([kick], [])]
    assert list(zip(yes, no, strict=True)) == answers
