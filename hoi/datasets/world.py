"""The embedded world as a dataset: scenes are drawn when read; an image id says which scene it is."""

from __future__ import annotations

import numpy as np

from hoi.config import WorldDataset
from hoi.datasets import Dataset
from hoi.vocabulary import Vocabulary
from hoi.world import INTERACTIONS, OBJECTS, SIZE_PX, VERBS, WORLD_VERSION, Scene, annotate, render, sample_scene


def world_vocabulary() -> Vocabulary:
    return Vocabulary(OBJECTS, VERBS, INTERACTIONS)


def world_image_id(seed: int, split: str, index: int) -> str:
    return f"world{WORLD_VERSION}-{seed}-{split}-{index:06d}"


def scene_of(image_id: str) -> Scene:
    _, seed, split, index = image_id.split("-")
    return sample_scene(int(seed), split, int(index))


class WorldImages:
    def __init__(self, config: WorldDataset, split: str) -> None:
        self.image_ids = [world_image_id(config.seed, split, index) for index in range(config.splits[split])]

    def read(self, row: int) -> np.ndarray:
        return render(scene_of(self.image_ids[row]))


class World(Dataset[WorldDataset]):
    image_hw = (SIZE_PX, SIZE_PX)

    def images(self, split: str) -> WorldImages:
        return WorldImages(self.settings, split)

    def vocabulary(self) -> Vocabulary:
        return world_vocabulary()

    def identity(self) -> dict[str, object]:
        """Drawing version and world seed; the scenes follow from them."""
        return {"name": self.settings.name, "version": WORLD_VERSION, "seed": self.settings.seed}

    def boxes(self, image_id: str) -> tuple[np.ndarray, list[str]]:
        annotation = annotate(scene_of(image_id))
        return annotation.boxes_xyxy.astype(np.float32), [OBJECTS[label] for label in annotation.labels]
