"""HOI labels. Only stage three imports this module, and stage two where a student says `supervision: labels`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import DatasetConfig, FolderDataset, WorldDataset
from hoi.datasets import check_split, load_vocabulary, open_images
from hoi.datasets.folder import FolderImages
from hoi.datasets.hicodet import HALVES, half_of
from hoi.datasets.hicodet_classes import RARE_BELOW, rare
from hoi.datasets.world import scene_of
from hoi.errors import UserError
from hoi.json_lines import check_record, read_json_lines_line_labels
from hoi.labels.hicodet import find_annotations, hicodet_labels
from hoi.labels.vcoco import vcoco_labels
from hoi.records import HoiLabels
from hoi.world import annotate


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


def load_labels(config: DatasetConfig, split: str) -> HoiLabels:
    """The annotated interactions of a split, rows aligned with `open_images(config, split).image_ids`.

    Raises:
        UserError: the data set has no such split or no annotations, or a record of them is wrong.
    """
    check_split(config, split)
    if config.name == "world":
        return _labels_of_world(config.seed, split, config.splits[split])
    if config.name == "vcoco":
        return vcoco_labels(config, split)
    return hicodet_labels(config, split) if config.name == "hicodet" else _labels_of_folder(config, split)


def has_labels(config: DatasetConfig, split: str = "test") -> bool:
    """Whether a split has annotations, or the config says so; without any, stage three reports agreement only."""
    if config.name == "hicodet":
        return find_annotations(config, half_of(split)) is not None
    return config.name == "world" or config.annotations is not None


def label_files(config: DatasetConfig) -> list[Path]:
    """The files that annotations are read from, as far as they are there; which of them changed, their bytes tell."""
    if config.name == "hicodet":
        named = [find_annotations(config, half) for half in HALVES]
    elif config.name == "vcoco":
        folder = [] if config.annotations is None else sorted(Path(config.annotations).glob("*.json*"))
        named = [*folder, None if config.instances is None else Path(config.instances)]
    else:
        named = [Path(config.annotations)] if config.name == "folder" and config.annotations is not None else []
    return [path for path in named if path is not None and path.is_file()]


def rare_mask(config: DatasetConfig, train_split: str) -> np.ndarray:
    """bool [K]: interactions with fewer than ten pairs in the training split; HICO-DET's are the official 138."""
    if config.name == "hicodet":
        return rare()
    labels = load_labels(config, train_split)
    return np.bincount(labels.interaction, minlength=len(load_vocabulary(config))) < RARE_BELOW


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
