"""HOI labels. Only stage three imports this module, and stage two where a student says `supervision: labels`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import DatasetConfig, FolderDataset, WorldDataset
from hoi.datasets import check_split, load_vocabulary, open_images
from hoi.datasets.folder import FolderImages
from hoi.datasets.hicodet import HALVES, half_of
from hoi.datasets.hicodet_classes import RARE_BELOW, rare
from hoi.datasets.hicodet_labels import find_annotations, hicodet_labels
from hoi.datasets.vcoco_labels import vcoco_labels
from hoi.datasets.world import scene_of
from hoi.errors import UserError
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
    for where, record in _read_json_lines(Path(config.annotations)):
        _check_record(record, where, every_image)
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


def _read_json_lines(path: Path) -> list[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError("there is no such file", where=path, fix="set dataset.annotations") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=path, expected="JSON lines", fix="set dataset.annotations") from None
    except UnicodeDecodeError:
        raise UserError(
            "this is not a text file", where=path, expected="JSON lines in UTF-8", fix="set dataset.annotations"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise UserError(
                "a line is no JSON", where=f"{path}, line {number}", got=error.msg, fix="mend the line"
            ) from None
    return records


def _check_record(record: Any, where: str, every_image: set[str]) -> None:
    keys = set(record) if isinstance(record, dict) else set()
    expected = ("file_name", "human_xyxy", "object_xyxy", "verb", "object")
    missing = [key for key in expected if key not in keys]
    if missing:
        raise UserError("an annotation lacks a key", where=where, expected=", ".join(expected), got=f"no {missing[0]}")
    for key in ("file_name", "verb", "object"):
        if not isinstance(record[key], str):
            raise UserError(
                "an annotation has a mistyped value", where=f"{where}, {key}", expected="text", got=record[key]
            )
    if record["file_name"] not in every_image:
        raise UserError(
            "an annotation names an unknown image",
            where=where,
            expected="the path of an image below dataset.images",
            got=record["file_name"],
            fix="mend the name, or take the line out",
        )
    for key in ("human_xyxy", "object_xyxy"):
        if not _is_box(record[key]):
            raise UserError(
                "an annotation has a wrong box",
                where=f"{where}, {key}",
                expected="[x1, y1, x2, y2] in pixels, x1 < x2, y1 < y2",
                got=record[key],
            )


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
        return False
    x1, y1, x2, y2 = value
    return bool(np.isfinite(value).all()) and x1 < x2 and y1 < y2
