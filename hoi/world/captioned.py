"""What the world's CLIP is trained from: drawn images with captions, and nothing else.

Letters: B images of a batch, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hoi.world import caption, caption_crop, render, sample_scene

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
"""Of the model's input, RGB in [0, 1]."""
PAD_COLOURS = (0, 127)
"""What a crop shows beyond the image's end: pipelines pad with black or with the model's mean."""


def captioned_images(
    seed: int, num_scenes: int, crops_per_scene: int, size_px: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Scenes of the split `clip` to (image uint8 [S, S, 3], caption): each whole, and zoomed in on some of its parts.

    Args:
        seed: World seed.
        num_scenes: Scenes 0 to num_scenes - 1 of the split are drawn.
        crops_per_scene: Zooms into a scene, each with a caption of its own.
        size_px: S.
    """
    random = np.random.default_rng((seed, num_scenes))
    for index in range(num_scenes):
        scene = sample_scene(seed, "clip", index)
        image = render(scene)
        yield resize(image, size_px), caption(scene, 0)
        for variant in range(crops_per_scene):
            text, (x0, y0, x1, y1) = caption_crop(scene, variant)
            side = max(x1 - x0, y1 - y0) * random.uniform(0.95, 1.4)
            shift = random.uniform(-0.06, 0.06, 2) * side
            left, top = (x0 + x1 - side) / 2 + shift[0], (y0 + y1 - side) / 2 + shift[1]
            pad = int(random.choice(PAD_COLOURS))
            yield resize(cut_square(image, round(left), round(top), max(round(side), 8), pad), size_px), text


def cut_square(image: np.ndarray, left: int, top: int, side: int, pad: int) -> np.ndarray:
    """The square of an image that starts at (left, top); what lies outside of the image is `pad`."""
    square = np.full((side, side, 3), pad, np.uint8)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return square


def resize(image: np.ndarray, size_px: int) -> np.ndarray:
    """Antialiased bilinear resize to a square, uint8."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    sized = functional.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True)
    return sized[0].permute(1, 2, 0).contiguous().numpy()


def augment(images: Tensor, image_px: int, min_view: float, jitter: float, generator: torch.Generator) -> Tensor:
    """Stored images to training views: a random square of each, mirrored at random, with changed colours.

    Args:
        images: uint8 [B, 3, S, S].
        image_px: Side of the views.
        min_view: Smallest square, as a share of S.
        jitter: Strength of the colour changes.
        generator: Source of randomness.

    Returns:
        float [B, 3, image_px, image_px], normalised by MEAN and STD.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale = uniform(min_view, 1.0, count)
    room = 1 - scale
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale * (torch.randint(0, 2, (count,), generator=generator) * 2 - 1)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = uniform(-1, 1, count, 2) * room[:, None]
    grid = functional.affine_grid(theta, [count, 3, image_px, image_px], align_corners=False)
    views = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    gain = uniform(1 - jitter, 1 + jitter, count, 3, 1, 1) * uniform(1 - jitter, 1 + jitter, count, 1, 1, 1)
    shift = uniform(-jitter / 2, jitter / 2, count, 1, 1, 1) + 0.5 - 0.5 * gain
    # In place: new memory for 14 MB at every step costs more than the arithmetic.
    views.mul_(gain / 255).add_(shift).clamp_(0, 1)
    return normalise(views).contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor) -> Tensor:
    """float [B, 3, H, W] in [0, 1] to the model's input, in place."""
    return images.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
