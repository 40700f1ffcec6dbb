"""Box geometry on float32 pixel-edge xyxy arrays: area, overlap, union, clipping, suppression.

Letters: N, R boxes of two sets, P pairs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def box_area(boxes_xyxy: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, " N"]:
    """Boxes to areas in square pixels; an inverted box has none."""
    width, height = boxes_xyxy[:, 2] - boxes_xyxy[:, 0], boxes_xyxy[:, 3] - boxes_xyxy[:, 1]
    return np.maximum(width, 0) * np.maximum(height, 0)


def box_iou(boxes_xyxy: Float[np.ndarray, "N 4"], others_xyxy: Float[np.ndarray, "R 4"]) -> Float[np.ndarray, "N R"]:
    """Two sets of boxes to their intersection over union, 0 where both are empty."""
    top_left = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    bottom_right = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    overlap = np.maximum(bottom_right - top_left, 0).prod(-1)
    union = box_area(boxes_xyxy)[:, None] + box_area(others_xyxy)[None, :] - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def union_boxes(boxes_xyxy: Float[np.ndarray, "N 4"], pairs: Int[np.ndarray, "P 2"]) -> Float[np.ndarray, "P 4"]:
    """Pairs of box rows to the smallest boxes that hold both."""
    first, second = boxes_xyxy[pairs[:, 0]], boxes_xyxy[pairs[:, 1]]
    top_left, bottom_right = np.minimum(first[:, :2], second[:, :2]), np.maximum(first[:, 2:], second[:, 2:])
    return np.concatenate([top_left, bottom_right], axis=1)


def clip_boxes(boxes_xyxy: Float[np.ndarray, "N 4"], size_hw: tuple[int, int]) -> Float[np.ndarray, "N 4"]:
    """Boxes to their parts inside an image of size_hw pixels; one that lies outside becomes empty at the border."""
    height, width = size_hw
    limit = np.array([width, height, width, height], boxes_xyxy.dtype)
    return np.clip(boxes_xyxy, 0, limit)


def suppress(
    boxes_xyxy: Float[np.ndarray, "N 4"], labels: Int[np.ndarray, " N"], max_iou: float
) -> Int[np.ndarray, " kept"]:
    """Class-wise non-maximum suppression of boxes that come by falling score.

    Args:
        max_iou: A box that overlaps an earlier kept box of its class by more is dropped.

    Returns:
        Kept rows, ascending.
    """
    kept: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 1:
            kept.append(int(rows[0]))
            continue
        overlap = box_iou(boxes_xyxy[rows], boxes_xyxy[rows])
        alive = np.ones(len(rows), bool)
        for position in range(len(rows)):
            if alive[position]:
                kept.append(int(rows[position]))
                alive[position + 1 :] &= overlap[position, position + 1 :] <= max_iou
    return np.sort(np.array(kept, dtype=np.int64))
