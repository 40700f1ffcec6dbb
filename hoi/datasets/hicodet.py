"""HICO-DET's images: where they lie, which there are, which split has them. No annotation file is opened here."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from hoi.config import HicodetDataset
from hoi.datasets.base import Dataset
from hoi.datasets.folder import list_images
from hoi.datasets.hicodet_classes import UNSEEN_SHA256, hicodet_vocabulary, rare, unseen
from hoi.datasets.images import read_image
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary

Half = Literal["train2015", "test2015"]
HALVES: tuple[Half, Half] = ("train2015", "test2015")
OFFICIAL_FOLDER = "hico_20160224_det"
"""What the published archive unpacks to."""


def half_of(split: str) -> Half:
    """A split to the half of the data set that its images come from."""
    return "test2015" if split == "test" else "train2015"


def image_folder(config: HicodetDataset, half: Half) -> Path:
    """Where the images of a half lie.

    Raises:
        UserError: there is no such folder below `dataset.root`.
    """
    root = Path(config.root)
    for folder in (root / "images" / half, root / OFFICIAL_FOLDER / "images" / half):
        if folder.is_dir():
            return folder
    raise UserError(
        f"there is no folder of HICO-DET's {half} images",
        where=config.root,
        expected=f"images/{half} in it, or in {OFFICIAL_FOLDER} in it",
        got="neither" if root.is_dir() else "no such folder",
        fix="set dataset.root to the folder that the HICO-DET archive was unpacked to",
    )


def image_names(config: HicodetDataset, half: Half) -> tuple[str, ...]:
    """The names of a half's images: those of its list where the config names one, otherwise those in the folder.

    Raises:
        UserError: no folder, or a list that is missing, no text, or names an image twice or outside the folder.
    """
    listed = getattr(config.image_lists, half, None)
    return list_images(str(image_folder(config, half))) if listed is None else read_image_list(listed)


@lru_cache(maxsize=8)
def read_image_list(path: str) -> tuple[str, ...]:
    """Text file of image names, one a line, to the names in its order; empty lines are skipped.

    Raises:
        UserError: no such file, no text, no name in it, a name twice, or a name that leaves the image folder.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("there is no such list of images", where=path, fix="set dataset.image_lists") from None
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected="image names, one a line") from None
    for number, name in enumerate(lines, start=1):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(
                "a listed image lies outside the image folder",
                where=f"{path}, line {number}",
                expected="a file name",
                got=name,
            )
    names = tuple(line for line in lines if line)
    if not names:
        raise UserError("this list names no image", where=path, expected="image names, one a line", got="none")
    [(name, number)] = Counter(names).most_common(1)
    if number > 1:
        raise UserError("an image is listed twice", where=path, got=name, fix="keep one of the lines")
    return names


def is_in_split(image_id: str, split: str, shares: dict[str, float]) -> bool:
    """Whether an image of the split's half belongs to it, from a hash of its name alone.

    `train` grows from one end of [0, 1) and `validation` from the other, so that a share moves no image of the other.
    """
    point = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    return point >= 1.0 - shares[split] if split == "validation" else point < shares[split]


class HicodetImages:
    """One split of HICO-DET; the file name is the image id."""

    def __init__(self, config: HicodetDataset, split: str) -> None:
        half, shares = half_of(split), {str(name): share for name, share in config.splits.items()}
        self._folder = image_folder(config, half)
        self._max_image_pixels = config.max_image_pixels
        self.image_ids = [name for name in image_names(config, half) if is_in_split(name, split, shares)]

    def read(self, row: int) -> np.ndarray:
        """Reads the file: uint8 [H, W, 3]; see `read_image`."""
        return read_image(self._folder / self.image_ids[row], self._max_image_pixels)


class Hicodet(Dataset[HicodetDataset]):
    """HICO-DET, with its official rare interactions and the published zero-shot splits."""

    zero_shot_splits = tuple(UNSEEN_SHA256)

    def images(self, split: str) -> HicodetImages:
        return HicodetImages(self.settings, split)

    def vocabulary(self) -> Vocabulary:
        return hicodet_vocabulary()

    def published_rare(self) -> np.ndarray:
        return rare()

    def unseen(self, split_name: str) -> np.ndarray:
        return unseen(split_name)
