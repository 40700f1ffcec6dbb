"""Annotated object boxes (never pairs): for the ground-truth detector and for the box AP of detectors."""

from __future__ import annotations

import numpy as np

from hoi.config import DatasetConfig
from hoi.datasets.world import scene_of
from hoi.errors import UserError
from hoi.world import OBJECTS, annotate


def load_boxes(config: DatasetConfig, image_id: str) -> tuple[np.ndarray, list[str]]:
    """Image id to its annotated boxes, float32 [N, 4] pixel-edge xyxy, and their N object names.

    Raises:
        UserError: the data set has no annotated boxes.
    """
    if config.name != "world":
        raise UserError(
            "the ground_truth detector needs annotated boxes",
            where=f"dataset {config.name}",
            expected="a data set with boxes (world)",
            fix="use detector.name torchvision or precomputed",
        )
    annotation = annotate(scene_of(image_id))
    return annotation.boxes_xyxy.astype(np.float32), [OBJECTS[label] for label in annotation.labels]
