"""HOI labels: everything that can read one is in this folder, one reader a dataset.

Only stage three, sweeps and the doctor import it, and stage two where a student says `supervision: labels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic

import numpy as np

from hoi.config import DatasetSettings
from hoi.datasets import AnyDataset, check_split, dataset_of, load_vocabulary
from hoi.datasets.hicodet import RARE_BELOW
from hoi.errors import UserError
from hoi.records import HoiLabels
from hoi.registry import load_target


class LabelReader(ABC, Generic[AnyDataset]):
    """The annotations of a dataset, as `DatasetSettings.LABELS` names it; made from the section `dataset`."""

    def __init__(self, settings: AnyDataset) -> None:
        self.settings = settings

    @abstractmethod
    def load(self, split: str) -> HoiLabels:
        """Return the annotated interactions of a split; see `load_labels`."""

    def exist(self, split: str) -> bool:
        """Return whether a split has annotations, or the settings say so."""
        return getattr(self.settings, "annotations", None) is not None

    def notices(self) -> list[str]:
        """Return what is odd about the annotations and yet counts."""
        return []

    def files(self) -> list[Path]:
        """Return the files that annotations are read from; some may not be there."""
        annotations = getattr(self.settings, "annotations", None)
        return [] if annotations is None else [Path(annotations)]


def _reader_of(config: DatasetSettings) -> LabelReader[Any] | None:
    return None if config.LABELS is None else load_target(config.LABELS)(config)


def load_labels(config: DatasetSettings, split: str) -> HoiLabels:
    """Return the annotated interactions of a split, rows aligned with `open_images(config, split).image_ids`.

    Raises UserError: the dataset has no such split or no annotations, or a record of them is wrong.
    """
    check_split(config, split)
    reader = _reader_of(config)
    if reader is None:
        raise UserError(f"the dataset {config.name} has no annotations", where="dataset.name", got=config.name)
    return reader.load(split)


def has_labels(config: DatasetSettings, split: str = "test") -> bool:
    """Return whether a split has annotations; without any, stage three reports agreement only."""
    reader = _reader_of(config)
    return reader is not None and reader.exist(split)


def label_notices(config: DatasetSettings) -> list[str]:
    """Return what is odd about a dataset's annotations and yet counts, as repeated lines."""
    reader = _reader_of(config)
    return [] if reader is None else reader.notices()


def label_files(config: DatasetSettings) -> list[Path]:
    """Return the files that annotations are read from, as far as they are there."""
    reader = _reader_of(config)
    return [] if reader is None else [path for path in reader.files() if path.is_file()]


def rare_mask(config: DatasetSettings, train_split: str) -> np.ndarray:
    """Return bool [K]: the official rare interactions, or those with fewer than ten pairs in the training split."""
    published = dataset_of(config).published_rare()
    if published is not None:
        return published
    labels = load_labels(config, train_split)
    return np.bincount(labels.interaction, minlength=len(load_vocabulary(config))) < RARE_BELOW
