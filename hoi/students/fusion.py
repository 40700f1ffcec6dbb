"""Scores of the branches to the score of the pair.

Letters: P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add, mul
from typing import Literal

from torch import Tensor


def fuse(branches: Iterable[tuple[Tensor, float]], how: Literal["product", "sum"]) -> Tensor:
    """Branches' scores and weights to one score: Π s^w, or Σ w · s / Σ w.

    Args:
        branches: Scores [P, K] in [0, 1] and their weight; 0 leaves a branch out, and one is left at least.
        how: `product` or `sum`.
    """
    counted = [(scores, weight) for scores, weight in branches if weight > 0]
    if how == "sum":
        return reduce(add, (scores * weight for scores, weight in counted)) / sum(weight for _, weight in counted)
    return reduce(mul, (scores if weight == 1 else scores**weight for scores, weight in counted))
