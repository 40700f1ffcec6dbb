"""How much of the way from one method to another a third one has gone, over paired resamples of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi.evaluation.rows import ResultRow, resampled


@dataclass(frozen=True)
class Headroom:
    """(of − start) / (goal − start) in full mean average precision, means over seeds.

    Args:
        of, start, goal: Row names.
        share: On the images as they are; 0 at the start, 1 at the goal.
        low, high: The central 95 % of the resamples in which start and goal differ.
    """

    of: str
    start: str
    goal: str
    share: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """The plain form, in percent."""
        percent = {name: round(100 * getattr(self, name), 4) for name in ("share", "low", "high")}
        return {"of": self.of, "start": self.start, "goal": self.goal, **percent}

    def __str__(self) -> str:
        share, low, high = (100 * value for value in (self.share, self.low, self.high))
        return (
            f"{self.of}: {share:.1f} % of the way from {self.start} to {self.goal}, "
            f"95 % interval {low:.1f} to {high:.1f}"
        )


def headroom(rows: Sequence[ResultRow], of: str, start: str, goal: str) -> Headroom:
    """Rows to the share of the way that one of them has gone."""
    found = [resampled(rows, name) for name in (of, start, goal)]
    here, begin, end = (np.mean([[m.observed, *m.resampled] for m in maps], 0) for maps in found)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (here - begin) / (end - begin)
    low, high = np.percentile(share[1:][end[1:] != begin[1:]], [2.5, 97.5])
    return Headroom(of, start, goal, float(share[0]), float(low), float(high))
