"""The closed set of names."""

from __future__ import annotations

import pytest

from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

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
    ("changes", "what"),
    [
        ({"objects": ("dog",)}, "no human class"),
        ({"interactions": (("pet", "cat"),)}, "unknown verb or object"),
        ({"interactions": (("pet", "dog"), ("pet", "dog"))}, "duplicate interactions"),
        ({"interactions": ()}, "no interactions"),
        ({"objects": ("person", *map(str, range(10_000)))}, "too many objects"),
        ({"synonyms": (tuple(map(str, range(10_001))),)}, "too many synonyms"),
        ({"phrases": ("one", "two")}, "differ in number"),
        ({"interactions": (("pet", "puppy"),), "seen_as": (("puppy", "cat"),)}, "seen_as"),
    ],
)
def test_a_wrong_vocabulary_is_refused(changes: dict[str, tuple], what: str) -> None:
    right = {"objects": ("person", "dog"), "verbs": ("pet",), "interactions": (("pet", "dog"),)}
    assert what in str(refused(Vocabulary, **(right | changes)))


def test_an_object_may_be_seen_as_another_class() -> None:
    seen = Vocabulary(("person", "dog"), ("pet",), (("pet", "puppy"),), seen_as=(("puppy", "dog"),))
    assert seen.object_of.tolist() == [1]
    assert Vocabulary.from_dict(seen.to_dict()) == seen
