"""A folder of photographs as a dataset: all image files in it and below it."""

from __future__ import annotations

from hoi.config import FolderDataset
from hoi.datasets import Dataset
from hoi.datasets.images import ImageFiles, hash_point, list_images
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


class Folder(Dataset[FolderDataset]):
    def images(self, split: str) -> ImageFiles:
        config = self.settings
        image_ids = [name for name in list_images(config.images) if split_of(name, config.splits) == split]
        return ImageFiles(config.images, image_ids, config.max_image_pixels)

    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.settings.vocabulary)
