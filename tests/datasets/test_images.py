"""What is wrong with a file, and what is wrong with the machine that reads it."""

from __future__ import annotations

import errno
import os
import tracemalloc
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
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match="4000 x 4000 pixels, more than the limit of 1000000"):
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
