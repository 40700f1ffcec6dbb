"""A folder of photographs as a dataset: all image files in it and below it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hoi.config import FolderDataset
from hoi.datasets import Dataset
from hoi.datasets.images import hash_point, list_images, read_image
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.vocabulary import Vocabulary


def split_of(image_id: str, shares: dict[str, float]) -> str:
    """Return the split of an image by a hash of its name alone, so that adding images never moves others."""
    point, upper = hash_point(image_id), 0.0
    for split, share in shares.items():
        upper += share
        if point < upper:
            return split
    return [split for split, share in shares.items() if share > 0][-1]


class FolderImages:
    """One split of a folder; the relative path is the image id."""

    def __init__(self, config: FolderDataset, split: str) -> None:
        self._root = Path(config.images)
        self._max_image_pixels = config.max_image_pixels
        self.image_ids = [name for name in list_images(config.images) if split_of(name, config.splits) == split]

    def read(self, row: int) -> np.ndarray:
        return read_image(self._root / self.image_ids[row], self._max_image_pixels)


class Folder(Dataset[FolderDataset]):
    """A folder of photographs and a file of phrases."""

    def images(self, split: str) -> FolderImages:
        return FolderImages(self.settings, split)

    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.settings.vocabulary)
