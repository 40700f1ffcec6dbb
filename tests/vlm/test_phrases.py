from __future__ import annotations

import pytest

from hoi.vlm.scoring import named_objects, said_interactions, vocabulary_lexicon
from hoi.vocabulary import Vocabulary
from hoi.world.models.captioner import caption_questions, world_lexicon

WORDS = Vocabulary(
    ("person", "bicycle", "park_bench", "bench", "bus"),
    ("ride", "sit_on", "carry", "wash", "no_interaction"),
    (("ride", "bicycle"), ("sit_on", "bench"), ("carry", "bicycle"), ("wash", "bus"), ("no_interaction", "bus")),
    (None, "resting on a bench", None, None, None),
    ((), ("lying on a bench",), (), (), ()),
)


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
def test_text_says_verbs_of_the_next_object_of_their_clause(text: str, expected: set[tuple[str, str]]) -> None:
    assert said_interactions(text, vocabulary_lexicon(WORDS)) == expected


def test_synonyms_are_added_by_name() -> None:
    lexicon = vocabulary_lexicon(WORDS, {"bicycle": ["bike"], "ride": ["cycling on"]})
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
    table = caption_questions(captions)
    hold, ride, kick = (
        table.texts.index(f"is a person {words}?") for words in ("holding a horse", "riding a horse", "kicking a ball")
    )
    assert len(table.texts) == 3
    assert list(zip(table.yes, table.no, strict=True)) == [
        ([ride], [hold]),
        ([hold], [ride]),
        ([], sorted((hold, ride))),
        ([kick], []),
    ]
