"""What is wrong with a file, and what is wrong with the machine that reads it."""

from __future__ import annotations

import errno
import os
import struct
import tracemalloc
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi.datasets import UnreadableImage
from hoi.datasets.images import decode_image, read_image, upright_rgb

LIMIT = 1_000_000


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.ESTALE, OSError), (None, UnreadableImage)])
def test_a_disk_that_fails_for_a_moment_makes_no_image_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, kind: type[Exception]
) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")

    def fail(image: Image.Image) -> None:
        raise OSError(number, "failed") if number is not None else OSError("image file is truncated")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(kind) as caught:
        read_image(tmp_path / "a.png", 100)
    assert type(caught.value) is kind


def test_every_format_gives_its_pixels_and_a_mode_its_meaning(tmp_path: Path) -> None:
    colour = Image.new("RGB", (6, 4), (200, 40, 10))
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif", "avif", "ppm"):
        colour.save(tmp_path / f"a.{suffix}")
        pixels = read_image(tmp_path / f"a.{suffix}", LIMIT)
        assert pixels.shape == (4, 6, 3)
        assert abs(pixels.astype(int) - [200, 40, 10]).max() < 12, suffix
    frames = [Image.new("RGB", (4, 4), shade) for shade in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    for name in ("moving.webp", "moving.gif"):
        assert read_image(tmp_path / name, LIMIT)[0, 0].tolist() == [255, 0, 0]
    for alpha, shade in ((128, 127), (0, 255)):
        Image.new("RGBA", (2, 2), (0, 0, 0, alpha)).save(tmp_path / "clear.png")
        assert read_image(tmp_path / "clear.png", LIMIT)[0, 0].tolist() == [shade] * 3
    floats, deep = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), np.full((3, 4), 65535, np.uint16)
    for picture, name in ((floats, "floats.tif"), (deep, "deep.png")):
        Image.fromarray(picture).save(tmp_path / name)
        assert read_image(tmp_path / name, LIMIT).max() == 255
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    assert (read_image(tmp_path / "bits.png", LIMIT) == 255).all()
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"):
        assert upright_rgb(Image.new(mode, (4, 3))).shape == (3, 4, 3), mode
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to view
    for mode, name, shape in (
        ("RGB", "turned.jpg", (8, 4, 3)),
        ("CMYK", "c.jpg", (8, 4, 3)),
        ("P", "p.gif", (4, 8, 3)),
    ):
        Image.new(mode, (8, 4)).save(tmp_path / name, exif=exif)
        assert read_image(tmp_path / name, LIMIT).shape == shape


def test_bytes_are_read_and_refused_like_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(decode_image(data, LIMIT), read_image(tmp_path / "a.jpg", LIMIT))
    for broken in (data[:-300], b"", b"hello", b"\0" * 4, data[:20]):
        (tmp_path / "b.jpg").write_bytes(broken)
        with pytest.raises(UnreadableImage) as of_file:
            read_image(tmp_path / "b.jpg", LIMIT)
        with pytest.raises(UnreadableImage) as of_bytes:
            decode_image(broken, LIMIT)
        assert str(of_file.value) == str(of_bytes.value)


def test_the_size_is_looked_at_before_a_pixel_is_decoded() -> None:
    file = BytesIO()
    Image.new("1", (4000, 4000)).save(file, "PNG")
    reason = "4000 x 4000 pixels, more than the limit of 1000000"
    for start in (lambda: None, tracemalloc.start):  # The first time the library imports its readers.
        start()
        with pytest.raises(UnreadableImage, match=reason):
            decode_image(file.getvalue(), LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(/etc/passwd) run\n%%EOF\n"


def test_an_unusable_file_says_why_and_no_program_is_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.jpg", quality=95)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "program.jpg").write_bytes(POSTSCRIPT)
    for name, reason in (
        ("gone.jpg", "missing"),
        ("cut.jpg", "corrupt"),
        ("text.jpg", "no image"),
        ("program.jpg", "no image"),
        ("empty.jpg", "empty"),
        ("pipe.jpg", "no regular file"),
        ("folder.jpg", "no regular file"),
        ("x" * 300 + ".jpg", "cannot be opened"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / name, LIMIT)
    if "HEIF" not in Image.OPEN:
        with pytest.raises(UnreadableImage, match="HEIC, which needs pillow-heif"):
            decode_image(b"\0\0\0\x18ftypheic" + b"\0" * 40, LIMIT)


def test_damaged_files_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 255, (30, 30, 3), dtype=np.uint8))
    outcomes = set()
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"):
        file = BytesIO()
        picture.save(file, kind)
        whole = file.getvalue()
        for _ in range(30):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(0, 256)
            with suppress(UnreadableImage):
                outcomes.add("refused")
                assert decode_image(bytes(data[: rng.integers(1, len(data) + 1)]), LIMIT).dtype == np.uint8
                outcomes.add("read")
    assert outcomes == {"read", "refused"}


def test_a_broken_exif_block_does_not_cost_the_image() -> None:
    file = BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_image(file.getvalue(), LIMIT).shape == (4, 8, 3)


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    number = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", number)


def block(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


BOMB = zlib.compress(bytes(2 << 20))
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
DAMAGED = {
    "itxt": ("PNG", chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    "ztxt": ("PNG", chunk(b"zTXt", b"a\0\0" + BOMB)),
    "profile": ("PNG", chunk(b"iCCP", b"a\0\0" + BOMB)),
    "many": ("PNG", chunk(b"tEXt", b"a\0" + bytes(1 << 20)) * 66),
    "checksum": ("PNG", chunk(b"tEXt", b"a\0b", 0)),
    "short": ("PNG", chunk(b"pHYs", b"x")),
    "jfif": ("JPEG", block(0xE0, b"JFIF")),
    "adobe": ("JPEG", block(0xEE, b"Adobe")),
    "icc": ("JPEG", block(0xE2, b"ICC_PROFILE\0")),
    "blocks": ("JPEG", block(0xE1, b"Exif\0\0ab") * 3000),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_metadata_costs_no_whole_pixels(name: str) -> None:
    kind, damage = DAMAGED[name]
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)).save(file, kind)
    whole, start = file.getvalue(), 33 if kind == "PNG" else 2
    np.testing.assert_array_equal(
        decode_image(whole[:start] + damage + whole[start:], LIMIT), decode_image(whole, LIMIT)
    )
    # What is cut is cut, whatever its metadata.
    with pytest.raises(UnreadableImage, match="corrupt"):
        decode_image(whole[:start] + damage + whole[start:-40], LIMIT)


def test_an_orientation_beside_damaged_metadata_counts() -> None:
    file = BytesIO()
    Image.new("RGB", (9, 6)).save(file, "PNG")
    whole = file.getvalue()
    for good in (chunk(b"iTXt", XMP), chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0")):
        for damage in (b"", DAMAGED["ztxt"][1]):
            assert decode_image(whole[:33] + good + damage + whole[33:], LIMIT).shape == (9, 6, 3)
    # Of no use: an orientation that is damaged itself.
    assert decode_image(whole[:33] + chunk(b"iTXt", XMP, 0) + whole[33:], LIMIT).shape == (6, 9, 3)


def test_a_line_of_pixels_is_refused_before_it_is_decoded() -> None:
    for size in ((1, 301), (15_001, 50), (49_000_000, 1)):
        file = BytesIO()
        Image.new("1", size).save(file, "PNG")
        with pytest.raises(UnreadableImage, match="one side is over 300 times the other"):
            decode_image(file.getvalue(), 50_000_000)
