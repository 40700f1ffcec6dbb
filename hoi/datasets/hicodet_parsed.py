"""What every reader of a HICO-DET annotation file hands on, before coordinates and checks are common."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hoi.errors import UserError


@dataclass
class Parsed:
    """One file, as written.

    Args:
        names: n file names.
        size_hw: int32 [n, 2], or None.
        rows: float64 [R, 10]: image row, human x1 y1 x2 y2, object x1 y1 x2 y2 (inclusive corners), interaction from 0.
        first_pixel: What number the file gives to the first pixel, 0 or 1.
        dropped: Entries that name a box that is not there.
    """

    names: list[str]
    size_hw: np.ndarray | None
    rows: np.ndarray
    first_pixel: int
    dropped: list[str] = field(default_factory=list)


def wrong_record(where: str, expected: str, got: object) -> UserError:
    """What a reader says of a record that it does not understand."""
    if isinstance(got, KeyError):
        got = f"no {got}"
    return UserError("an annotation record is not understood", where=where, expected=expected, got=got)
