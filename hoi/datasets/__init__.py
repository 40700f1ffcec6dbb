"""Where images and vocabularies come from. Nothing here hands out an HOI label: those live in `hoi.labels`.

Stages one and two of an annotation-free run use this package alone, so they cannot reach a label.
"""

from __future__ import annotations

from hoi.config import DatasetSettings
from hoi.datasets.base import Dataset, ImageSource, UnreadableImage, dataset_of
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

__all__ = [
    "Dataset",
    "ImageSource",
    "UnreadableImage",
    "check_split",
    "dataset_of",
    "identity",
    "load_vocabulary",
    "open_images",
]


def open_images(config: DatasetSettings, split: str) -> ImageSource:
    """Return the images of one split, without any label.

    Raises:
        UserError: the dataset has no such split, or the split has no image.
    """
    check_split(config, split)
    source = dataset_of(config).images(split)
    if not source.image_ids:
        raise UserError(
            f"split '{split}' of the data set is empty",
            where=getattr(config, "images", getattr(config, "root", f"dataset {config.name}")),
            expected="at least one image",
            got="none",
            fix="check the folder and the shares in dataset.splits",
        )
    return source


def check_split(config: DatasetSettings, split: str) -> None:
    """Raise a UserError if the dataset has no such split."""
    if split not in config.splits:
        raise UserError(
            f"the data set has no split '{split}'",
            where=f"dataset {config.name}",
            expected=" or ".join(config.splits),
            got=split,
            fix="mend train.split, evaluation.split or evaluation.tune_split, or add it to dataset.splits",
        )


def load_vocabulary(config: DatasetSettings) -> Vocabulary:
    """Return the objects, verbs and interactions that a dataset speaks of."""
    return dataset_of(config).vocabulary()


def identity(config: DatasetSettings) -> dict[str, object]:
    """Return what says which images a cache was made from, apart from their ids; see `Dataset.identity`."""
    return dataset_of(config).identity()
