"""What every data set gives to stage one: images by row, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class UnreadableImage(Exception):
    """An image that cannot be used; the text is the reason. Stage one records it and goes on, up to a limit."""


class ImageSource(Protocol):
    """The images of one split, in a fixed order."""

    @property
    def image_ids(self) -> Sequence[str]:
        """Stable, unique keys; row r of the split is image `image_ids[r]`."""
        ...

    def read(self, row: int) -> np.ndarray:
        """Image of a row, uint8 [H, W, 3], RGB, upright (EXIF orientation applied).

        Raises:
            UnreadableImage: missing, corrupt, no image at all, or beyond the size limit.
        """
        ...
