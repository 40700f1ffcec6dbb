"""HICO-DET's annotation files, in every format in use, to one record; the format is told by content, never by name.

`hicodet_json` reads fredzzhang's and PPDM's files, `hicodet_mat` the official one.

Letters: n images, R rows (one per pair and interaction).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi.datasets.hicodet import Half
from hoi.datasets.hicodet_classes import hicodet_vocabulary
from hoi.datasets.hicodet_json import FORMATS, read_json_boxes
from hoi.datasets.hicodet_mat import is_mat, read_mat_boxes
from hoi.datasets.hicodet_parsed import Parsed
from hoi.errors import UserError


@dataclass(frozen=True)
class HicodetAnnotations:
    """One half of HICO-DET as annotated, laid flat.

    Args:
        file_names: n names of all images of the file, in its order, those without a pair among them.
        size_hw: int32 [n, 2], pixels, or None where the format has no sizes.
        image: int64 [R], row of `file_names`, ascending.
        boxes_h, boxes_o: float32 [R, 4], pixel-edge 0-based xyxy.
        interaction: int64 [R], 0..599 in official order.
        dropped: What names a box that is not there, one text each; the published PPDM files hold such entries.
    """

    file_names: tuple[str, ...]
    size_hw: np.ndarray | None
    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    interaction: np.ndarray
    dropped: tuple[str, ...] = ()

    @property
    def num_pairs(self) -> int:
        """R: pairs are counted once per interaction, as everybody counts them."""
        return len(self.image)

    @property
    def num_without_pair(self) -> int:
        """Images that hold no annotated pair."""
        return len(self.file_names) - len(np.unique(self.image))


def read_annotations(path: str | Path, half: Half = "test2015") -> HicodetAnnotations:
    """An annotation file to its record.

    Args:
        path: The file; JSON may be gzipped.
        half: Which half to take out of `anno_bbox.mat`, which holds both; other formats hold one.

    Raises:
        UserError: no such file, a format that is not known, or a wrong record, named.
    """
    path = Path(path)
    try:
        head = path.read_bytes()[:128]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("there is no such file", where=path, expected=FORMATS, fix="set dataset.annotations") from None
    parsed = read_mat_boxes(path, half) if is_mat(head) else read_json_boxes(path)
    _check(parsed, path)
    inclusive = parsed.rows[:, 1:9].reshape(-1, 2, 4) - parsed.first_pixel
    inclusive[:, :, 2:] += 1
    boxes = inclusive.astype(np.float32)
    return HicodetAnnotations(
        tuple(parsed.names),
        parsed.size_hw,
        parsed.rows[:, 0].astype(np.int64),
        boxes[:, 0],
        boxes[:, 1],
        parsed.rows[:, 9].astype(np.int64),
        tuple(parsed.dropped),
    )


def _check(parsed: Parsed, path: Path) -> None:
    names, rows = parsed.names, parsed.rows
    if not all(isinstance(name, str) and name for name in names):
        raise UserError("an image has no file name", where=path, expected="a text for each image")
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise UserError("an image stands twice in the annotations", where=path, got=doubled)
    wrong = ~np.isfinite(rows[:, 1:9]).all(axis=1) | (rows[:, 9] < 0) | (rows[:, 9] >= len(hicodet_vocabulary()))
    if wrong.any():
        row = rows[int(np.flatnonzero(wrong)[0])]
        raise UserError(
            "an annotated pair is impossible",
            where=f"{path}, image {names[int(row[0])]}",
            expected="finite boxes and an interaction of 0 to 599",
            got=f"boxes {row[1:5].tolist()} and {row[5:9].tolist()}, interaction {int(row[9])}",
        )
