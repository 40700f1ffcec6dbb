"""Labels of a folder of photographs: JSON lines, joined to the images by their path below the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import FolderDataset
from hoi.datasets import load_vocabulary
from hoi.datasets.folder import Folder
from hoi.errors import UserError
from hoi.json_lines import Records, read_json_lines
from hoi.labels import LabelReader
from hoi.records import HoiLabels


@dataclass(frozen=True)
class FolderAnnotations:
    records: Records
    file_names: list[str]
    boxes_h: np.ndarray  # float32 [R, 4], pixel-edge
    boxes_o: np.ndarray
    pairs: list[tuple[str, str]]  # verb and object


def read_annotation_lines(path: Path) -> FolderAnnotations:
    """Read `{file_name, human_xyxy, object_xyxy, verb, object}` lines. Raises UserError: one is wrong."""
    records = read_json_lines(path, "an annotation", fix="set dataset.annotations")
    file_names, verbs, objects = (records.texts(key) for key in ("file_name", "verb", "object"))
    keys = ("human_xyxy", "object_xyxy")
    boxes_h, boxes_o = (records.boxes(key, allow_empty=False).astype(np.float32) for key in keys)
    return FolderAnnotations(records, file_names, boxes_h, boxes_o, list(zip(verbs, objects, strict=True)))


class FolderLabels(LabelReader[FolderDataset]):
    def load(self, split: str) -> HoiLabels:
        """Return a split's annotated pairs. Raises UserError: none, or one that is wrong or of an unknown name."""
        config = self.settings
        if config.annotations is None:
            fix = "set dataset.annotations, or remove the students with supervision: labels"
            raise UserError("the data set has no annotations", where="dataset.annotations", got="null", fix=fix)
        given, vocabulary = read_annotation_lines(Path(config.annotations)), load_vocabulary(config)
        names = {s: Folder(config).images(s).image_ids for s in config.splits if config.splits[s] > 0 or s == split}
        every_image = {name for of_split in names.values() for name in of_split}
        row_of = {pair: k for k, pair in enumerate(vocabulary.interactions)}
        for row, (name, pair) in enumerate(zip(given.file_names, given.pairs, strict=True)):
            if name not in every_image:
                expected, fix = "the path of an image below dataset.images", "mend the name, or remove the line"
                given.records.refuse_row(row, "file_name", "is an unknown image", expected, fix)
            if pair not in row_of:
                raise UserError(
                    "an annotation names an interaction outside the vocabulary",
                    where=given.records.where(row),
                    expected=f"one of the {len(vocabulary)} pairs in {config.vocabulary}",
                    got=" ".join(pair),
                    fix="add it to the vocabulary, or remove the line",
                )
        image_of: dict[Any, int] = {name: row for row, name in enumerate(names[split])}
        image = np.array([image_of.get(name, -1) for name in given.file_names], np.int64)
        kept = image >= 0
        interaction = np.array([row_of[pair] for pair in given.pairs], np.int64)
        return HoiLabels(image[kept], given.boxes_h[kept], given.boxes_o[kept], interaction[kept])
