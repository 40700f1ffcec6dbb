"""HICO-DET: its images, closed sets, counts and zero-shot splits. No annotation file is opened here.

Names and counts are in two files, so that a run without annotations reads names alone.

Shapes: K = 600 interactions.

Source: Chao et al., WACV 2018; for the zero-shot ids GEN-VLKT (Liao et al., CVPR 2022).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hoi.config import HicodetDataset
from hoi.datasets import Dataset
from hoi.datasets.images import ImageFiles, hash_point, list_images
from hoi.datasets.names import leaves_folder
from hoi.errors import UserError
from hoi.files import read_lines
from hoi.vocabulary import Vocabulary

Half = Literal["train2015", "test2015"]
HALVES: tuple[Half, Half] = ("train2015", "test2015")
OFFICIAL_FOLDER = "hico_20160224_det"  # what the published archive unpacks to
DATA = Path(__file__).parent / "data"
RARE_BELOW = 10  # an interaction with fewer training pairs is rare

UNSEEN_SHA256 = {
    "rare_first": "7b080cf9965bd0ec5ebc768c5ebfdc496acc74866014866dfacf640820cfdac8",
    "non_rare_first": "6076d4003a3f66eb7548e1bdda14f1755f5b3fab687317940d733cf73b56ddbb",
    "unseen_object": "ffe1f6bc597723eeab4028a7cdd8eda250e2a55e52f8694f684ecc21a54de9eb",
    "unseen_verb": "2ff5e95dbd6e8cf7af295ec97996bb06dcbc5652303b7167b6f6aaf6e97eaac9",
    "uc0": "e07e438ab47d19d31fde989e3e9af75fe984342664fb9fe43e63a947d3175959",
    "uc1": "5cce7d5bd0b8ce47e92bf1e054736e8c8b517c3fd7f70d0816021488d47fb01d",
    "uc2": "ee93da3d026fe0c734786ad6af8605105b294a3174017ef1479f83605e9918da",
    "uc3": "dfff6b13b481930258034851b5494ad5c86f2197a9e75835aa145e970d4c28eb",
    "uc4": "25e03350a57f0ab84ed88372b0a0960cc134c6c3ba3c7b4425e9c6b27cea0d45",
}
"""Zero-shot split → SHA-256 of its unseen ids, ascending, in decimal, joined by commas."""


@lru_cache(maxsize=1)
def hicodet_vocabulary() -> Vocabulary:
    """Return the 600 interactions in official order, with 80 objects in HICO's alphabetical order, spelt as in COCO."""
    names = _read("hicodet_classes.json")
    return Vocabulary(
        tuple(names["objects"]),
        tuple(names["verbs"]),
        tuple((verb, object_name) for verb, object_name in names["interactions"]),
    )


def train_counts() -> np.ndarray:
    """Return int64 [K], the annotated pairs of each interaction in the training split; they sum to 117,871."""
    return np.array(_read("hicodet_label_facts.json")["train_instances"], np.int64)


def test_counts() -> np.ndarray:
    """Return int64 [K], the same of the test split; they sum to 33,405."""
    return np.array(_read("hicodet_label_facts.json")["test_instances"], np.int64)


def rare() -> np.ndarray:
    """Return bool [K], the official 138 rare interactions: those with fewer than 10 training pairs."""
    return train_counts() < RARE_BELOW


def unseen(split_name: str) -> np.ndarray:
    """Return the ids of a zero-shot split's unseen interactions, int64, ascending.

    Splits are `rare_first` (RF-UC), `non_rare_first` (NF-UC), `unseen_object` (UO), `unseen_verb` (UV) and `uc0` to
    `uc4` (UC). A UserError if there is no such split, or the list is not the published one.
    """
    if split_name not in UNSEEN_SHA256:
        raise UserError(f"there is no zero-shot split '{split_name}'", expected=", ".join(UNSEEN_SHA256))
    ids = _read("hicodet_label_facts.json")["unseen"][split_name]
    digest = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
    if digest != UNSEEN_SHA256[split_name]:
        problem, expected = f"the list of zero-shot split '{split_name}' was changed", UNSEEN_SHA256[split_name]
        where, fix = DATA / "hicodet_label_facts.json", "install the package again"
        raise UserError(problem, where=where, expected=f"SHA-256 {expected}", got=digest, fix=fix)
    return np.array(ids, np.int64)


@lru_cache(maxsize=2)
def _read(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def half_of(split: str) -> Half:
    """Return the half of the dataset that a split's images come from."""
    return "test2015" if split == "test" else "train2015"


def image_folder(config: HicodetDataset, half: Half) -> Path:
    """Return the folder of a half's images, or raise a UserError if there is none below `dataset.root`."""
    root = Path(config.root)
    for folder in (root / "images" / half, root / OFFICIAL_FOLDER / "images" / half):
        if folder.is_dir():
            return folder
    problem, got = f"there is no folder of HICO-DET's {half} images", "neither" if root.is_dir() else "no such folder"
    expected = f"images/{half} in it, or in {OFFICIAL_FOLDER} in it"
    fix = "set dataset.root to the folder that the HICO-DET archive was unpacked to"
    raise UserError(problem, where=root, expected=expected, got=got, fix=fix)


def image_names(config: HicodetDataset, half: Half) -> tuple[str, ...]:
    """Return the names of a half's images: those of its list if the settings name one, otherwise all in the folder."""
    listed = getattr(config.image_lists, half, None)
    return list_images(str(image_folder(config, half))) if listed is None else read_image_list(listed)


@lru_cache(maxsize=8)
def read_image_list(path: str) -> tuple[str, ...]:
    """Return the image names of a text file, one a line, with forward slashes.

    Raises UserError: no such file, no name in it, a name twice, or one that leaves the image folder.
    """
    lines = [line.strip() for line in read_lines(path, "image names, one a line", "set dataset.image_lists")]
    for number, name in enumerate(lines, start=1):
        if leaves_folder(name):
            where = f"{path}, line {number}"
            raise UserError("a listed image is outside the image folder", where=where, expected="a file name", got=name)
    names = tuple(line.replace("\\", "/") for line in lines if line)
    if not names:
        raise UserError("this list names no image", where=path, expected="image names, one a line", got="none")
    [(name, number)] = Counter(names).most_common(1)
    if number > 1:
        raise UserError("an image is listed twice", where=path, got=name, fix="keep one of the lines")
    return names


def is_in_split(image_id: str, split: str, shares: dict[str, float]) -> bool:
    """Return whether an image of the split's half belongs to it, by a hash of its name alone.

    `train` grows from one end of [0, 1) and `validation` from the other, so a share moves no image of the other.
    """
    point = hash_point(image_id)
    return point >= 1.0 - shares[split] if split == "validation" else point < shares[split]


class Hicodet(Dataset[HicodetDataset]):
    zero_shot_splits = tuple(UNSEEN_SHA256)

    def images(self, split: str) -> ImageFiles:
        config, half = self.settings, half_of(split)
        shares = {str(name): share for name, share in config.splits.items()}
        image_ids = [name for name in image_names(config, half) if is_in_split(name, split, shares)]
        return ImageFiles(image_folder(config, half), image_ids, config.max_image_pixels)

    def vocabulary(self) -> Vocabulary:
        return hicodet_vocabulary()

    def published_rare(self) -> np.ndarray:
        return rare()

    def unseen(self, split_name: str) -> np.ndarray:
        return unseen(split_name)
