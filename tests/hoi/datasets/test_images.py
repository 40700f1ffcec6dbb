"""What is wrong with a file, and what is wrong with the machine that reads it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from PIL import Image

from hoi.datasets.base import UnreadableImage
from hoi.datasets.images import read_image


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
