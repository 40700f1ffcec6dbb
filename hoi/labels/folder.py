"""Labels of a folder of photographs: JSON lines, joined to the images by their path below the folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import FolderDataset
from hoi.datasets import load_vocabulary
from hoi.datasets.folder import Folder
from hoi.datasets.images import list_images, upright_size
from hoi.datasets.names import join_names, plain_name
from hoi.errors import UserError
from hoi.json_lines import Records, read_json_lines, shown
from hoi.labels import LabelReader
from hoi.records import HoiLabels

NUM_OPENED = 200
"""Annotated images whose sizes are looked at."""


@dataclass(frozen=True)
class FolderAnnotations:
    records: Records
    file_names: list[str]
    boxes_h: np.ndarray  # float32 [R, 4], pixel-edge
    boxes_o: np.ndarray
    pairs: list[tuple[str, str]]  # verb and object

    @property
    def notices(self) -> list[str]:
        """What is odd about the lines."""
        columns = (map(plain_name, self.file_names), self.pairs, self.boxes_h.tolist(), self.boxes_o.tolist())
        first: dict[str, int] = {}
        places = [first.setdefault(repr(line), row) for row, line in enumerate(zip(*columns, strict=True))]
        repeats = [row for row, place in enumerate(places) if row != place]
        if not repeats:
            return []
        where = f"{self.records.where(repeats[0])}, as {self.records.lines[places[repeats[0]]]}"
        return [f"{len(repeats)} annotation lines repeat an earlier one ({where}), and each counts as a pair to find"]

    def select(self, rows: list[int]) -> FolderAnnotations:
        names, pairs = [self.file_names[row] for row in rows], [self.pairs[row] for row in rows]
        return FolderAnnotations(self.records.select(rows), names, self.boxes_h[rows], self.boxes_o[rows], pairs)


def read_annotation_lines(path: Path) -> FolderAnnotations:
    """Read `{file_name, human_xyxy, object_xyxy, verb, object}` lines. Raises UserError: one is wrong."""
    records = read_json_lines(path, "an annotation", fix="check the path")
    file_names, verbs, objects = (records.texts(key) for key in ("file_name", "verb", "object"))
    keys = ("human_xyxy", "object_xyxy")
    boxes_h, boxes_o = (records.boxes(key, allow_empty=False).astype(np.float32) for key in keys)
    records.refuse_other_frame(keys[0], boxes_h)
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
        every_image = [name for of_split in names.values() for name in of_split]
        joined = join_names(given.file_names, every_image).rows
        row_of = {pair: k for k, pair in enumerate(vocabulary.interactions)}
        both = zip(given.file_names, given.pairs, strict=True)
        rows = [row for row, (name, pair) in enumerate(both) if name in joined and pair in row_of]
        if given.pairs and not rows:
            key, what, expected = "file_name", "is no image below dataset.images", "a path below that folder"
            if given.file_names[0] in joined:
                key, what = "verb", f"is in no interaction of {config.vocabulary}"
                expected = " ".join(vocabulary.interactions[0])
            what += ", and no other annotation joins, either"
            given.records.refuse_row(0, key, what, expected, "write both in the same words")
        given = given.select(rows)
        file_names = [every_image[joined[name]] for name in given.file_names]
        _check_frames(given, file_names, Path(config.images))
        image_of: dict[Any, int] = {name: row for row, name in enumerate(names[split])}
        image = np.array([image_of.get(name, -1) for name in file_names], np.int64)
        kept = image >= 0
        interaction = np.array([row_of[pair] for pair in given.pairs], np.int64)
        return HoiLabels(image[kept], given.boxes_h[kept], given.boxes_o[kept], interaction[kept])

    def notices(self) -> list[str]:
        config = self.settings
        if config.annotations is None:
            return []
        given, images = read_annotation_lines(Path(config.annotations)), list_images(config.images)
        joined, here = join_names(given.file_names, images), set(map(" ".join, given.pairs))
        known = set(map(" ".join, load_vocabulary(config).interactions))
        unused = set(images) - {images[row] for row in joined.rows.values()}
        return [
            *given.notices,
            *joined.notices("images of the annotations"),
            *_left_out("images", set(given.file_names) - joined.rows.keys(), unused),
            *_left_out("interactions", here - known, known - here),
        ]


def _left_out(what: str, foreign: set[str], missed: set[str]) -> list[str]:
    """Count what of the annotations does not join, and what is without one, with examples."""
    if not foreign:
        return []
    without = f"; {len(missed)} {what} have no annotation, as '{min(missed)}'" if missed else ""
    return [f"{len(foreign)} {what} of the annotations are unknown and left out, as '{min(foreign)}'{without}"]


def _check_frames(given: FolderAnnotations, file_names: list[str], folder: Path) -> None:
    """Raise a UserError if sizes or boxes of the annotations are not those of the images, of which some are opened."""
    distinct = list(dict.fromkeys(file_names))
    opened = distinct[:: max(1, len(distinct) // NUM_OPENED)]
    size_of = {name: size for name in opened if (size := upright_size(folder / name)) is not None}
    rows = [row for row, name in enumerate(file_names) if name in size_of]
    sizes, records = [size_of[file_names[row]] for row in rows], given.records.select(rows)
    for row, (record, size) in enumerate(zip(records.rows, sizes, strict=True)):
        said = (record.get("width", size[0]), record.get("height", size[1]))
        if said != size:
            cause = "the image is turned by EXIF, its boxes are not" if said == size[::-1] else "it is a resized copy"
            what, expected = f"an annotation is of another size: {cause}", f"width {size[0]} and height {size[1]}"
            raise UserError(
                what, where=records.where(row), expected=expected, got=f"{shown(said[0])} and {shown(said[1])}"
            )
    for key, boxes in (("human_xyxy", given.boxes_h), ("object_xyxy", given.boxes_o)):
        records.refuse_other_frame(key, boxes[rows], np.array(sizes).reshape(-1, 2))
