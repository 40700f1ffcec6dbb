"""What the command line names to the files that are looked at: images, folders of them, globs, videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hoi.datasets.images import SUFFIXES
from hoi.errors import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"})


@dataclass(frozen=True)
class Source:
    """One file.

    Args:
        name: Its path below the folder that was named, with forward slashes: `file_name` of its predictions.
        path: Where it lies.
    """

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        """By its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def stamp(self) -> list[int]:
        """Bytes and time of the last change, by which a file that was replaced is told; empty where it is not there."""
        try:
            status = self.path.stat()
        except OSError:
            return []
        return [status.st_size, status.st_mtime_ns]


@dataclass
class Found:
    """What was found.

    Args:
        sources: Files to look at, each once, by name within each argument.
        refused: Names and reasons of what looks like an image by its name and is none.
        passed_over: Other files of the folders that were searched.
    """

    sources: list[Source] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def find_sources(arguments: Sequence[str], leave_out: Path | None = None) -> Found:
    """Paths to files: an image or video as it is, a folder with all below it, a glob with all that fits.

    A file that is named is looked at whatever its suffix; in a folder the suffix decides. Links to folders are not
    followed, so that none leads in a circle.

    Args:
        arguments: At least one.
        leave_out: A folder that is not searched: where results go.

    Raises:
        UserError: nothing is there, or two files would have one name.
    """
    found = Found()
    by_name: dict[str, Path] = {}
    for argument in arguments:
        for source in _of_argument(argument, leave_out, found):
            # Not `resolve`: a link that leads in a circle has no end.
            place = Path(os.path.abspath(source.path))
            other = by_name.setdefault(source.name, place)
            if other != place:
                raise UserError(
                    f"two files would have the name {shown(source.name)}",
                    where=f"{shown(str(other))} and {shown(str(place))}",
                    fix="name the folder above both, so that their names tell them apart",
                )
            if len(by_name) > len(found.sources):
                found.sources.append(source)
    return found


def shown(name: str) -> str:
    """A file name to what a terminal can show: no line break, no control character, no broken letter."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _of_argument(argument: str, leave_out: Path | None, found: Found) -> Iterator[Source]:
    path = Path(argument)
    if path.is_dir():
        yield from _below(path, path, leave_out, found)
    elif os.path.lexists(path):
        yield Source(path.name, path)
    elif glob.has_magic(argument):
        root = _fixed_part(argument)
        hits = sorted(glob.glob(argument, recursive=True))
        if not hits:
            raise UserError("no file fits", where=shown(argument), fix="check the pattern")
        for hit in map(Path, hits):
            if hit.is_dir():
                yield from _below(hit, root, leave_out, found)
            else:
                yield Source(hit.relative_to(root).as_posix(), hit)
    else:
        raise UserError("there is no such image, folder or video", where=shown(argument), fix="check the path")


def _fixed_part(pattern: str) -> Path:
    """The folder above the first part of a pattern that is none of its own."""
    parts = Path(pattern).parts
    first = next(row for row, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _below(folder: Path, root: Path, leave_out: Path | None, found: Found) -> Iterator[Source]:
    """Files of a folder in order of their names."""

    def refuse(error: OSError) -> None:
        found.refused.append((_name(Path(str(error.filename)), root), f"the folder cannot be read ({error.strerror})"))

    sources = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        here = Path(parent)
        folders[:] = [name for name in folders if leave_out is None or not _is_same(here / name, leave_out)]
        for name in folders:
            if Path(name).suffix.lower() in SUFFIXES | VIDEO_SUFFIXES:
                found.refused.append((_name(here / name, root), "this is a folder"))
            if (here / name).is_symlink():
                found.passed_over.append(_name(here / name, root))
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES | VIDEO_SUFFIXES:
                sources.append(Source(_name(here / name, root), here / name))
            else:
                found.passed_over.append(_name(here / name, root))
    yield from sorted(sources, key=lambda source: source.name)


def _is_same(path: Path, other: Path) -> bool:
    return os.path.abspath(path) == os.path.abspath(other)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
