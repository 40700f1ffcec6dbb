"""The embedded world's own small detector; it takes images of any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from hoi.config import WorldDetectorConfig
from hoi.detectors.base import keep_detections, kept_settings, match_classes
from hoi.files import find_local
from hoi.records import Detections
from hoi.vocabulary import Vocabulary
from hoi.weights import weights_sha256
from hoi.world.detector import PAD_TO, load_detector, peaks

MAX_BATCH = 16
"""Images of one forward pass."""


class WorldDetector:
    """Images of equal size share a forward pass; none is padded to a neighbour's size."""

    def __init__(self, config: WorldDetectorConfig, vocabulary: Vocabulary, device: str, *_: object) -> None:
        self._config, self._device = config, device
        net = load_detector(find_local(config.weights))
        self._labels = match_classes(net.class_names, vocabulary, f"detector world, weights {config.weights}")
        self._sha256 = weights_sha256(net)
        self._net = net.to(device).to(memory_format=torch.channels_last)

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        """See `Detector`."""
        rows_of_size: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            rows_of_size.setdefault(image.shape[:2], []).append(row)
        found: dict[int, Detections] = {}
        for rows in rows_of_size.values():
            for start in range(0, len(rows), MAX_BATCH):
                batch = rows[start : start + MAX_BATCH]
                found.update(zip(batch, self._detect(np.stack([images[row] for row in batch])), strict=True))
        return [found[row] for row in range(len(images))]

    def provenance(self) -> dict[str, object]:
        """See `Detector`."""
        return {"name": "world", "weights_sha256": self._sha256, **kept_settings(self._config)}

    @torch.inference_mode()
    def _detect(self, images: np.ndarray) -> list[Detections]:
        height, width = size_hw = images.shape[1], images.shape[2]
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        padded = functional.pad(pixels, (0, -width % PAD_TO, 0, -height % PAD_TO))
        logits, distances = self._net(padded)
        results = []
        for image_logits, image_distances in zip(logits, distances, strict=True):
            raw = peaks(image_logits, image_distances, self._net.group_of, size_hw, self._config.min_score)
            boxes, scores, classes = (value.cpu().numpy() for value in raw)
            results.append(keep_detections(boxes, scores, self._labels[classes], size_hw, self._config, nms=True))
        return results
