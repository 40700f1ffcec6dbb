"""Random choices that every platform and Python version repeats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Integers from a string key.

    Only `random.Random(str).random()` is used: it is the one stream of the module that Python promises to keep.
    """

    def __init__(self, key: str) -> None:
        self._random = random.Random(key)

    def below(self, bound: int) -> int:
        """Uniform integer in [0, bound)."""
        return int(self._random.random() * bound)

    def between(self, low: int, high: int) -> int:
        """Uniform integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        """True in `chance` of 100 throws."""
        return self.below(100) < chance

    def choose(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """One item, in proportion to integer weights."""
        rest = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            rest -= weight
            if rest < 0:
                return item
        raise ValueError(f"no item drawn from {len(items)} items: weights must be positive, got {list(weights)}")
