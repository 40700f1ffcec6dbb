"""Anybody's prediction files to triplets or V-COCO rows, checked; docs/predictions.md describes the formats.

Letters: R predictions, I images, K interactions, N rows of V-COCO.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoi.datasets.vcoco import KEYS
from hoi.errors import UserError, nearest
from hoi.evaluation.vcoco import VcocoPredictions
from hoi.json_lines import Records
from hoi.records import Triplets

MAX_BEYOND = 1.0
"""Detectors regress beyond the border, and evaluators score such boxes as they are. A box that lies wholly outside, or
reaches further beyond a border than the image is wide or high, is more likely one of another image or scale."""


@dataclass(frozen=True)
class Images:
    """The images that predictions may name.

    Args:
        names: I names or ids; the order decides between equal scores.
        size_hw: int [I, 2], pixels, or None where the annotations do not say.
    """

    names: Sequence[str] | Sequence[int]
    size_hw: np.ndarray | None

    def rows_of(self, records: Records, key: str) -> np.ndarray:
        """Names in the records to rows of the images, int64 [R].

        Raises:
            UserError: a record names an image that is not among them.
        """
        kind = int if key == "image_id" else str
        values = records.of_type(key, (kind,), "a number" if kind is int else "text")
        row_of = dict(zip(self.names, range(len(self.names)), strict=True))
        rows = [row_of.get(value, -1) for value in values]
        if -1 in rows:
            wrong = rows.index(-1)
            known = nearest(str(values[wrong]), map(str, self.names))
            records.refuse_row(wrong, key, "is no image of the annotations", known)
        return np.array(rows, np.int64)


@dataclass(frozen=True)
class Reader:
    """How boxes of a file are understood.

    Args:
        images: Those that predictions may name.
        inclusive: Whether corners are pixels that belong to the box; else they are pixel edges.
        clip: Whether boxes are cut to their image, and those that lie outside are accepted.
    """

    images: Images
    inclusive: bool = True
    clip: bool = False

    def boxes(self, records: Records, key: str, image: np.ndarray) -> np.ndarray:
        """Boxes of the records to pixel edges, float64 [R, 4].

        Args:
            records: R of them.
            key: Of the box.
            image: int64 [R], row of the images.

        Raises:
            UserError: a box is malformed, reversed, or lies outside its image.
        """
        edges = records.boxes(key) + np.array([0, 0, 1, 1]) * self.inclusive
        if self.images.size_hw is None:
            return edges
        size_wh = self.images.size_hw[image][:, ::-1]
        if self.clip:
            return np.clip(edges, 0, np.tile(size_wh, 2))
        untouched = (edges[:, 2:] <= 0) | (edges[:, :2] >= size_wh)
        far = (edges[:, :2] < -MAX_BEYOND * size_wh) | (edges[:, 2:] > (1 + MAX_BEYOND) * size_wh)
        outside = np.flatnonzero((untouched | far).any(axis=1))
        if len(outside):
            row = int(outside[0])
            name, (width, height) = self.images.names[image[row]], size_wh[row]
            expected = f"a box in the {width} x {height} pixels of {name} (--clip cuts boxes to their image)"
            records.refuse_row(row, key, "lies outside the image", expected)
        return edges

    def num_beyond(self, boxes: np.ndarray, image: np.ndarray) -> int:
        """How many pixel-edge boxes [R, 4] reach over the border of their image by more than a pixel."""
        if self.images.size_hw is None:
            return 0
        size_wh = self.images.size_hw[image][:, ::-1]
        return int(((boxes[:, :2] < -1) | (boxes[:, 2:] > size_wh + 1)).any(axis=1).sum())

    def triplets(self, records: Records, num_interactions: int) -> Triplets:
        """`{file_name, human_xyxy, object_xyxy, interaction, score}` to triplets, rows in the order of the file.

        Raises:
            UserError: a record is wrong, named by its line.
        """
        image = self.images.rows_of(records, "file_name")
        expected = f"a whole number of 0..{num_interactions - 1}"
        interaction = _small_ints(records.of_type("interaction", (int,), expected))
        wrong = np.flatnonzero((interaction < 0) | (interaction >= num_interactions))
        if len(wrong):
            records.refuse_row(int(wrong[0]), "interaction", "is out of range", expected)
        return Triplets(
            image,
            self.boxes(records, "human_xyxy", image),
            self.boxes(records, "object_xyxy", image),
            interaction,
            records.numbers("score", "a finite number"),
        )

    def vcoco(self, records: Records) -> VcocoPredictions:
        """`{image_id, human_xyxy, object_xyxy or null, scores {29 keys}}` to V-COCO rows.

        Raises:
            UserError: a record is wrong, named by its line.
        """
        image = self.images.rows_of(records, "image_id")
        has_object = np.array([thing is not None for thing in records.column("object_xyxy")], bool)
        rows = np.flatnonzero(has_object)
        with_object = Records(
            records.path, [records.rows[i] for i in rows], [records.lines[i] for i in rows], records.word
        )
        boxes_o = np.zeros((len(records), 4))
        boxes_o[has_object] = self.boxes(with_object, "object_xyxy", image[has_object])
        return VcocoPredictions(
            image, self.boxes(records, "human_xyxy", image), boxes_o, has_object, _vcoco_scores(records)
        )


def _small_ints(values: list[int]) -> np.ndarray:
    """Whole numbers to int64; one that does not fit is as wrong as -1."""
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return np.array([value if abs(value) < 2**62 else -1 for value in values], np.int64)


def _vcoco_scores(records: Records) -> np.ndarray:
    expected = f"the 29 keys {KEYS[0]}, {KEYS[1]}, ..., {KEYS[-1]}"
    scores = records.of_type("scores", (dict,), expected)
    columns = Records(records.path, scores, records.lines, records.word)
    known = set(KEYS)
    for row, given in enumerate(scores):
        if given.keys() != known:
            lacking = [key for key in KEYS if key not in given]
            got = f"no {lacking[0]}" if lacking else f"also {next(iter(given.keys() - known))}"
            raise UserError("the scores have other keys", where=records.where(row), expected=expected, got=got)
    return np.stack([columns.numbers(key, "a finite number") for key in KEYS], axis=1)


def prediction_lines(triplets: Triplets, file_names: Sequence[str], *, inclusive: bool) -> bytes:
    """Triplets to gzipped JSON lines, by image, then in their own order; equal triplets give equal bytes.

    Args:
        triplets: Pixel-edge boxes.
        file_names: Of the split's images.
        inclusive: Whether corners are to be pixels that belong to the box, as HICO-DET's predictions have them.
    """
    order = np.argsort(triplets.image, kind="stable")
    shift = np.array([0, 0, 1, 1]) * inclusive
    columns = (
        triplets.image[order].tolist(),
        (triplets.boxes_h[order].astype(np.float64) - shift).tolist(),
        (triplets.boxes_o[order].astype(np.float64) - shift).tolist(),
        triplets.interaction[order].tolist(),
        triplets.score[order].tolist(),
    )
    keys = ("file_name", "human_xyxy", "object_xyxy", "interaction", "score")
    lines = [
        json.dumps(dict(zip(keys, (file_names[image], *values), strict=True)), ensure_ascii=False)
        for image, *values in zip(*columns, strict=True)
    ]
    return gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0)
