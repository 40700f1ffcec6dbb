"""V-COCO's images: which there are, which split has them, where they lie. No label file is opened here."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from hoi.config import VcocoDataset
from hoi.datasets.images import read_image
from hoi.errors import UserError

IDS = Path(__file__).parent / "data" / "vcoco_ids.json"
LAYOUTS = {
    "train2014": "COCO_train2014_{:012d}.jpg",
    "val2014": "COCO_val2014_{:012d}.jpg",
    "train2017": "{:012d}.jpg",
    "val2017": "{:012d}.jpg",
    ".": "{:012d}.jpg",
}
"""Folder → name of an image in it. COCO dealt the same images anew in 2017, so a split's images may lie in both."""


@lru_cache(maxsize=1)
def split_ids() -> dict[str, tuple[int, ...]]:
    """V-COCO's splits to their COCO image ids, ascending: 2,533 of `train`, 2,867 of `validation`, 4,946 of `test`.

    `trainval` is the first two, 5,400.
    """
    ids = {name: tuple(rows) for name, rows in json.loads(IDS.read_text()).items() if name != "source"}
    return {**ids, "trainval": tuple(sorted(ids["train"] + ids["validation"]))}


def coco_id(image_id: str) -> int:
    """An image id of this data set, a COCO id in decimal, to the number."""
    return int(image_id)


class VcocoImages:
    """One split of V-COCO; the image id is COCO's, in decimal, whatever the layout of the files."""

    def __init__(self, config: VcocoDataset, split: str) -> None:
        root = Path(config.images)
        self._layouts = [(root / folder, name) for folder, name in LAYOUTS.items() if (root / folder).is_dir()]
        if len(self._layouts) > 1:
            # `.` is always there: it counts only where no folder of COCO's is.
            self._layouts.pop()
        if split == "test":
            self._layouts.sort(key=lambda layout: layout[0].name != "val2014")
        if not self._layouts:
            raise UserError(
                "there is no such folder of COCO images",
                where=config.images,
                expected="a folder that holds train2014 and val2014, or train2017 and val2017",
                fix="set dataset.images",
            )
        self._max_image_pixels = config.max_image_pixels
        share = {str(name): share for name, share in config.splits.items()}[split]
        listed = None if config.image_list is None else read_id_list(config.image_list)
        self.image_ids = [
            str(number)
            for number in split_ids()[split]
            if (listed is None or number in listed) and _point(number) < share
        ]

    def path(self, row: int) -> Path:
        """The file of a row, or where it should lie in the first folder if it lies in none."""
        number = coco_id(self.image_ids[row])
        paths = [folder / name.format(number) for folder, name in self._layouts]
        return next((path for path in paths if path.is_file()), paths[0])

    def read(self, row: int) -> np.ndarray:
        """Reads the file: uint8 [H, W, 3]; see `read_image`."""
        return read_image(self.path(row), self._max_image_pixels)


def _point(number: int) -> float:
    """Of [0, 1), by hash of the id alone, so that a share of a split is always the same images."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big") / 2**64


@lru_cache(maxsize=8)
def read_id_list(path: str) -> frozenset[int]:
    """Text file of COCO image ids, one a line, to the ids; empty lines are skipped.

    Raises:
        UserError: no such file, a line that is no id, or an image that V-COCO does not have.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("there is no such list of images", where=path, fix="set dataset.image_list") from None
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected="COCO image ids, one a line") from None
    every = set(split_ids()["trainval"]) | set(split_ids()["test"])
    for number, line in enumerate(lines, start=1):
        if line.strip() and not (line.strip().isdecimal() and int(line) in every):
            raise UserError(
                "a listed image is none of V-COCO's",
                where=f"{path}, line {number}",
                expected="a COCO image id, as 294",
                got=line.strip()[:80],
            )
    return frozenset(int(line) for line in lines if line.strip())
