"""Image files as upright RGB pixels, or the reason why not.

Only the formats of `FORMATS` are decoded, whatever a file is called: Pillow would hand a PostScript file to
Ghostscript. The size is checked before a pixel is decoded.
"""

from __future__ import annotations

import errno
import hashlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from io import SEEK_CUR, BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hoi.datasets import UnreadableImage
from hoi.errors import UserError

TRANSIENT = frozenset(
    {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EAGAIN, errno.ENOMEM}
)
"""Errors of the system, not of the file."""
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pbm", ".heic", ".heif"}
)
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names. HEIF is read where the package pillow-heif is installed."""
MAX_ASPECT = 300
"""Times that one side may be the other: models resize the short side, so the long one would grow as much."""
PNG_START, JPEG_START, JPEG_SCAN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", 0xDA
PNG_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
JPEG_COLOURS = {0xE0: 16, 0xEE: 14}  # marker → least length
MAX_JPEG_BLOCKS, MAX_TAKEN_APART_BYTES = 2000, 256 << 20
ORIENTATION_TAG, TURNED = 0x0112, (5, 6, 7, 8)
"""Of EXIF; values for which width and height change places."""
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class TooLarge(UnreadableImage):
    """It is refused for its size, unread."""


class Damaged(UnreadableImage):
    """It might be read without its metadata."""


def read_image(path: Path, max_image_pixels: int) -> np.ndarray:
    """Return the pixels of an image file, uint8 [H, W, 3], RGB, with EXIF orientation applied.

    Animated files give their first frame, deep grey is scaled to 8 bits, transparency is laid on white, and colour
    profiles are not applied. Raises UnreadableImage: missing, no regular file, empty, no image, truncated, or larger
    (width × height) or longer than allowed, before it is decoded; and OSError where the system fails to read it for the
    time being. Damaged or oversized metadata is left out.
    """
    try:
        # Asked first, since opening a pipe would wait for whoever writes into it.
        if not S_ISREG(path.stat().st_mode):
            raise UnreadableImage("this is no regular file")
        with open(path, "rb") as file:
            return decode_image(file, max_image_pixels)
    except FileNotFoundError:
        raise UnreadableImage("the file is missing") from None
    except OSError as error:
        # A disk or a network that fails for a moment says nothing of the file: the task is tried again.
        if error.errno in TRANSIENT:
            raise
        raise UnreadableImage(f"the file cannot be opened ({error.strerror})") from None
    except ValueError as error:
        raise UnreadableImage(f"the file cannot be opened ({error})") from None


def upright_rgb(image: Image.Image) -> np.ndarray:
    """Return an opened picture of any mode as uint8 [H, W, 3], RGB, with EXIF orientation applied."""
    # What cannot be parsed as EXIF says nothing of the orientation.
    with suppress(Exception):
        image = ImageOps.exif_transpose(image)
    return np.array(_to_rgb(image))


def decode_image(data: bytes | BinaryIO, max_image_pixels: int) -> np.ndarray:
    """Return the same for an open image file or its bytes, such as an upload; raises `UnreadableImage` alike."""
    file = BytesIO(data) if isinstance(data, bytes) else data
    reason = f"the file is corrupt (more than {MAX_JPEG_BLOCKS} blocks of metadata)"
    try:
        # Some decoders take time that grows with the square of the number of blocks.
        if _num_jpeg_blocks(file) <= MAX_JPEG_BLOCKS:
            return _decode(file, max_image_pixels)
    except Damaged as error:
        reason = str(error)
    # Damaged metadata must not make sound pixels unreadable, so the file is tried again without it.
    for with_orientation in (True, False):
        try:
            if (rest := _without_metadata(file, with_orientation)) is not None:
                return _decode(BytesIO(rest), max_image_pixels)
        except Damaged as error:
            reason = str(error)
    raise UnreadableImage(reason)


def _decode(file: BinaryIO, max_image_pixels: int) -> np.ndarray:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                if width * height > max_image_pixels:
                    raise TooLarge(f"{width} x {height} pixels, more than the limit of {max_image_pixels}")
                if max(width, height) > MAX_ASPECT * min(width, height):
                    raise TooLarge(f"{width} x {height} pixels: one side is over {MAX_ASPECT} times the other")
                image.load()
                return upright_rgb(image)
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Damaged(_foreign(file)) from None
    except Image.DecompressionBombError:
        limit = min(max_image_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_image_pixels))
        raise TooLarge(f"more pixels than the limit of {limit}") from None
    except Exception as error:
        # Decoders fail on damaged files with whatever their code stumbles over; a failing disk is not the file's fault.
        if isinstance(error, OSError) and error.errno in TRANSIENT:
            raise
        raise Damaged(f"the file is corrupt ({' '.join(str(error).split()) or type(error).__name__})") from None


def _num_jpeg_blocks(file: BinaryIO) -> int:
    """Return the number of blocks before a JPEG's pixels, at most one more than `MAX_JPEG_BLOCKS`; 0 of others."""
    file.seek(0)
    if file.read(2) != JPEG_START:
        return 0
    for number in range(MAX_JPEG_BLOCKS + 1):
        marker, length = file.read(2), file.read(2)
        if len(length) < 2 or marker[0] != 0xFF or marker[1] == JPEG_SCAN:
            return number
        file.seek(int.from_bytes(length, "big") - 2, SEEK_CUR)
    return MAX_JPEG_BLOCKS + 1


def _without_metadata(file: BinaryIO, with_orientation: bool) -> bytes | None:
    """Return a PNG or JPEG file without what its pixels do not need; None where nothing can be left out."""
    file.seek(0)
    data = file.read(MAX_TAKEN_APART_BYTES)
    take_apart = {PNG_START[:2]: _png_pieces, JPEG_START: _jpeg_pieces}.get(data[:2])
    # A file may end within a piece.
    with suppress(struct.error, IndexError):
        kept = b"".join([] if take_apart is None else take_apart(data, with_orientation))
        return kept if 0 < len(kept) < len(data) else None
    return None


def _png_pieces(data: bytes, with_orientation: bool) -> Iterator[bytes]:
    yield PNG_START
    place = len(PNG_START)
    while place < len(data):
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        chunk = data[place : place + length + 12]
        turns = kind == b"eXIf" or chunk[8:].startswith(PNG_ORIENTATION)
        is_whole = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        # A kind that begins in upper case is needed to read the image; tRNS is transparency.
        if kind[:1].isupper() or kind == b"tRNS" or (with_orientation and turns and is_whole):
            yield chunk
        place += len(chunk)


def _jpeg_pieces(data: bytes, with_orientation: bool) -> Iterator[bytes]:
    yield JPEG_START
    place, has_exif = len(JPEG_START), not with_orientation
    while data[place] == 0xFF and data[place + 1] != JPEG_SCAN:
        (length,) = struct.unpack_from(">H", data, place + 2)
        block, marker = data[place : place + length + 2], data[place + 1]
        is_exif = block[4:10] == b"Exif\0\0" and not has_exif
        # JFIF's and Adobe's blocks say how colours are kept, in no fewer bytes than these.
        if not 0xE0 <= marker <= 0xFE or is_exif or length >= JPEG_COLOURS.get(marker, len(data)):
            yield block
        has_exif |= is_exif
        place += len(block)
    yield data[place:]


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    with suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _foreign(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(32)
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS:
        return "this is HEIC, which needs pillow-heif (pip install pillow-heif)"
    return "the file is no image, or of a format that is not read"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # White is the first of 1 (floats), 255 and 65535 that no pixel exceeds.
        grey = np.nan_to_num(np.asarray(image).astype(np.float64))
        most = grey.max(initial=0)
        tops = [top for top in (1.0, 255.0, 65535.0) if top >= most and (top > 1 or image.mode == "F")]
        top = tops[0] if tops else most
        return Image.fromarray((grey.clip(0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


class ImageFiles:
    """Files below a folder as the images of a split; the relative path is the image id."""

    def __init__(self, folder: str | Path, image_ids: Sequence[str], max_image_pixels: int) -> None:
        self.image_ids, self._folder, self._max_image_pixels = image_ids, Path(folder), max_image_pixels

    def read(self, row: int) -> np.ndarray:
        return read_image(self._folder / self.image_ids[row], self._max_image_pixels)


def upright_size(path: Path) -> tuple[int, int] | None:
    """Return the width and height of an image file as its EXIF orientation turns it; None for what is no image."""
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_formats()) as image:
            warnings.simplefilter("ignore")
            is_turned = False
            with suppress(Exception):
                is_turned = image.getexif().get(ORIENTATION_TAG, 1) in TURNED
            return (image.height, image.width) if is_turned else image.size
    except Exception:
        # Who reads the image will say why.
        return None


def hash_point(image_id: str) -> float:
    """Return a point of [0, 1) that depends on the id alone, so that a share of a split is always the same images."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64


@lru_cache(maxsize=8)
def list_images(folder: str) -> tuple[str, ...]:
    """Return all image files below a folder, as sorted relative paths with forward slashes.

    Names that start with a dot are left out: thumbnails, and the twins that macOS writes of files. A UserError if there
    is no such folder, or a name is no valid text.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError("there is no such folder of images", where=folder, fix="name a folder that is there")
    names = []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in name.parts):
            continue
        # A link to nothing is an image that is missing: listed here, recorded as unreadable when it is read.
        if path.is_file() or (path.is_symlink() and not path.exists()):
            names.append(name.as_posix())
            shown = names[-1].encode("utf-8", "backslashreplace").decode()
            if shown != names[-1]:
                problem = "the name of an image is no valid UTF-8"
                raise UserError(problem, where=folder, got=shown, fix="rename the file")
    return tuple(sorted(names))
