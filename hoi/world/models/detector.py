"""Training of the world's detector (`hoi.detectors.world`), from images, boxes and object classes alone.

Shapes: B images, C classes, G box groups (people, objects), h and w cells of 4 pixels, N boxes.
Source: Liu et al., Training-Time-Friendly Network (AAAI 2020).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from hoi.detectors.world import METADATA_KEY, STRIDE, DetectorNet, DetectorShape, boxes_at
from hoi.world import OBJECTS, draw, sample_scene
from hoi.world.models.loop import Report, fit, save_float16

POSITIVE_SPREAD = 0.09
"""Standard deviation of a class heatmap's bump, over the box's side (TTFNet's 0.54 / 6)."""
MIN_SPREAD_CELLS = 0.35
"""Smallest such deviation: a ball of few pixels still marks its centre cell."""
REGION_LEVEL = 0.3
"""Height of the bump above which a cell also learns the box."""
BOX_LOSS_WEIGHT = 5.0


class Targets(NamedTuple):
    """The wanted outputs for a batch."""

    heat: Tensor  # float [B, C, h, w] in [0, 1]; 1 at the centre cells
    boxes: Tensor  # float [B, G, 4, h, w], the box of each cell
    weight: Tensor  # float [B, G, h, w], the weight of that box; 0 outside of all boxes


def make_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], group_of: Tensor, size_hw: tuple[int, int]
) -> Targets:
    """Return the targets of each image's boxes, float xyxy [N, 4] in pixels of the padded images, and labels [N].

    `group_of` is int64 [C], the box group of each class.
    """
    height, width = size_hw[0] // STRIDE, size_hw[1] // STRIDE
    heat = torch.zeros(len(boxes), len(group_of), height, width)
    target = torch.zeros(len(boxes), 2, 4, height, width)
    weight = torch.zeros(len(boxes), 2, height, width)
    columns, rows = torch.arange(width), torch.arange(height)
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        sides = image_boxes[:, 2:] - image_boxes[:, :2]
        middle = ((image_boxes[:, :2] + image_boxes[:, 2:]) / 2 / STRIDE).long()
        spread = (sides / STRIDE * POSITIVE_SPREAD).clamp(min=MIN_SPREAD_CELLS)
        across = ((columns - middle[:, :1].clamp(0, width - 1)) / spread[:, :1]).square()
        along = ((rows - middle[:, 1:].clamp(0, height - 1)) / spread[:, 1:]).square()
        bumps = torch.exp(-(along[:, :, None] + across[:, None, :]) / 2)
        # Small boxes last: where regions overlap, the smaller box is more often in front.
        for row in sides.prod(1).argsort(descending=True).tolist():
            label, bump = int(image_labels[row]), bumps[row]
            group = int(group_of[label])
            heat[image, label] = torch.maximum(heat[image, label], bump)
            region = bump > REGION_LEVEL
            target[image, group][:, region] = image_boxes[row][:, None]
            # log area, as in TTFNet: large boxes count more, but not in proportion.
            share = bump[region] / bump[region].sum()
            weight[image, group][region] = share * sides[row].prod().clamp(min=2.0).log()
    return Targets(heat, target, weight)


def detector_loss(logits: Tensor, distances: Tensor, targets: Targets) -> Tensor:
    """Return the focal loss of the heatmaps plus the GIoU loss of the boxes."""
    positive = targets.heat == 1
    probability = logits.sigmoid()
    hit = functional.logsigmoid(logits) * (1 - probability).square()
    miss = functional.logsigmoid(-logits) * probability.square() * (1 - targets.heat).pow(4)
    class_loss = -torch.where(positive, hit, miss).sum() / positive.sum().clamp(min=1)
    region = targets.weight > 0
    predicted = boxes_at(distances).movedim(2, -1)[region]
    wanted = targets.boxes.movedim(2, -1)[region]
    weight = targets.weight[region]
    box_loss = (generalized_box_iou_loss(predicted, wanted) * weight).sum() / weight.sum().clamp(min=1e-6)
    return class_loss + BOX_LOSS_WEIGHT * box_loss


@dataclass(frozen=True)
class DetectorRecipe:
    """Everything that decides a training but its seed."""

    num_scenes: int = 12_000
    shape: DetectorShape = field(default_factory=DetectorShape)
    steps: int = 3500
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    sizes_px: tuple[int, ...] = (160, 192, 192, 224)
    """A batch is resized to one of these sides."""
    jitter: float = 0.2
    """Largest relative change of contrast and of each colour, and largest shift of brightness over 2."""


def annotated_images(seed: int, num_scenes: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (image uint8 [H, W, 3], boxes xyxy float32 [N, 4], labels int64 [N]) of the split `detector`."""
    for index in range(num_scenes):
        image, annotation = draw(sample_scene(seed, "detector", index))
        yield image, annotation.boxes_xyxy.astype(np.float32), annotation.labels.astype(np.int64)


def train_detector(recipe: DetectorRecipe, seed: int, path: Path, report: Report) -> None:
    """Train a detector and write its safetensors file.

    `seed` is of the scenes, the initial weights, the order and the augmentation.
    """
    examples = zip(*annotated_images(seed, recipe.num_scenes), strict=True)
    pixels, boxes, labels = (list(map(torch.from_numpy, column)) for column in examples)
    pixels = [image.permute(2, 0, 1) for image in pixels]
    report(f"{len(pixels)} images drawn")

    torch.manual_seed(seed)
    net = DetectorNet(OBJECTS, recipe.shape).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)

    def losses(step: int) -> dict[str, Tensor]:
        nonlocal order
        if len(order) < recipe.batch_size:
            order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
        rows, order = order[: recipe.batch_size].tolist(), order[recipe.batch_size :]
        batch = torch.stack([pixels[row] for row in rows])
        images, batch_boxes = augment(batch, [boxes[row] for row in rows], recipe, generator)
        size = (images.shape[2], images.shape[3])
        targets = make_targets(batch_boxes, [labels[row] for row in rows], net.group_of, size)
        with torch.autocast("cpu", torch.bfloat16):
            logits, distances = net(images)
        return {"loss": detector_loss(logits, distances, targets)}

    fit(net, optimizer, lambda step: learning_rate(recipe, step), losses, recipe.steps, report, max_grad_norm=5.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_detector(net, path, {"seed": seed, **asdict(recipe)})


def augment(
    images: Tensor, boxes: Sequence[Tensor], recipe: DetectorRecipe, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Resize a batch, uint8 [B, 3, S, S], with its boxes, mirror half of it and jitter its colours.

    The result is float [B, 3, T, T] in [0, 1], and the boxes in its pixels.
    """
    count, width = len(images), images.shape[3]
    size = recipe.sizes_px[int(torch.randint(0, len(recipe.sizes_px), (1,), generator=generator))]
    views = images.float() / 255
    if size != width:
        views = functional.interpolate(views, (size, size), mode="bilinear", antialias=True)
    mirrored = torch.rand(count, generator=generator) < 0.5
    views[mirrored] = views[mirrored].flip(3)
    gain = 1 + recipe.jitter * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    shift = recipe.jitter / 2 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    views = ((views - 0.5) * gain + 0.5 + shift).clamp(0, 1)
    moved = []
    for row, image_boxes in enumerate(boxes):
        x0, y0, x1, y1 = (image_boxes * (size / width)).unbind(1)
        if mirrored[row]:
            x0, x1 = size - x1, size - x0
        moved.append(torch.stack([x0, y0, x1, y1], 1))
    return views.contiguous(memory_format=torch.channels_last), moved


def learning_rate(recipe: DetectorRecipe, step: int) -> float:
    """Return the learning rate of a step, from 1: a linear warm-up, then half a cosine to 0."""
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def save_detector(net: DetectorNet, path: Path, recipe: dict[str, object]) -> None:
    """Write float16 weights; the file's metadata has the class names, the shape and the recipe."""
    about = {"class_names": net.class_names, "shape": asdict(net.shape), "recipe": recipe}
    # One entry: safetensors writes several in an order that changes from run to run.
    save_float16(net, path, {METADATA_KEY: json.dumps(about)})
