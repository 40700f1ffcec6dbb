"""The closed set of names."""

from __future__ import annotations

import pytest

from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

SMALL = Vocabulary(
    ("person", "dog", "cup"),
    ("pet", "hold", "no_interaction"),
    (("pet", "dog"), ("hold", "cup"), ("no_interaction", "dog")),
)


def test_masks_follow_from_the_names() -> None:
    assert SMALL.object_mask.tolist() == [[False, False, False], [True, False, True], [False, True, False]]
    assert SMALL.verb_of.tolist() == [0, 1, 2]
    assert SMALL.is_no_interaction.tolist() == [False, False, True]


def test_round_trip_keeps_the_digest_and_order_changes_it() -> None:
    assert Vocabulary.from_dict(SMALL.to_dict()) == SMALL
    turned = Vocabulary(SMALL.objects, SMALL.verbs, SMALL.interactions[::-1])
    assert turned.digest() != SMALL.digest()


@pytest.mark.parametrize(
    ("objects", "verbs", "interactions", "message"),
    [
        (("dog",), ("pet",), (("pet", "dog"),), "no human class"),
        (("person", "dog"), ("pet",), (("pet", "cat"),), "unknown verb or object"),
        (("person", "dog"), ("pet",), (("pet", "dog"), ("pet", "dog")), "duplicate interactions"),
        (("person", "dog"), ("pet",), (), "no interactions"),
    ],
)
def test_a_wrong_vocabulary_is_refused(objects: tuple, verbs: tuple, interactions: tuple, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Vocabulary(objects, verbs, interactions)
    assert message in caught.value.what


def test_phrases_and_other_classes_are_checked_too() -> None:
    with pytest.raises(UserError, match="differ in number"):
        Vocabulary(("person", "dog"), ("pet",), (("pet", "dog"),), ("one", "two"))
    with pytest.raises(UserError, match="seen_as"):
        Vocabulary(("person", "dog"), ("pet",), (("pet", "puppy"),), seen_as=(("puppy", "cat"),))
    seen = Vocabulary(("person", "dog"), ("pet",), (("pet", "puppy"),), seen_as=(("puppy", "dog"),))
    assert seen.object_of.tolist() == [1]
    assert Vocabulary.from_dict(seen.to_dict()) == seen
