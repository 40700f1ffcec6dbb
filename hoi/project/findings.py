"""What `make doctor` says: findings, and the look at image files that every data set needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from hoi.errors import UserError

SAMPLE = 300
"""Image files that are opened where not all are asked for; their sizes in bytes are looked at for all."""
SHOWN = 3
ORIENTATION_TAG = 0x0112
TURNED = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: `error` will stop a run or falsify its figures, `warning` may be meant so, `ok` is right.
        what: In a few words, naming the thing.
        where: File, folder or key.
        expected, got: What would have been right, and what is there.
        fix: The command or edit that mends it.
    """

    level: Level
    what: str
    where: str | None = None
    expected: str | None = None
    got: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = [("where", self.where), ("expected", self.expected), ("got", self.got), ("next", self.fix)]
        shown = [f"{name}: {' '.join(text.split())}" for name, text in parts if text]
        return " · ".join([f"{self.level:<8}{self.what}", *shown])

    def to_dict(self) -> dict[str, str | None]:
        """The plain form that goes into JSON."""
        return asdict(self)


def collect(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """All that a check finds; what it raises as a user's mistake is its last finding."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except UserError as error:
        texts = (None if v is None else str(v) for v in (error.where, error.expected, error.got, error.fix))
        found.append(Finding("error", error.what, *texts))
    return found


def first_of(names: Sequence[str]) -> str:
    """A list to its length and its first few, as the `got` of a finding."""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Args:
        stored_hw: Size of the pixels as stored.
        orientation: EXIF orientation, 1 for none.
    """

    stored_hw: tuple[int, int]
    orientation: int

    @property
    def upright_hw(self) -> tuple[int, int]:
        """The size in which the pipeline sees the image."""
        return self.stored_hw[::-1] if self.orientation in TURNED else self.stored_hw


def read_headers(paths: Sequence[Path]) -> tuple[dict[Path, Header], list[Path]]:
    """Image files to their headers, and those that are no image."""
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(paths, pool.map(_header, paths), strict=True))
    return {path: header for path, header in found.items() if header}, [p for p, header in found.items() if not header]


def _header(path: Path) -> Header | None:
    try:
        with Image.open(path) as image:
            return Header((image.height, image.width), int(image.getexif().get(ORIENTATION_TAG, 1)))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return None


def sample_of(names: Sequence[str], every: bool) -> list[str]:
    """The names to open: all, or `SAMPLE` of them evenly spread."""
    if every or len(names) <= SAMPLE:
        return list(names)
    return [names[row] for row in np.linspace(0, len(names) - 1, SAMPLE).astype(int)]


def check_image_files(
    folder: Path, names: Sequence[str], every: bool, annotated_hw: dict[str, tuple[int, int]] | None = None
) -> Iterator[Finding]:
    """Images of a folder: missing and empty files (all), what is no image and sizes that differ (a sample, or all).

    Args:
        folder: Where they lie.
        names: File names relative to it.
        every: Whether all files are opened.
        annotated_hw: Sizes that the annotations were made on, by name.
    """
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        fix = "put these files there; without them they count as unreadable images"
        yield Finding("error", "image files are missing", str(folder), "a file for each name", first_of(missing), fix)
    there = sorted(set(names) - set(missing))
    empty = [name for name in there if (folder / name).stat().st_size == 0]
    if empty:
        fix = "unpack or copy these files again"
        yield Finding("error", "image files are empty", str(folder), "no file of 0 bytes", first_of(empty), fix)
    opened = sample_of(sorted(set(there) - set(empty)), every)
    headers, broken = read_headers([folder / name for name in opened])
    if broken:
        shown = first_of([path.name for path in broken])
        yield Finding("error", "files are no images", str(folder), "images", shown, "unpack or copy these files again")
    by_name = {path.relative_to(folder).as_posix(): header for path, header in headers.items()}
    wrong = [*_check_sizes(folder, by_name, annotated_hw)] if annotated_hw else []
    yield from wrong
    if not (missing or empty or broken or wrong):
        compared = " and have the annotated size" if annotated_hw else ""
        yield Finding("ok", f"{len(headers)} of {len(names)} image files opened: all are images{compared}", str(folder))


def _check_sizes(
    folder: Path, headers: dict[str, Header], annotated_hw: dict[str, tuple[int, int]]
) -> Iterator[Finding]:
    both = {name: header for name, header in headers.items() if name in annotated_hw}
    other = {name: h for name, h in both.items() if tuple(annotated_hw[name]) != h.upright_hw}
    as_stored = [name for name, h in other.items() if tuple(annotated_hw[name]) == h.stored_hw]
    if as_stored:
        yield Finding(
            "error",
            "boxes were drawn on the pixels as stored, but images are turned upright by their EXIF tag",
            str(folder),
            "annotations of the upright image",
            first_of(as_stored),
            f"take the tag out: exiftool -overwrite_original -Orientation= {folder}/{as_stored[0]} (and the others)",
        )
    foreign = [
        f"{name} (annotated {annotated_hw[name][1]} x {annotated_hw[name][0]}, "
        f"file {h.upright_hw[1]} x {h.upright_hw[0]})"
        for name, h in other.items()
        if name not in as_stored
    ]
    if foreign:
        fix = "use the images and the annotations of one release; resized copies do not fit the boxes"
        yield Finding(
            "error", "images have another size than annotated", str(folder), "equal sizes", first_of(foreign), fix
        )
    flipped = [name for name, h in both.items() if h.orientation in (2, 3, 4)]
    if flipped:
        yield Finding(
            "warning",
            "images are mirrored or turned by 180 degrees by their EXIF tag; sizes cannot tell what the boxes mean",
            str(folder),
            "no such tag",
            first_of(flipped),
            "look at one of them with its boxes",
        )
