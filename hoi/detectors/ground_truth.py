"""Annotated boxes in place of a detector's: the upper bound of detection, and a stand-in in tests. No pair is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from hoi.config import DatasetSettings, GroundTruthDetectorConfig
from hoi.datasets import dataset_of
from hoi.detectors.base import keep_detections, kept_settings
from hoi.prompts import spaced
from hoi.records import Detections
from hoi.vocabulary import Vocabulary


class GroundTruthDetector:
    """Every annotated box of the vocabulary's objects at score 1, optionally moved a little."""

    def __init__(
        self, config: GroundTruthDetectorConfig, vocabulary: Vocabulary, device: str, dataset: DatasetSettings
    ) -> None:
        self._config, self._dataset = config, dataset_of(dataset)
        self._rows = {spaced(name).lower(): row for row, name in enumerate(vocabulary.objects)}

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        """See `Detector`; an image's noise is drawn from its id. Annotated boxes are distinct: none is suppressed."""
        return [self._detect(image.shape[:2], image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        """See `Detector`; the boxes belong to the data set, which a fingerprint names on its own."""
        return {"name": "ground_truth", "jitter": self._config.jitter, **kept_settings(self._config)}

    def _detect(self, size_hw: tuple[int, int], image_id: str) -> Detections:
        boxes, names = self._dataset.boxes(image_id)
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
