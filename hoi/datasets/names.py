"""Which image is meant: names of files of annotations, predictions and boxes, joined to those of images."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PureWindowsPath


def plain_name(name: str) -> str:
    """Return a name with forward slashes and in Unicode form NFC; in nothing else may two names of one file differ."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def bare_name(name: str) -> str:
    """Return a name without its folders."""
    return plain_name(name).rpartition("/")[2]


def leaves_folder(name: str) -> bool:
    """Return whether a path, written with slashes or backslashes, is absolute or goes up."""
    path = PureWindowsPath(name)
    return bool(path.root) or ".." in path.parts


@dataclass(frozen=True)
class Joined:
    """Names of a file and which of the known names each is."""

    rows: dict[str, int]
    """Name → row of the known names; without those that are none of them."""
    by_bare_name: list[str] = field(default_factory=list)
    """Those that are joined without their folders."""

    def notices(self, names: str) -> list[str]:
        """Say how many names, called `names`, were joined without their folders."""
        if not self.by_bare_name:
            return []
        what = f"{len(self.by_bare_name)} {names} were joined by their bare names, as '{self.by_bare_name[0]}'"
        return [f"{what}: the folders differ, and each name is there once"]


def join_names(names: Iterable[str], known: Sequence[str]) -> Joined:
    """Find each name among the known ones: first by the whole path, then by the bare name if both sides have it once.

    Separators and Unicode form do not matter; case, spaces and spelling do.
    """
    distinct = list(dict.fromkeys(names))
    row_of = {name: row for row, name in enumerate(known)}
    rows = {name: row_of[name] for name in distinct if name in row_of}
    if len(rows) == len(distinct):
        return Joined(rows)
    row_of = _unambiguous(map(plain_name, known))
    rows |= {n: row_of[plain_name(n)] for n in distinct if n not in rows and plain_name(n) in row_of}
    row_of, count = _unambiguous(map(bare_name, known)), Counter(map(bare_name, set(map(plain_name, distinct))))
    by_bare = [n for n in distinct if n not in rows and bare_name(n) in row_of and count[bare_name(n)] == 1]
    return Joined(rows | {name: row_of[bare_name(name)] for name in by_bare}, by_bare)


def _unambiguous(names: Iterable[str]) -> dict[str, int]:
    all_names = list(names)
    count = Counter(all_names)
    return {name: row for row, name in enumerate(all_names) if count[name] == 1}
