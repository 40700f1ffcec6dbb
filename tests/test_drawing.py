"""Pairs over an image: labels that stay apart and readable, lines where the boxes are, any size of image."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageColor

from hoi.drawing import (
    PAIR_COLOURS,
    VERDICT_COLOURS,
    Box,
    DrawnPair,
    Verdict,
    add_legend,
    covered_share,
    draw_pairs,
    fit_longest_side,
    ink_on,
    place_labels,
)

GREY = 128


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def touched(picture: Image.Image) -> np.ndarray:
    """bool [H, W]: pixels that are no longer grey."""
    return (np.asarray(picture) != GREY).any(-1)


def overlapping(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_labels_take_a_wish_then_the_nearest_place_then_none() -> None:
    first, second, third, fourth = place_labels([(10, 5)] * 4, [[(2, 3), (40, 3)]] * 4, (60, 10))
    assert (first, second) == ((2, 3, 12, 8), (40, 3, 50, 8))
    # From (2, 3) on, columns and rows of 5 pixels: (15, 5) is the nearest that leaves the first alone.
    assert third == (15, 5, 25, 10)
    assert fourth == (15, 0, 25, 5)
    assert place_labels([(10, 10), (10, 10)], [[(0, 0)]] * 2, (15, 15)) == [(0, 0, 10, 10), None]
    assert place_labels([(61, 5), (0, 0)], [[(0, 0)]] * 2, (60, 10)) == [None, None]
    # A wish outside the image is moved into it.
    assert place_labels([(10, 5)], [[(-7, 99)]], (60, 10)) == [(0, 5, 10, 10)]


@pytest.mark.parametrize("seed", range(3))
def test_crowded_labels_lie_inside_the_image_and_never_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(float(w), float(h)) for w, h in rng.uniform((20, 8), (90, 16), (60, 2))]
    wishes = [[(float(x), float(y))] for x, y in rng.uniform(-20, 220, (60, 2))]
    places = [place for place in place_labels(sizes, wishes, (200, 150)) if place is not None]
    assert 10 < len(places) < 60
    assert all(x1 >= 0 and y1 >= 0 and x2 <= 200 and y2 <= 150 for x1, y1, x2, y2 in places)
    assert not any(overlapping(a, b) for a, b in combinations(places, 2))


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3), (192, 192), (2600, 900)])
def test_a_picture_keeps_its_size_and_the_image_is_unchanged(size: tuple[int, int]) -> None:
    width, height = size
    image = grey(width, height)
    boxes: list[Box] = [(0, 0, width, height), (-5, -5, width + 9, 1), (width / 2, height / 2, width / 2, height / 2)]
    pairs = [DrawnPair(a, b, "ride bicycle") for a, b in combinations(boxes, 2)]
    picture = draw_pairs(image, pairs)
    assert (picture.size, picture.mode) == (size, "RGB")
    assert touched(picture).any()
    assert (image == GREY).all()
    assert not touched(draw_pairs(image, [])).any()


def test_lines_run_along_the_boxes_and_between_their_centres() -> None:
    pair = DrawnPair((20, 60, 80, 160), (140, 60, 180, 160), "", "right")
    picture = draw_pairs(grey(200, 200), [pair])
    pixels, colour = np.asarray(picture).astype(int), np.array(ImageColor.getrgb(VERDICT_COLOURS["right"]))
    for x, y in [(50, 60), (50, 160), (20, 100), (80, 130), (160, 60), (140, 140), (110, 110)]:
        assert abs(pixels[y - 1 : y + 2, x - 1 : x + 2] - colour).max(-1).min() < 40
    lines = touched(picture)
    for empty in (lines[65:100, 25:75], lines[:50], lines[170:], lines[:, 190:]):
        assert not empty.any()


def test_what_was_missed_is_dashed_and_what_was_found_is_not() -> None:
    def drawn(verdict: Verdict) -> float:
        pair = DrawnPair((20, 60, 180, 160), (20, 60, 180, 160), "", verdict)
        return float(touched(draw_pairs(grey(200, 200), [pair]))[60, 25:175].mean())

    assert drawn("right") == drawn("wrong") == 1
    assert 0.3 < drawn("missed") < 0.8


def test_what_a_person_does_alone_is_one_box_without_a_link() -> None:
    box = (20, 20, 180, 180)
    assert not touched(draw_pairs(grey(200, 200), [DrawnPair(box, box, "", "right")]))[30:170, 30:170].any()
    assert touched(draw_pairs(grey(200, 200), [DrawnPair(box, box, "stand", "right")]))[:18].any()


def test_a_long_text_stays_on_one_line_inside_the_picture() -> None:
    picture = draw_pairs(grey(120, 120), [DrawnPair((40, 50, 60, 70), (60, 50, 80, 70), "ride\n" + "very " * 99)])
    rows = np.flatnonzero(touched(picture)[:, 12])
    assert 0 < len(rows) < 25


@pytest.mark.parametrize("colour", [*PAIR_COLOURS, *VERDICT_COLOURS.values()])
def test_letters_on_every_colour_have_enough_contrast(colour: str) -> None:
    def luminance(name: str) -> float:
        parts = np.array(ImageColor.getrgb(name)) / 255
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    dark, light = sorted((luminance(colour), luminance(ink_on(colour))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_boxes_are_scaled_with_their_image() -> None:
    pair = DrawnPair((0, 10, 50, 100), (100, 0, 200, 100), "hold", "wrong")
    picture, [scaled] = fit_longest_side(grey(200, 100), [pair], 300)
    assert picture.size == (300, 150)
    assert scaled == DrawnPair((0, 15, 75, 150), (150, 0, 300, 150), "hold", "wrong")


def test_a_box_that_is_no_box_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DrawnPair 'hold': a box holds NaN or infinity"):
        DrawnPair((0, 0, float("nan"), 1), (0, 0, 1, 1), "hold")


def test_a_pair_may_have_its_own_colour_and_a_number_on_its_link() -> None:
    pair = DrawnPair((10, 80, 60, 180), (140, 80, 190, 180), "7", colour="#ff0000", at_link=True)
    pixels = np.asarray(draw_pairs(grey(200, 200), [pair])).astype(int)
    assert abs(pixels[128:133, 80:92] - [255, 0, 0]).max(-1).min() < 40
    # The badge covers the middle, and its ink is another colour.
    badge = pixels[122:138, 92:108]
    assert abs(badge - [255, 0, 0]).max(-1).min() < 40
    assert (abs(badge - [255, 0, 0]).max(-1) > 150).any()


def test_the_covered_share_is_none_where_a_label_has_no_room() -> None:
    pair = DrawnPair((10, 60, 60, 160), (140, 60, 190, 160), "ride bicycle")
    one = covered_share((200, 200), [pair])
    assert one is not None
    assert 0 < one < 0.3
    assert covered_share((200, 200), [pair] * 2) == pytest.approx(2 * one)
    assert covered_share((200, 200), []) == 0
    assert covered_share((200, 200), [pair] * 60) is None


@pytest.mark.parametrize("width", [30, 200, 1600])
def test_a_legend_has_a_line_per_pair_in_as_many_columns_as_fit(width: int) -> None:
    lines = [("#e69f00", str(number), f"ride bicycle {number}") for number in range(1, 9)]
    picture = Image.fromarray(grey(width, 100))
    taller = add_legend(picture, lines)
    assert taller.width == width
    assert (np.asarray(taller)[:100] == GREY).all()
    assert (np.asarray(taller)[100:] != 255).any()
    assert add_legend(picture, []) is picture
    if width > 30:
        one = add_legend(picture, lines[:1]).height - 100
        assert (taller.height - 100) / one < (8 if width == 200 else 4)
