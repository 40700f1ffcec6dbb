"""Annotated boxes become targets of the world's detector, and targets its loss.

Letters: B images, C classes, G box groups (people, things), h and w cells of 4 pixels, N boxes.
Source: Liu et al., Training-Time-Friendly Network (AAAI 2020); different: box groups, and one bump for both heads, at
least a cell wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from hoi.world.detector_model import STRIDE, boxes_at

POSITIVE_SPREAD = 0.09
"""Standard deviation of a class heatmap's bump, over the box's side (TTFNet's 0.54 / 6)."""
MIN_SPREAD_CELLS = 0.35
"""Smallest such deviation: a ball of few pixels still marks its centre cell."""
REGION_LEVEL = 0.3
"""Height of the bump above which a cell also learns the box."""
BOX_LOSS_WEIGHT = 5.0


@dataclass(frozen=True)
class Targets:
    """What the network should say of a batch.

    Args:
        heat: float [B, C, h, w] in [0, 1]; 1 at the centre cells.
        boxes: float [B, G, 4, h, w], the box that a cell should give.
        weight: float [B, G, h, w], how much that counts; 0 outside of every box.
    """

    heat: Tensor
    boxes: Tensor
    weight: Tensor


def make_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], group_of: Tensor, size_hw: tuple[int, int]
) -> Targets:
    """Annotated boxes to targets.

    Args:
        boxes: Per image float [N, 4], xyxy in pixels.
        labels: Per image int64 [N].
        group_of: int64 [C], box group of each class.
        size_hw: Pixels of the padded images.
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
        # Small boxes last: where regions overlap, the smaller box is the one in front more often.
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
    """Centre-focal loss of the heatmaps plus GIoU loss of the boxes; a scalar."""
    positive = targets.heat == 1
    probability = logits.sigmoid()
    hit = functional.logsigmoid(logits) * (1 - probability).square()
    miss = functional.logsigmoid(-logits) * probability.square() * (1 - targets.heat).pow(4)
    class_loss = -torch.where(positive, hit, miss).sum() / positive.sum().clamp(min=1)
    region = targets.weight > 0
    found = boxes_at(distances).movedim(2, -1)[region]
    wanted = targets.boxes.movedim(2, -1)[region]
    weight = targets.weight[region]
    box_loss = (generalized_box_iou_loss(found, wanted) * weight).sum() / weight.sum().clamp(min=1e-6)
    return class_loss + BOX_LOSS_WEIGHT * box_loss
