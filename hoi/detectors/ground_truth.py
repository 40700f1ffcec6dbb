"""Annotated boxes in place of a detector's: the upper bound of detection, and a stand-in in tests. No pair is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from hoi.config import DatasetConfig, GroundTruthDetectorConfig
from hoi.datasets.world import scene_of
from hoi.detectors.base import keep_detections, kept_settings
from hoi.errors import UserError
from hoi.prompts import spaced
from hoi.records import Detections
from hoi.vocabulary import Vocabulary
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


class GroundTruthDetector:
    """Every annotated box of the vocabulary's objects at score 1, optionally moved a little."""

    def __init__(self, config: GroundTruthDetectorConfig, vocabulary: Vocabulary, dataset: DatasetConfig) -> None:
        self._config, self._dataset = config, dataset
        self._rows = {spaced(name).lower(): row for row, name in enumerate(vocabulary.objects)}

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        """See `Detector`; an image's noise is drawn from its id. Annotated boxes are distinct: none is suppressed."""
        return [self._detect(image.shape[:2], image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        """See `Detector`; the boxes belong to the data set, which a fingerprint names on its own."""
        return {"name": "ground_truth", "jitter": self._config.jitter, **kept_settings(self._config)}

    def _detect(self, size_hw: tuple[int, int], image_id: str) -> Detections:
        boxes, names = load_boxes(self._dataset, image_id)
        labels = np.array([self._rows.get(spaced(name).lower(), -1) for name in names], dtype=np.int64)
        if self._config.jitter > 0:
            seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
            sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
            boxes = boxes + np.random.default_rng(seed).normal(0.0, self._config.jitter, boxes.shape) * sides
            boxes = np.concatenate(
                [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1
            )
        scores = np.ones(len(boxes), np.float32)
        return keep_detections(boxes, scores, labels, size_hw, self._config, nms=False)
