"""Windows worked out by hand, and what a crop then shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hoi.crops import (
    CropMode,
    CropStyle,
    ResizeMode,
    boxes_in_window,
    crop_windows,
    cut_crop,
    share_windows,
    whole_image_window,
)

FILL = (10, 20, 30)
STYLE = CropStyle(size_px=8, fill_rgb=FILL, interpolation="bicubic", resize_mode="shortest")
HEIGHT, WIDTH = 100, 200


def window(
    box: list[float], mode: CropMode = "square", margin: float = 1.0, resize_mode: ResizeMode = "shortest"
) -> list[list[int]]:
    edges = crop_windows(np.array([box], np.float32), margin, mode, (HEIGHT, WIDTH), resize_mode)[0].tolist()
    return [edges[:4], edges[4:]]


WIDE, CORNER = [40, 40, 80, 60], [0, 0, 20, 20]


@pytest.mark.parametrize(
    ("box", "settings", "canvas", "content"),
    [
        # 40 wide, 20 high, centre (60, 50): a square of 40, and x 1.5 one of 60.
        (WIDE, {}, [40, 30, 80, 70], [40, 30, 80, 70]),
        (WIDE, {"margin": 1.5}, [30, 20, 90, 80], [30, 20, 90, 80]),
        # 20 wide, 100 high, centre (10, 50): a square of 100 from x = -40.
        ([0, 0, 20, 100], {}, [-40, 0, 60, 100], [0, 0, 60, 100]),
        (WIDE, {"mode": "pad"}, [40, 30, 80, 70], WIDE),
        (WIDE, {"mode": "squash"}, WIDE, WIDE),
        # x 2 about (10, 10): from -10 to 30, of which the image has 0 to 30.
        (CORNER, {"mode": "squash", "margin": 2.0}, [0, 0, 30, 30], [0, 0, 30, 30]),
        (WIDE, {"mode": "model", "resize_mode": "shortest"}, [50, 40, 70, 60], [50, 40, 70, 60]),
        (WIDE, {"mode": "model", "resize_mode": "longest"}, [40, 30, 80, 70], WIDE),
        (WIDE, {"mode": "model", "resize_mode": "squash"}, WIDE, WIDE),
    ],
)
def test_windows_by_hand(box: list[float], settings: Any, canvas: list[int], content: list[int]) -> None:
    assert window(box, **settings) == [canvas, content]


@pytest.mark.parametrize("mode", ["square", "pad", "squash", "model"])
@pytest.mark.parametrize(
    "box", [[50, 50, 50, 50], [0, 0, 0, 0], [200, 100, 200, 100], [199, 99, 200, 100], [7, 0, 7, 100]]
)
def test_an_empty_box_still_shows_a_pixel_of_the_image(mode: CropMode, box: list[float]) -> None:
    canvas, content = window(box, mode, margin=1.15)
    for x0, y0, x1, y1 in (canvas, content):
        assert x1 > x0
        assert y1 > y0
    assert 0 <= content[0] < content[2] <= WIDTH
    assert 0 <= content[1] < content[3] <= HEIGHT
    crop = cut_crop(torch.full((3, HEIGHT, WIDTH), 200, dtype=torch.uint8), np.array(canvas + content), 8, STYLE)
    assert crop.shape == (3, 8, 8)


def test_no_box_gives_no_window() -> None:
    assert crop_windows(np.zeros((0, 4), np.float32), 1.15, "square", (5, 5), "shortest").shape == (0, 8)


def test_windows_within_the_tolerance_share_a_crop() -> None:
    # Canvases of 40 px shown at 20: a pixel of the image is half a pixel of the crop.
    one, next_to_it, two_away = ([left, 0, left + 40, 40] * 2 for left in (10, 11, 12))
    windows = np.array([two_away, one, next_to_it, one], np.int32)
    distinct, row_of = share_windows(windows, 0.0, 20)
    assert distinct.tolist() == [one, next_to_it, two_away]
    assert row_of.tolist() == [2, 0, 1, 0]
    # The first stands for the one beside it, and that one for nobody: nothing drifts along a chain.
    distinct, row_of = share_windows(windows, 0.5, 20)
    assert distinct.tolist() == [one, two_away]
    assert row_of.tolist() == [1, 0, 0, 0]
    assert share_windows(windows, 0.49, 20)[0].tolist() == [one, next_to_it, two_away]


def test_windows_with_other_content_share_no_crop() -> None:
    windows = np.array([[0, 0, 40, 40, 0, 0, 40, 40], [0, 0, 40, 40, 0, 10, 40, 30]], np.int32)
    assert len(share_windows(windows, 0.5, 20)[0]) == 2
    assert share_windows(windows[:0], 0.5, 20)[0].shape == (0, 8)


def test_the_whole_image_lies_in_the_middle_of_a_square() -> None:
    assert whole_image_window((100, 200)).tolist() == [0, -50, 200, 150, 0, 0, 200, 100]
    # Box (20, 10, 60, 30) in a 200 px square that begins at y = -50, shown at half size.
    box = boxes_in_window(np.array([[20, 10, 60, 30]], np.float32), whole_image_window((100, 200)), 100)
    assert box.tolist() == [[10, 30, 30, 40]]


def test_beyond_the_image_a_crop_has_the_fill_colour() -> None:
    image = torch.arange(3 * 4 * 8, dtype=torch.uint8).view(3, 4, 8)
    crop = cut_crop(image, whole_image_window((4, 8)), 8, STYLE)
    assert torch.equal(crop[:, 2:6], image)
    for channel in range(3):
        assert (crop[channel, [0, 1, 6, 7]] == FILL[channel]).all()


def test_integer_resize_equals_that_of_floats_to_a_grey_level() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    image = torch.from_numpy(rows).permute(2, 0, 1)
    box = np.array([[5, 5, 65, 65]], np.float32)
    crop = cut_crop(image, crop_windows(box, 1.0, "square", (90, 70), "shortest")[0], 24, STYLE)
    floats = image[None, :, 5:65, 5:65].float()
    expected = functional.interpolate(floats, (24, 24), mode="bicubic", antialias=True)[0].clamp(0, 255)
    assert (crop.float() - expected).abs().max() <= 1.0
    plain = functional.interpolate(floats, (24, 24), mode="bicubic")[0].clamp(0, 255)
    assert (plain - expected).abs().max() > 20
