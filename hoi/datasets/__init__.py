"""Where images and vocabularies come from. Nothing here hands out an HOI label: those live in `hoi.labels`.

Stages one and two of an annotation-free run use this module alone, so they cannot reach a label.
"""

from __future__ import annotations

from hoi.config import DatasetConfig
from hoi.datasets.base import ImageSource, UnreadableImage
from hoi.datasets.folder import FolderImages
from hoi.datasets.hicodet import HicodetImages
from hoi.datasets.hicodet_classes import hicodet_vocabulary
from hoi.datasets.vcoco import VcocoImages, vcoco_vocabulary
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.datasets.world import WorldImages, world_identity, world_vocabulary
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

__all__ = ["ImageSource", "UnreadableImage", "check_split", "identity", "load_vocabulary", "open_images"]


def open_images(config: DatasetConfig, split: str) -> ImageSource:
    """The images of one split, without any label.

    Raises:
        UserError: the data set has no such split, or the split has no image.
    """
    check_split(config, split)
    source = _images(config, split)
    if not source.image_ids:
        raise UserError(
            f"split '{split}' of the data set is empty",
            where=getattr(config, "images", getattr(config, "root", f"dataset {config.name}")),
            expected="at least one image",
            got="none",
            fix="check the folder and the shares in dataset.splits",
        )
    return source


def _images(config: DatasetConfig, split: str) -> ImageSource:
    if config.name == "world":
        return WorldImages(config, split)
    if config.name == "vcoco":
        return VcocoImages(config, split)
    return HicodetImages(config, split) if config.name == "hicodet" else FolderImages(config, split)


def check_split(config: DatasetConfig, split: str) -> None:
    """Nothing, for a split that the data set has; otherwise a UserError."""
    if split not in config.splits:
        raise UserError(
            f"the data set has no split '{split}'",
            where=f"dataset {config.name}",
            expected=" or ".join(config.splits),
            got=split,
            fix="mend train.split, evaluation.split or evaluation.tune_split, or add it to dataset.splits",
        )


def load_vocabulary(config: DatasetConfig) -> Vocabulary:
    """The objects, verbs and interactions that a data set speaks of."""
    if config.name == "world":
        return world_vocabulary()
    if config.name == "vcoco":
        return vcoco_vocabulary(config.vocabulary)
    return hicodet_vocabulary() if config.name == "hicodet" else read_vocabulary(config.vocabulary)


def identity(config: DatasetConfig) -> dict[str, object]:
    """What says which images a cache was made from, apart from their ids: part of the fingerprint, free of paths."""
    return world_identity(config) if config.name == "world" else {"name": config.name}
