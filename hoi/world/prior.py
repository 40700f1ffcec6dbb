"""How often each interaction occurs: long-tailed in the training split, flat elsewhere.

`train` draws a combination of verbs in proportion to its weight and to a power law over a fixed shuffle of the
interactions. All other splits aim at each interaction equally often: scene by scene they go through a fresh shuffle
of all interactions, so that `test` holds every one of them at least five times. The captions of the `clip` split are
therefore flat too: what is rare in `train` is not rare in what the world's CLIP reads.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

from hoi.world.dice import Dice
from hoi.world.vocabulary import COMBINATIONS, INTERACTION_ROW, INTERACTIONS, NO_INTERACTION

TAIL_OFFSET = 3
"""Larger is flatter: an interaction of rank k has weight (k + TAIL_OFFSET) ** -1.5."""

FLOOR = 5_000
"""Least weight of a combination in `train`, so that few interactions are absent from it."""

Combination = tuple[str, tuple[str, ...]]
"""An object and its verbs."""


def _shuffled(key: str) -> list[int]:
    dice, rows = Dice(key), list(range(len(INTERACTIONS)))
    for last in range(len(rows) - 1, 0, -1):
        other = dice.below(last + 1)
        rows[last], rows[other] = rows[other], rows[last]
    return rows


@cache
def _tail() -> dict[tuple[str, str], int]:
    """Weight of each interaction in `train`, in millionths of the weight of rank 1 - TAIL_OFFSET."""
    ranked = _shuffled("tail")
    return {INTERACTIONS[row]: 10**9 // isqrt((rank + TAIL_OFFSET) ** 3 * 10**6) for rank, row in enumerate(ranked)}


@cache
def _tailed_combinations() -> tuple[tuple[Combination, ...], tuple[int, ...]]:
    items, weights = [], []
    for name, combinations in COMBINATIONS.items():
        for verbs, weight in (*combinations, ((NO_INTERACTION,), 3)):
            tail = [_tail()[verb, name] for verb in verbs]
            items.append((name, verbs))
            weights.append(weight * isqrt(min(tail) * max(tail)) * len(tail) + FLOOR)
    return tuple(items), tuple(weights)


@cache
def _cycle(seed: int, split: str, number: int) -> list[int]:
    return _shuffled(f"{seed}/{split}/cycle/{number}")


def combination_of_scene(seed: int, split: str, index: int, dice: Dice) -> Combination:
    """Object and verbs of a scene's first pair."""
    if split == "train":
        return dice.weighted(*_tailed_combinations())
    row = _cycle(seed, split, index // len(INTERACTIONS))[index % len(INTERACTIONS)]
    return _containing(row, dice)


def sample_combination(split: str, dice: Dice) -> Combination:
    """Object and verbs of a further pair."""
    if split == "train":
        return dice.weighted(*_tailed_combinations())
    return _containing(dice.below(len(INTERACTIONS)), dice)


def _containing(row: int, dice: Dice) -> Combination:
    verb, name = INTERACTIONS[row]
    if verb == NO_INTERACTION:
        return name, (verb,)
    fitting = [entry for entry in COMBINATIONS[name] if verb in entry[0]]
    return name, dice.weighted([verbs for verbs, _ in fitting], [weight for _, weight in fitting])


def rows_of(name: str, verbs: tuple[str, ...]) -> tuple[int, ...]:
    """Interaction rows of an object and its verbs, ascending."""
    return tuple(sorted(INTERACTION_ROW[verb, name] for verb in verbs))
