"""Images and vocabularies. Nothing here hands out an HOI label: those live in `hoi.labels`.

Stages one and two of an annotation-free run use this package alone, so they cannot reach a label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from hoi.config import DatasetSettings
from hoi.errors import UserError
from hoi.registry import load_target
from hoi.vocabulary import Vocabulary

AnyDataset = TypeVar("AnyDataset", bound=DatasetSettings)


class UnreadableImage(Exception):
    """An image that cannot be used; the text is the reason. Stage one records it and goes on, up to a limit."""


class ImageSource(Protocol):
    """The images of one split, in a fixed order."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Stable, unique keys; row r of the split is image `image_ids[r]`."""

    def read(self, row: int) -> np.ndarray:
        """Return the image of a row, uint8 [H, W, 3], RGB, upright, or raise `UnreadableImage` with the reason."""


class Dataset(ABC, Generic[AnyDataset]):
    """A dataset of the pipeline file, as `DatasetSettings.IMPLEMENTATION` names it. No HOI label is read here."""

    zero_shot_splits: tuple[str, ...] | None = None
    """Names of the published zero-shot splits; None where splits follow from counts of the training labels."""
    image_hw: tuple[int, int] | None = None  # pixels of every image, where they all have the same

    def __init__(self, settings: AnyDataset) -> None:
        self.settings = settings

    @abstractmethod
    def images(self, split: str) -> ImageSource: ...

    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Return the objects, verbs and interactions that the dataset speaks of."""

    def identity(self) -> dict[str, object]:
        """Return what says which images these are apart from their ids, free of paths; part of the fingerprint."""
        return {"name": self.settings.name}

    def boxes(self, image_id: str) -> tuple[np.ndarray, list[str]]:
        """Return an image's annotated boxes, float32 [N, 4] pixel-edge xyxy, and their N object names.

        Raises UserError: the dataset has none.
        """
        problem, where = "the ground_truth detector needs annotated boxes", f"dataset {self.settings.name}"
        raise UserError(problem, where=where, fix="use detector.name torchvision or precomputed")

    def published_rare(self) -> np.ndarray | None:
        """Return bool [K], the official rare interactions; None where they follow from counts of training labels."""
        return None

    def unseen(self, split_name: str) -> np.ndarray:
        """Return the ids of the interactions that one of `zero_shot_splits` hides, int64, ascending."""
        raise NotImplementedError


def dataset_of(settings: DatasetSettings) -> Dataset[Any]:
    """Return the dataset that a section of the pipeline file describes."""
    return load_target(settings.IMPLEMENTATION)(settings)


def open_images(config: DatasetSettings, split: str) -> ImageSource:
    """Return the images of one split, or raise a UserError if there is no such split or no image in it."""
    check_split(config, split)
    source = dataset_of(config).images(split)
    if not source.image_ids:
        where = getattr(config, "images", getattr(config, "root", f"dataset {config.name}"))
        fix = "check the folder and the shares in dataset.splits"
        raise UserError(f"split '{split}' of the dataset is empty", where=where, expected="at least one image", fix=fix)
    return source


def check_split(config: DatasetSettings, split: str) -> None:
    """Raise a UserError if the dataset has no such split."""
    if split not in config.splits:
        what, where = f"the dataset has no split '{split}'", f"dataset {config.name}"
        fix = "mend train.split, evaluation.split or evaluation.tune_split, or add it to dataset.splits"
        raise UserError(what, where=where, expected=" or ".join(config.splits), fix=fix)


def load_vocabulary(config: DatasetSettings) -> Vocabulary:
    """Return the objects, verbs and interactions that a dataset speaks of."""
    return dataset_of(config).vocabulary()
