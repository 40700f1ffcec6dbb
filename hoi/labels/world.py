"""Labels of the embedded world: every scene knows what its people do."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hoi.config import WorldDataset
from hoi.datasets import open_images
from hoi.datasets.world import scene_of
from hoi.labels import LabelReader
from hoi.records import HoiLabels
from hoi.world import annotate


class WorldLabels(LabelReader[WorldDataset]):
    def load(self, split: str) -> HoiLabels:
        return _load(self.settings.seed, split, self.settings.splits[split])

    def exist(self, split: str) -> bool:
        return True


@lru_cache(maxsize=8)
def _load(seed: int, split: str, num_images: int) -> HoiLabels:
    config = WorldDataset(name="world", seed=seed, splits={split: num_images})
    rows: list[tuple[int, np.ndarray, np.ndarray, int]] = []
    for image, image_id in enumerate(open_images(config, split).image_ids):
        annotation = annotate(scene_of(image_id))
        boxes = annotation.boxes_xyxy.astype(np.float32)
        for human, obj, interactions in annotation.pairs:
            rows += [(image, boxes[human], boxes[obj], interaction) for interaction in interactions]
    images, boxes_h, boxes_o, interaction = zip(*rows, strict=True) if rows else ((), (), (), ())
    return HoiLabels(
        np.array(images, np.int64),
        np.array(boxes_h, np.float32).reshape(-1, 4),
        np.array(boxes_o, np.float32).reshape(-1, 4),
        np.array(interaction, np.int64),
    )
