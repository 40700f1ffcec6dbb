"""What is drawn of a result: the best pairs, a colour a person, words where they fit, else a legend."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.prediction import HoiTriplet, ImageResult
from hoi.prediction.pictures import draw_result, shown_pairs
from hoi.records import Detections
from hoi.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    ("person", "horse", "no_object"),
    ("ride", "sit_on", "no_interaction", "run"),
    (("ride", "horse"), ("sit_on", "horse"), ("no_interaction", "horse"), ("run", "no_object")),
)


def result_of(size_hw: tuple[int, int], rows: list[tuple[int, int, int, float]]) -> ImageResult:
    """Triplets (human, object, interaction, score) over a row of people with boxes of a tenth of the image."""
    num = 1 + max((max(human, obj) for human, obj, *_ in rows), default=0)
    height, width = size_hw
    left = np.linspace(0, 0.9 * width, num)
    boxes = np.stack([left, np.full(num, 0.4 * height), left + 0.1 * width, np.full(num, 0.8 * height)], 1)
    found = Detections(boxes.astype(np.float32), np.ones(num, np.float32), np.zeros(num, np.int64))
    places = [tuple(box) for box in boxes.tolist()]
    triplets = [
        HoiTriplet(places[h], places[o], 1.0, 1.0, *VOCABULARY.interactions[k], "phrase", k, score, 0.5, h, o)
        for h, o, k, score in rows
    ]
    return ImageResult("image", size_hw, found, ["person"] * num, triplets)


def test_pairs_have_likely_interactions_and_a_colour_a_person() -> None:
    rows = [(0, 1, 0, 0.8), (2, 3, 1, 0.5), (0, 1, 1, 0.3), (0, 3, 0, 0.2), (2, 1, 2, 0.9), (2, 2, 3, 0.1)]
    rows.append((2, 0, 0, 0.07))
    pairs = shown_pairs(result_of((100, 100), rows), VOCABULARY, 9)
    texts = ["ride + sit on horse 0.80", "sit on horse 0.50", "ride horse 0.20", "run 0.10"]
    assert [pair.text for pair in pairs] == texts
    colours = [pair.colour for pair in pairs]
    assert colours[0] == colours[2] != colours[1] == colours[3]
    assert len(shown_pairs(result_of((100, 100), rows), VOCABULARY, 2)) == 2
    assert shown_pairs(result_of((100, 100), [(0, 1, 2, 0.9)]), VOCABULARY, 9) == []


def test_two_objects_detected_as_one_class_are_both_named() -> None:
    bikes = Vocabulary(
        ("person", "bicycle"),
        ("ride", "hold"),
        (("ride", "bicycle"), ("ride", "bike"), ("hold", "bike")),
        seen_as=(("bike", "bicycle"),),
    )
    places = (0.0, 0.0, 50.0, 50.0), (40.0, 40.0, 90.0, 90.0)
    found = Detections(np.array(places, np.float32), np.ones(2, np.float32), np.array([0, 1]))
    rows = [
        HoiTriplet(*places, 1.0, 1.0, *bikes.interactions[k], "", k, score, 0.5, 0, 1)
        for k, score in ((1, 0.8), (0, 0.5), (2, 0.4))
    ]
    [pair] = shown_pairs(ImageResult("image", (100, 100), found, ["person", "bicycle"], rows), bikes, 9)
    assert pair.text == "ride + hold bike + ride bicycle 0.80"


def test_phrases_of_the_vocabulary_are_shown_as_they_are() -> None:
    own = Vocabulary(VOCABULARY.objects, VOCABULARY.verbs, VOCABULARY.interactions, ("up on a horse", None, None, None))
    [pair] = shown_pairs(result_of((100, 100), [(0, 1, 0, 0.8)]), own, 9)
    assert pair.text == "phrase 0.80"


@pytest.mark.parametrize(
    ("size_hw", "drawn_wh"), [((50, 100), (640, 320)), ((900, 700), (700, 900)), ((40, 4000), (1600, 16))]
)
def test_few_pairs_keep_the_images_shape_within_the_limits(size_hw: tuple[int, int], drawn_wh: tuple[int, int]) -> None:
    image = np.full((*size_hw, 3), 90, np.uint8)
    assert draw_result(image, result_of(size_hw, []), VOCABULARY).size == drawn_wh
    few = draw_result(image, result_of(size_hw, [(0, 1, 0, 0.8)]), VOCABULARY)
    # A strip of 16 pixels has no room for words, so they stand below.
    assert few.size == drawn_wh or size_hw[0] == 40
    assert few.width == drawn_wh[0]


def test_a_crowd_gets_a_legend_below_and_a_videos_frame_does_not() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    crowd = result_of((400, 400), [(h, o, 0, 0.5 + h / 100) for h in range(4) for o in range(4, 8)])
    picture, frame = draw_result(image, crowd, VOCABULARY), draw_result(image, crowd, VOCABULARY, legend=False)
    assert picture.width == frame.width == frame.height == 640
    strip = np.asarray(picture)[640:]
    # Twelve lines of dark letters on white.
    assert len(strip) > 100
    assert (strip[-2] == 255).all()
    assert (strip.min(-1) < 60).any(1).sum() > 12 * 5
