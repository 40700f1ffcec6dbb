"""Lines as people write them, to verbs and objects."""

from __future__ import annotations

import pytest

from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.datasets.vocabulary_file import EVERYDAY_NAMES, base_form, parse_phrase, usual_name
from hoi.errors import UserError
from hoi.prompts import verb_ing


@pytest.mark.parametrize(
    ("line", "verb", "thing", "wording"),
    [
        ("riding a bicycle", "ride", "bicycle", None),
        ("ride bicycle", "ride", "bicycle", None),
        ("ride, bicycle", "ride", "bicycle", None),
        ("A person is riding a bicycle.", "ride", "bicycle", None),
        ("rides a horse", "ride", "horse", None),
        ("sitting on a park bench", "sit_on", "park_bench", None),
        ("talking on the phone", "talk_on", "phone", "talking on the phone"),
        ("hold cell phone", "hold", "cell_phone", None),
        ("throw sports_ball", "throw", "sports_ball", None),
        ("reading books", "read", "book", "reading books"),
        ("wearing a pair of skis", "wear", "skis", None),
        ("hitting a ball with a tennis racket", "hit_a_ball_with", "tennis_racket", None),
        ("walking, no_object", "walk", "no_object", None),
    ],
)
def test_a_line_has_a_verb_and_an_object(line: str, verb: str, thing: str, wording: str | None) -> None:
    found = parse_phrase(line, "here")
    assert (found.verb, found.object_name, found.wording) == (verb, thing, wording)


@pytest.mark.parametrize("line", ["bicycle", "riding", ",", "riding,", ", bicycle"])
def test_a_line_without_either_is_refused_with_what_to_write(line: str) -> None:
    with pytest.raises(UserError, match=r"needs a verb and an object · where: file, line 3 .* riding a bicycle"):
        parse_phrase(line, "file, line 3")


def test_the_ing_form_of_every_verb_leads_back_to_it() -> None:
    verbs = {verb.split("_")[0] for verb in hicodet_vocabulary().verbs} - {"no"}
    others = ["dance", "change", "serve", "push", "hug", "cycle", "juggle", "ski", "add", "die", "write", "raise"]
    wrong = {verb: base_form(verb_ing(verb)) for verb in [*verbs, *others] if base_form(verb_ing(verb)) != verb}
    assert wrong == {}


def test_everyday_names_are_coco_s_and_no_name_has_two_classes() -> None:
    from hoi.datasets.coco import COCO_OBJECTS

    others = [other for names in EVERYDAY_NAMES.values() for other in names]
    assert set(EVERYDAY_NAMES) <= set(COCO_OBJECTS)
    assert len(others) == len(set(others))
    assert not set(others) & set(COCO_OBJECTS)
    assert [usual_name(name) for name in ("bike", "park_bench", "Phones", "cell_phone", "hammer", "hot dog")] == [
        "bicycle",
        "bench",
        "cell_phone",
        "cell_phone",
        "hammer",
        "hot dog",
    ]
