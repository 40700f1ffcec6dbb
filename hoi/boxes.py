"""Box geometry on float32 pixel-edge xyxy arrays.

Shapes: N, R boxes of two sets, P pairs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

BEYOND, MANY = 0.1, 0.3
"""Detectors regress a little over the border. More than this share of boxes that reach beyond it by more than that
share of the image are not in its pixels. [choice]"""


def box_area(boxes_xyxy: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, " N"]:
    """Return areas in square pixels; 0 for inverted boxes."""
    width, height = boxes_xyxy[:, 2] - boxes_xyxy[:, 0], boxes_xyxy[:, 3] - boxes_xyxy[:, 1]
    return np.maximum(width, 0) * np.maximum(height, 0)


def box_iou(boxes_xyxy: Float[np.ndarray, "N 4"], others_xyxy: Float[np.ndarray, "R 4"]) -> Float[np.ndarray, "N R"]:
    """Return intersection over union; 0 where both boxes are empty."""
    top_left = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    bottom_right = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    overlap = np.maximum(bottom_right - top_left, 0).prod(-1)
    union = box_area(boxes_xyxy)[:, None] + box_area(others_xyxy)[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def union_boxes(boxes_xyxy: Float[np.ndarray, "N 4"], pairs: Int[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 4"]:
    """Return the smallest box that contains both boxes of each pair of rows."""
    first, second = boxes_xyxy[pairs[:, 0]], boxes_xyxy[pairs[:, 1]]
    top_left, bottom_right = np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])
    return np.concatenate([top_left, bottom_right], axis=1)


def clip_boxes(boxes_xyxy: Float[np.ndarray, "N 4"], size_hw: tuple[int, int]) -> Float[np.ndarray, "N 4"]:
    """Clip boxes to an image of size_hw pixels; a box outside becomes empty at the border."""
    height, width = size_hw
    limit = np.array([width, height, width, height], boxes_xyxy.dtype)
    return np.clip(boxes_xyxy, 0, limit)


def suppress(
    boxes_xyxy: Float[np.ndarray, "N 4"], labels: Int[np.ndarray, " N"], max_iou: float
) -> Int[np.ndarray, " kept"]:
    """Return the ascending rows that class-wise non-maximum suppression keeps of boxes by descending score.

    A box that overlaps a kept box of its class by more than `max_iou` is dropped.
    """
    # Imported where it is needed: to score predictions takes no torch.
    import torch
    from torchvision.ops import nms

    boxes, by_rank = torch.from_numpy(boxes_xyxy), torch.arange(len(labels), 0, -1, dtype=torch.float32)
    # One class at a time: `batched_nms` moves classes apart, which rounds. The limit is float32, like the overlaps.
    of_classes = [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    kept = [rows[nms(boxes[rows], by_rank[rows], float(np.float32(max_iou)))].numpy() for rows in of_classes]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *kept]))


def row_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of row-aligned boxes [R, 4], float64 [R]; 0 where both are empty."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    overlap = np.maximum(sides[:, 0], 0) * np.maximum(sides[:, 1], 0)
    areas = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]) + (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return overlap / np.maximum(areas - overlap, np.finfo(np.float64).tiny)


def min_pair_iou(boxes_h: np.ndarray, boxes_o: np.ndarray, truth_h: np.ndarray, truth_o: np.ndarray) -> np.ndarray:
    """Return min(IoU_h, IoU_o) of row-aligned boxes [R, 4], float64 [R]."""
    return np.minimum(row_iou(boxes_h, truth_h), row_iou(boxes_o, truth_o))


def find_other_frame(boxes_xyxy: np.ndarray, size_wh: np.ndarray | None = None) -> tuple[int, str] | None:
    """Return a row, and what is wrong with all, where boxes are not in pixels of their images; None where they may be.

    With the sizes of their images [N, 2], boxes [N, 4] that reach beyond them are looked for, without fractions.
    """
    if size_wh is None:
        rows = np.flatnonzero((boxes_xyxy % 1).any(axis=1))
        are_fractions = len(rows) and np.abs(boxes_xyxy).max() <= 1.5
        return (int(rows[0]), "boxes are fractions of the image, not pixels") if are_fractions else None
    below, above = boxes_xyxy[:, :2] < -BEYOND * size_wh, boxes_xyxy[:, 2:] > (1 + BEYOND) * size_wh
    rows = np.flatnonzero((below | above).any(axis=1))
    if len(rows) < 2 or len(rows) <= MANY * len(boxes_xyxy):
        return None
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    cause = "they look like those of a larger copy of the images"
    if (sides > boxes_xyxy[:, :2]).all() and (sides <= (1 + BEYOND) * size_wh).all():
        cause = "they look like [x1, y1, x2, y2] read as [x, y, width, height]"
    return int(rows[0]), f"{len(rows)} of {len(boxes_xyxy)} boxes reach far beyond their image: {cause}"
