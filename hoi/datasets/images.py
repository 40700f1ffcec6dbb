"""One image file to upright RGB pixels, or the reason why not."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hoi.datasets.base import UnreadableImage

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOMEM}
)
"""Errors of the system, not of the file."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"})


def read_image(path: Path, max_image_pixels: int) -> np.ndarray:
    """Image file to uint8 [H, W, 3], RGB, with EXIF orientation applied.

    Animated files give their first frame, 16-bit grey is scaled to 8 bits, and transparency is laid on white.

    Args:
        path: The file.
        max_image_pixels: Width × height above which the file is refused before it is decoded.

    Raises:
        UnreadableImage: missing, empty, no image, truncated, or too large.
        OSError: the system failed to read it, for the time being.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > max_image_pixels:
                    raise UnreadableImage(
                        f"{image.width} x {image.height} pixels, more than the limit of {max_image_pixels}"
                    )
                image.load()
                return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError:
        raise UnreadableImage("the file is missing") from None
    except UnidentifiedImageError:
        raise UnreadableImage("the file is empty" if path.stat().st_size == 0 else "the file is no image") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more pixels than the limit of {max_image_pixels}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # A disk or a network that fails for a moment says nothing of the file: the task is tried again.
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            raise
        raise UnreadableImage(f"the file is corrupt ({' '.join(str(error).split())})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image).astype(np.float64)
        top = 65535.0 if grey.max(initial=0) > 255 else 255.0
        return Image.fromarray((grey.clip(0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")
