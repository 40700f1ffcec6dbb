"""From boxes to square crops: how any region, and the whole image, becomes a teacher's input.

A window says which rectangle of the plane is shown (its canvas) and which part of the image is painted on it (its
content); both are whole pixels, so equal windows give equal crops and need one forward pass. The rest of the canvas
takes the fill colour; then the canvas is resized once, antialiased.

On a CPU the crop stays uint8 and takes torch's vectorised integer resize: about 50 µs for 120 → 96 pixels bicubic,
170 µs in floats, equal to within one grey level. A sampling grid over a pyramid would blur by up to a factor of two.

Shapes: P boxes, S side of the crop in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from hoi.boxes import clip_boxes

CropMode = Literal["square", "pad", "squash", "model"]
ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class CropStyle:
    """What a teacher expects of its input.

    Args:
        size_px: Side of the crop.
        fill_rgb: Colour where the image ends; the training mean, which is 0 after normalisation.
        interpolation: Resize kernel, always antialiased.
        resize_mode: What the model's own transform does to an image that is not square (crop mode `model`).
    """

    size_px: int
    fill_rgb: tuple[int, int, int]
    interpolation: Interpolation
    resize_mode: ResizeMode


def crop_windows(
    boxes_xyxy: Float[np.ndarray, "P 4"],
    margin: float,
    mode: CropMode,
    size_hw: tuple[int, int],
    resize_mode: ResizeMode,
) -> Int[np.ndarray, "P 8"]:
    """Return the windows of boxes: canvas xyxy, then content xyxy, in whole pixels of the image.

    `square` centres a square of the box's longer side × margin, with the image around the box in it. The others cut the
    box × margin where the image ends; `pad` centres it on a square, `squash` stretches it, `model` follows the model's
    own transform: `shortest` takes the middle square, `longest` pads, `squash` stretches.

    Args:
        boxes_xyxy: Inside the image; an empty box counts as one pixel.
        margin: Factor on the box's sides about its centre.
    """
    height, width = size_hw
    limit = np.array([width, height])
    boxes = clip_boxes(boxes_xyxy.astype(np.float64), size_hw)
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * margin
    if mode == "square":
        canvas = _squares(centre, sides.max(axis=1, initial=0))
        # A square about a point of the border may round to beside the image.
        side = canvas[:, 2:] - canvas[:, :2]
        shift = np.clip(canvas[:, :2], 1 - side, limit - 1) - canvas[:, :2]
        canvas = canvas + np.tile(shift, 2)
        return np.concatenate([canvas, _inside(canvas, limit)], axis=1).astype(np.int32)
    low = np.clip(np.floor(centre - sides / 2 + 0.5), 0, limit - 1)
    high = np.clip(np.floor(centre + sides / 2 + 0.5), low + 1, limit)
    content = np.concatenate([low, high], axis=1)
    shape = {"shortest": "middle", "longest": "pad", "squash": "squash"}[resize_mode] if mode == "model" else mode
    middle, extent = (low + high) / 2, high - low
    if shape == "pad":
        canvas = _squares(middle, extent.max(axis=1, initial=0))
    elif shape == "middle":
        canvas = _squares(middle, extent.min(axis=1, initial=np.inf))
        content = canvas
    else:
        canvas = content
    return np.concatenate([canvas, content], axis=1).astype(np.int32)


def share_windows(
    windows: Int[np.ndarray, "P 8"], merge_px: float, size_px: int
) -> tuple[Int[np.ndarray, "U 8"], Int[np.ndarray, " P"]]:
    """Return the distinct windows of an image, ordered by their edges, and each window's row among these.

    Args:
        merge_px: Windows share a crop if their edges differ by at most this, in pixels of the crop; 0 for equal ones.
    """
    distinct, row_of = np.unique(windows, axis=0, return_inverse=True)
    row_of = row_of.reshape(-1)
    if merge_px == 0:
        return distinct, row_of
    kept: list[int] = []
    kept_of = np.zeros(len(distinct), np.int64)
    for row, window in enumerate(distinct):
        tolerance = np.tile(window[2:4] - window[:2], 4) * (merge_px / size_px)
        near = np.flatnonzero((np.abs(distinct[kept] - window) <= tolerance).all(axis=1))
        kept_of[row] = near[0] if len(near) else len(kept)
        if not len(near):
            kept.append(row)
    return distinct[kept], kept_of[row_of]


def whole_image_window(size_hw: tuple[int, int]) -> Int[np.ndarray, " 8"]:
    """Return the window of the whole image, centred on the smallest square that holds it."""
    height, width = size_hw
    box = np.array([[0, 0, width, height]], np.float32)
    return crop_windows(box, 1.0, "pad", size_hw, "shortest")[0]


def cut_crop(
    image: UInt8[Tensor, "3 H W"], window: Int[np.ndarray, " 8"], size_px: int, style: CropStyle
) -> UInt8[Tensor, "3 S S"]:
    """Return the crop of a window, on the image's device."""
    x0, y0, x1, y1, left, top, right, bottom = (int(edge) for edge in window)
    crop = image[:, top:bottom, left:right]
    if (left, top, right, bottom) != (x0, y0, x1, y1):
        fill = torch.tensor(style.fill_rgb, dtype=torch.uint8, device=image.device)
        # Rows of whole pixels: to repeat three bytes at a time takes twice as long.
        rows = fill.repeat(x1 - x0).expand(y1 - y0, -1).contiguous()
        canvas = rows.view(y1 - y0, x1 - x0, 3).permute(2, 0, 1)
        canvas[:, top - y0 : bottom - y0, left - x0 : right - x0] = crop
        crop = canvas
    crop = crop[None]
    if not crop.is_cuda:
        return functional.interpolate(crop, (size_px, size_px), mode=style.interpolation, antialias=True)[0]
    resized = functional.interpolate(crop.float(), (size_px, size_px), mode=style.interpolation, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)[0]


def boxes_in_window(
    boxes_xyxy: Float[np.ndarray, "P 4"], window: Int[np.ndarray, " 8"], size_px: int
) -> Float[np.ndarray, "P 4"]:
    """Return boxes of the image in pixels of the crop that a square window gives."""
    scale = size_px / float(window[2] - window[0])
    return ((boxes_xyxy - np.tile(window[:2], 2)) * scale).astype(np.float32)


def _squares(centre: np.ndarray, side: np.ndarray) -> np.ndarray:
    whole_side = np.maximum(np.floor(side + 0.5), 1)[:, None]
    low = np.floor(centre - whole_side / 2 + 0.5)
    return np.concatenate([low, low + whole_side], axis=1)


def _inside(canvas: np.ndarray, limit: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(canvas[:, :2], 0), np.minimum(canvas[:, 2:], limit)], axis=1)
