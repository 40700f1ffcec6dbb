"""Drawn images with boxes become a small detector.

The only thing that training sees is an iterator of (image, boxes, labels): who does what with which
object is not in it.
Letters: B images of a batch, N boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hoi.world import draw, sample_scene
from hoi.world.detector_loss import detector_loss, make_targets
from hoi.world.detector_model import DetectorNet, DetectorShape, save_detector


@dataclass(frozen=True)
class DetectorRecipe:
    """All that decides a training, its seed aside."""

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
    """Scenes of the split `detector` to (image uint8 [H, W, 3], boxes xyxy float32 [N, 4], labels int64 [N]).

    Args:
        seed: World seed.
        num_scenes: Scenes 0 to num_scenes - 1 of the split are drawn.
    """
    for index in range(num_scenes):
        image, annotation = draw(sample_scene(seed, "detector", index))
        yield image, annotation.boxes_xyxy.astype(np.float32), annotation.labels.astype(np.int64)


def train_detector(
    examples: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    class_names: Sequence[str],
    recipe: DetectorRecipe,
    seed: int,
    path: Path,
    report: Callable[[str], None],
) -> None:
    """Images with boxes to a weight file.

    Args:
        examples: (image uint8 [S, S, 3], boxes xyxy float32 [N, 4], labels int64 [N]), all images of one size.
        class_names: What the labels' rows mean.
        recipe: Sizes, steps and rates.
        seed: Of the initial weights, the order and the augmentation.
        path: The safetensors file to write.
        report: Gets a line of progress now and then.
    """
    pixels: list[Tensor] = []
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    for image, image_boxes, image_labels in examples:
        pixels.append(torch.from_numpy(image).permute(2, 0, 1))
        boxes.append(torch.from_numpy(image_boxes))
        labels.append(torch.from_numpy(image_labels))
    report(f"{len(pixels)} images drawn")

    torch.manual_seed(seed)
    net = DetectorNet(class_names, recipe.shape).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, recipe.steps + 1):
        if len(order) < recipe.batch_size:
            order = torch.cat([order, torch.randperm(len(pixels), generator=generator)])
        rows, order = order[: recipe.batch_size].tolist(), order[recipe.batch_size :]
        images, batch_boxes = augment(
            torch.stack([pixels[row] for row in rows]), [boxes[row] for row in rows], recipe, generator
        )
        size = (images.shape[2], images.shape[3])
        targets = make_targets(batch_boxes, [labels[row] for row in rows], net.group_of, size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits, distances = net(images)
        loss = detector_loss(logits, distances, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        if step % 100 == 0 or step == recipe.steps:
            report(f"step {step}/{recipe.steps} loss {loss.item():.3f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_detector(net, path, {"seed": seed, **asdict(recipe)})


def augment(
    images: Tensor, boxes: Sequence[Tensor], recipe: DetectorRecipe, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """A batch to one resized, half of it mirrored, with changed colours; boxes follow.

    Args:
        images: uint8 [B, 3, S, S].
        boxes: Per image float [N, 4], xyxy.
        recipe: Its sizes and jitter.
        generator: Source of randomness.

    Returns:
        float [B, 3, T, T] in [0, 1], and the boxes in its pixels.
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
    """Linear warm-up, then half a cosine to 0; steps count from 1."""
    if step <= recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
