"""Decoded images to what a browser can show: upright, of a bounded size, whatever the file's format was."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from PIL import Image

LONGEST_SIDE_PX = 1600
QUALITY = 92


def as_jpeg(pixels: np.ndarray) -> bytes:
    """Image, uint8 [H, W, 3], to a JPEG whose longest side is at most `LONGEST_SIDE_PX`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def as_data_uri(pixels: np.ndarray) -> str:
    """The same as a `data:` address, for an answer that holds all."""
    return "data:image/jpeg;base64," + base64.b64encode(as_jpeg(pixels)).decode()
