"""Vocabulary files, as lines and as YAML: phrases, classes, synonyms, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.datasets.vocabulary_file import (
    EVERYDAY_NAMES,
    base_form,
    foreign_phrases,
    parse_phrase,
    read_vocabulary,
    usual_name,
)
from hoi.detectors import match_classes
from hoi.prompts import interaction_prompts, verb_ing
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused


@pytest.mark.parametrize(
    ("line", "verb", "thing", "wording"),
    [
        ("riding a bicycle", "ride", "bicycle", None),
        ("ride bicycle", "ride", "bicycle", None),
        ("- ride bicycle", "ride", "bicycle", None),
        ("* walking a dog", "walk", "dog", None),
        ("2. eating pizza", "eat", "pizza", "eating pizza"),
        ('"holding an umbrella."', "hold", "umbrella", None),
        ("“Riding A Horse”.", "ride", "horse", None),
        ("• a man is cutting a cake", "cut", "cake", None),
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


@pytest.mark.parametrize("line", ['eating "a cake"', "-riding a bicycle", "riding a bicycle (red)", "« ride » a horse"])
def test_marks_within_a_line_are_refused_by_line(line: str) -> None:
    error = refused(parse_phrase, line, "file, line 3")
    assert (error.what, error.where, error.got) == ("a phrase has marks in it", "file, line 3", line)


def test_phrases_in_which_nothing_is_english_are_found(tmp_path: Path) -> None:
    german = ["ein Pferd reiten", "Pizza essen", "einen Hund streicheln | Hund"]
    assert foreign_phrases(write(tmp_path, "\n".join(german))) == ["ein Pferd reiten", "einen Hund streicheln"]
    english = ["welding pipes", "hoe, garden", "kicks scooter", "scooter = motorcycle", "knit the sweater"]
    assert foreign_phrases(write(tmp_path, "\n".join(english))) == []


@pytest.mark.parametrize("line", ["bicycle", "riding", ",", "riding,", ", bicycle"])
def test_a_line_without_either_is_refused_with_what_to_write(line: str) -> None:
    error = refused(parse_phrase, line, "file, line 3")
    assert (error.what, error.where) == ("a phrase needs a verb and an object", "file, line 3")


def test_the_ing_form_of_every_verb_leads_back_to_it() -> None:
    verbs = {verb.split("_")[0] for verb in hicodet_vocabulary().verbs} - {"no"}
    others = ["dance", "change", "serve", "push", "hug", "cycle", "juggle", "ski", "add", "die", "write", "raise"]
    wrong = {verb: base_form(verb_ing(verb)) for verb in [*verbs, *others] if base_form(verb_ing(verb)) != verb}
    assert wrong == {}


def test_everyday_names_are_coco_s_and_no_name_has_two_classes() -> None:
    others = [other for names in EVERYDAY_NAMES.values() for other in names]
    assert set(EVERYDAY_NAMES) <= set(COCO_OBJECTS)
    assert len(others) == len(set(others))
    assert not set(others) & set(COCO_OBJECTS)
    usual = {"bike": "bicycle", "park_bench": "bench", "Phones": "cell_phone", "cell_phone": "cell_phone"}
    assert {name: usual_name(name) for name in usual} == usual
    assert [usual_name(name) for name in ("hammer", "hot dog")] == ["hammer", "hot dog"]


LINES = """
riding a bike | cycling | pedalling a bike   # my own
riding a scooter
riding a motorcycle
hugging a child
standing, no_object
scooter = motorcycle
"""


def write(folder: Path, text: str, name: str = "phrases.txt") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_lines_and_yaml_say_the_same(tmp_path: Path) -> None:
    yaml = """
- {verb: ride, object: bike, synonyms: [cycling, pedalling a bike], detector_class: bicycle}
- {verb: ride, object: scooter, detector_class: motorcycle}
- {verb: ride, object: motorcycle}
- {verb: hug, object: child, detector_class: person}
- {verb: stand, object: no_object}
"""
    found = read_vocabulary(write(tmp_path, LINES))
    assert found == read_vocabulary(write(tmp_path, yaml, "vocabulary.yaml"))
    assert found.objects == ("person", "bicycle", "motorcycle", "no_object")
    assert found.interactions[:2] == (("ride", "bike"), ("ride", "scooter"))
    assert Vocabulary.from_dict(found.to_dict()) == found


def test_a_class_admits_all_that_is_seen_as_it(tmp_path: Path) -> None:
    found = read_vocabulary(write(tmp_path, LINES))
    assert found.object_of.tolist() == [1, 2, 2, 0, 3]
    assert found.object_mask[2].tolist() == [False, True, True, False, False]
    labels = match_classes(["motorcycle", "person", "bicycle", "kite"], found, "here")
    np.testing.assert_array_equal(labels, [2, 0, 1, -1])


def test_synonyms_are_further_prompts_of_their_phrase(tmp_path: Path) -> None:
    prompts = interaction_prompts(read_vocabulary(write(tmp_path, LINES)), ["a {verb_ing} {a_object}."], ["{object}"])
    assert prompts[0] == ("a riding a bike.", "a cycling.", "a pedalling a bike.")
    assert prompts[1] == ("a riding a scooter.",)
    assert prompts[4] == ("a standing.",)


def test_a_vocabulary_without_further_words_keeps_its_digest() -> None:
    plain = Vocabulary(("person", "cup"), ("hold",), (("hold", "cup"),))
    assert plain.to_dict().keys() == {"objects", "verbs", "interactions", "phrases"}
    assert Vocabulary(("person", "cup"), ("hold",), (("hold", "cup"),), (None,), ((),)).digest() == plain.digest()


def test_an_object_without_detector_class_gets_the_nearest(tmp_path: Path) -> None:
    found = read_vocabulary(write(tmp_path, "kicking a frisbe\nusing a hammer\n"))
    error = refused(match_classes, ["person", "frisbee", "kite"], found, "here")
    assert "not know 2 of" in error.what
    assert error.expected == "frisbe (nearest: frisbee); hammer (nothing like it)"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "a.txt", "holds no phrase"),
        ("# nothing\n", "a.txt", "holds no phrase"),
        ("riding a bike\nriding a " + "x" * 2000, "a.txt", r"a line is too long .* line 2"),
        ("riding a bike\nride bike\n", "a.txt", r"'ride bike' is there twice .* line 1 and .*line 2"),
        ("riding a bike\nbice = bicycle\n", "a.txt", r"unknown object .* line 2 .* nearest: bike"),
        ("riding a bike\nbike = \n", "a.txt", r"not understood .* line 2"),
        ("riding a bike\nbicycle\n", "a.txt", r"needs a verb and an object .* line 2"),
        ("riding a car\nriding a van\ncar = van\nvan = car\n", "a.txt", "round in a circle"),
        ("- {verb: ride, object: bike, detector_class: 3}", "a.yaml", r"string .* entry 1, key 'detector_class'"),
        ("- {verb: ride, object: bike, synonyms: cycling}", "a.yaml", r"list .* entry 1, key 'synonyms'"),
        (
            "- {verb: ride, object: van, detector_class: car}\n- {verb: wash, object: van, detector_class: bus}",
            "a.yaml",
            "'van' has two detector classes",
        ),
        ("- {verb: ride, objekt: bike}", "a.yaml", r"unknown key .* entry 1, key 'objekt' .* nearest: object"),
        ("- ride", "a.yaml", r"valid dictionary .* entry 1 "),
        ("{}", "a.yaml", "this is no vocabulary"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_place(tmp_path: Path, text: str, name: str, message: str) -> None:
    assert re.search(message, str(refused(read_vocabulary, write(tmp_path, text, name))))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    assert refused(read_vocabulary, str(tmp_path / "none.txt")).what == "there is no such file"
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff")
    assert refused(read_vocabulary, str(tmp_path / "picture.txt")).what == "this is not a text file"
