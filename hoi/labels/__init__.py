"""HOI labels. Only stage three imports this package, and stage two where a student says `supervision: labels`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Generic

import numpy as np

from hoi.config import DatasetSettings, FolderDataset, WorldDataset
from hoi.datasets import AnyDataset, check_split, dataset_of, load_vocabulary, open_images
from hoi.datasets.folder import FolderImages
from hoi.datasets.hicodet import RARE_BELOW
from hoi.datasets.world import scene_of
from hoi.errors import UserError
from hoi.json_lines import check_record, read_json_lines_line_labels
from hoi.records import HoiLabels
from hoi.registry import load_target
from hoi.world import annotate


class LabelReader(Generic[AnyDataset]):
    """The annotations of a dataset, as `DatasetSettings.LABELS` names it.

    Args:
        settings: The section `dataset`.
    """

    def __init__(self, settings: AnyDataset) -> None:
        self.settings = settings

    def load(self, split: str) -> HoiLabels:
        """Return the annotated interactions of a split; see `load_labels`."""
        raise NotImplementedError

    def exist(self, split: str) -> bool:
        """Return whether a split has annotations, or the settings say so."""
        return getattr(self.settings, "annotations", None) is not None

    def files(self) -> list[Path]:
        """Return the files that annotations are read from; some may not be there."""
        annotations = getattr(self.settings, "annotations", None)
        return [] if annotations is None else [Path(annotations)]


def reader_of(config: DatasetSettings) -> LabelReader[Any] | None:
    """Return the reader of a dataset's annotations; None where it never has any."""
    if config.LABELS is None:
        return None
    reader: LabelReader[Any] = load_target(config.LABELS)(config)
    return reader


def load_labels(config: DatasetSettings, split: str) -> HoiLabels:
    """Return the annotated interactions of a split, rows aligned with `open_images(config, split).image_ids`.

    Raises:
        UserError: the dataset has no such split or no annotations, or a record of them is wrong.
    """
    check_split(config, split)
    reader = reader_of(config)
    if reader is None:
        raise UserError(f"the dataset {config.name} has no annotations", where="dataset.name", got=config.name)
    return reader.load(split)


def has_labels(config: DatasetSettings, split: str = "test") -> bool:
    """Return whether a split has annotations; without any, stage three reports agreement only."""
    reader = reader_of(config)
    return reader is not None and reader.exist(split)


def label_files(config: DatasetSettings) -> list[Path]:
    """Return the files that annotations are read from, as far as they are there."""
    reader = reader_of(config)
    return [] if reader is None else [path for path in reader.files() if path.is_file()]


def rare_mask(config: DatasetSettings, train_split: str) -> np.ndarray:
    """Return bool [K]: the official rare interactions, or those with fewer than ten pairs in the training split."""
    published = dataset_of(config).published_rare()
    if published is not None:
        return published
    labels = load_labels(config, train_split)
    return np.bincount(labels.interaction, minlength=len(load_vocabulary(config))) < RARE_BELOW


class WorldLabels(LabelReader[WorldDataset]):
    """What was drawn in the world's scenes."""

    def load(self, split: str) -> HoiLabels:
        return _labels_of_world(self.settings.seed, split, self.settings.splits[split])

    def exist(self, split: str) -> bool:
        return True


@lru_cache(maxsize=8)
def _labels_of_world(seed: int, split: str, num_images: int) -> HoiLabels:
    config = WorldDataset(name="world", seed=seed, splits={split: num_images})
    rows: list[tuple[int, np.ndarray, np.ndarray, int]] = []
    for image, image_id in enumerate(open_images(config, split).image_ids):
        annotation = annotate(scene_of(image_id))
        boxes = annotation.boxes_xyxy.astype(np.float32)
        for human, thing, interactions in annotation.pairs:
            rows += [(image, boxes[human], boxes[thing], interaction) for interaction in interactions]
    return _from_rows(rows)


def _from_rows(rows: list[tuple[int, Any, Any, int]]) -> HoiLabels:
    return HoiLabels(
        image=np.array([r[0] for r in rows], np.int64),
        boxes_h=np.array([r[1] for r in rows], np.float32).reshape(-1, 4),
        boxes_o=np.array([r[2] for r in rows], np.float32).reshape(-1, 4),
        interaction=np.array([r[3] for r in rows], np.int64),
    )


class FolderLabels(LabelReader[FolderDataset]):
    """JSON lines beside a folder of photographs."""

    def load(self, split: str) -> HoiLabels:
        return _labels_of_folder(self.settings, split)


def _labels_of_folder(config: FolderDataset, split: str) -> HoiLabels:
    if config.annotations is None:
        raise UserError(
            "the data set has no annotations",
            where="dataset.annotations",
            expected="a JSON lines file",
            got="null",
            fix="set dataset.annotations, or take the students with supervision: labels out",
        )
    vocabulary = load_vocabulary(config)
    interaction_rows = {pair: k for k, pair in enumerate(vocabulary.interactions)}
    every_image = {
        name for other in config.splits if config.splits[other] > 0 for name in FolderImages(config, other).image_ids
    }
    rows_of_split = {name: row for row, name in enumerate(FolderImages(config, split).image_ids)}
    rows: list[tuple[int, Any, Any, int]] = []
    for where, record in read_json_lines_line_labels(Path(config.annotations)):
        check_record(record, where, every_image)
        pair = (record["verb"], record["object"])
        if pair not in interaction_rows:
            raise UserError(
                "an annotation names an interaction outside the vocabulary",
                where=where,
                expected=f"one of the {len(vocabulary)} pairs in {config.vocabulary}",
                got=" ".join(pair),
                fix="add it to the vocabulary, or take the line out",
            )
        if record["file_name"] in rows_of_split:
            image = rows_of_split[record["file_name"]]
            rows.append((image, record["human_xyxy"], record["object_xyxy"], interaction_rows[pair]))
    return _from_rows(rows)
