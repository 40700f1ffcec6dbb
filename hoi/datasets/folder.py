"""A folder of photographs as a data set: whatever image files lie in it and below it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np

from hoi.config import FolderDataset
from hoi.datasets.base import Dataset
from hoi.datasets.images import SUFFIXES, read_image
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary


@lru_cache(maxsize=8)
def list_images(folder: str) -> tuple[str, ...]:
    """All image files below a folder, as sorted paths relative to it with forward slashes.

    What is hidden, by a name that starts with a dot, is left out: thumbnails, and the twins that macOS writes of files.

    Raises:
        UserError: there is no such folder, or a name in it is no text, so that no record could say it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError("there is no such folder of images", where=folder, fix="set dataset.images to a folder")
    paths = ((path.relative_to(root), path) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = sorted(name.as_posix() for name, path in paths if not _is_hidden(name) and _is_file(path))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise UserError(
                "the name of an image is no valid UTF-8", where=folder, got=shown, fix="rename the file"
            ) from None
    return tuple(names)


def _is_hidden(name: PurePath) -> bool:
    return any(part.startswith(".") for part in name.parts)


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


class Folder(Dataset[FolderDataset]):
    """A folder of photographs and a file of phrases."""

    def images(self, split: str) -> FolderImages:
        return FolderImages(self.settings, split)

    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.settings.vocabulary)
