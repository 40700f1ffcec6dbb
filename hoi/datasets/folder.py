"""A folder of photographs as a data set, with a vocabulary file of one's own interactions."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import FolderDataset
from hoi.datasets.images import SUFFIXES, read_image
from hoi.errors import UserError
from hoi.strict_yaml import read_yaml
from hoi.vocabulary import PERSON, Vocabulary


@lru_cache(maxsize=8)
def list_images(folder: str) -> tuple[str, ...]:
    """All image files below a folder, as sorted paths relative to it with forward slashes."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError("there is no such folder of images", where=folder, fix="set dataset.images to a folder")
    return tuple(
        sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and _is_file(p))
    )


def _is_file(path: Path) -> bool:
    # A link to nothing is an image that is missing: listed here, recorded as unreadable when it is read.
    return path.is_file() or (path.is_symlink() and not path.exists())


def split_of(image_id: str, shares: dict[str, float]) -> str:
    """The split of an image, from a hash of its name alone: adding images never moves others."""
    point = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    upper = 0.0
    for split, share in shares.items():
        upper += share
        if point < upper:
            return split
    return [split for split, share in shares.items() if share > 0][-1]


class FolderImages:
    """One split of a folder; the relative path is the image id."""

    def __init__(self, config: FolderDataset, split: str) -> None:
        self._root = Path(config.images)
        self._max_image_pixels = config.max_image_pixels
        self.image_ids = [name for name in list_images(config.images) if split_of(name, config.splits) == split]

    def read(self, row: int) -> np.ndarray:
        """Reads the file: uint8 [H, W, 3]; see `read_image`."""
        return read_image(self._root / self.image_ids[row], self._max_image_pixels)


def read_vocabulary(path: str) -> Vocabulary:
    """Vocabulary file, a YAML list of `{verb, object, phrase?}`, to a Vocabulary; `person` is always an object.

    Raises:
        UserError: no list, or an entry with a missing, unknown or mistyped key, named by its position.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise UserError("this is no vocabulary", where=path, expected="a list of {verb, object, phrase?}")
    for position, entry in enumerate(entries, start=1):
        _check_entry(entry, f"{path}, entry {position}")
    interactions = tuple((entry["verb"], entry["object"]) for entry in entries)
    objects = (PERSON, *dict.fromkeys(o for _, o in interactions if o != PERSON))
    verbs = tuple(dict.fromkeys(v for v, _ in interactions))
    try:
        return Vocabulary(objects, verbs, interactions, tuple(entry.get("phrase") for entry in entries))
    except UserError as error:
        raise UserError(error.what, where=path, expected=error.expected, got=error.got, fix=error.fix) from None


def _check_entry(entry: Any, where: str) -> None:
    expected = "{verb: text, object: text, phrase: text (optional)}"
    if not isinstance(entry, dict):
        raise UserError("a vocabulary entry is not understood", where=where, expected=expected, got=repr(entry))
    unknown = set(entry) - {"verb", "object", "phrase"}
    wrong = [key for key in ("verb", "object") if not isinstance(entry.get(key), str) or not entry[key]]
    if unknown or wrong or not isinstance(entry.get("phrase", ""), str):
        raise UserError("a vocabulary entry has wrong keys", where=where, expected=expected, got=repr(entry))
