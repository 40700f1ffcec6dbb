"""Which of the pairs that share a person or an object are likely to interact, from their scores alone.

Letters: P pairs, K interactions, G people or objects that pairs share.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Rivals = Literal["both", "object", "human", "best"]


def competition_gate(
    scores: Float[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
    rows_h: Int64[Tensor, " P"],
    rows_o: Int64[Tensor, " P"],
    rivals: Rivals = "both",
) -> Float[Tensor, " P"]:
    """Scores to each pair's share of what its object, then its human, does; needs no training.

    The mass of a pair is the sum of its scores over real interactions. Its share of the mass of its object's pairs,
    times the share of what then remains among its human's pairs, is the gate.

    Args:
        scores: Non-negative.
        is_real: The interactions that count: those that the pair's object admits, `no_interaction` left out.
        rows_h, rows_o: Detections of the pairs; equal rows are the same human or object.
        rivals: `both` as above; `object` or `human` for one of the two shares alone; `best` for both, but taken of the
            largest mass instead of the sum, so that people who share an object equally all keep it.

    Returns:
        In [0, 1]; 1 for a pair without a rival, 0 where nothing counts.
    """
    mass = (scores * is_real).sum(1)
    if rivals == "object":
        return _share(mass, rows_o)
    if rivals == "human":
        return _share(mass, rows_h)
    share = _share_of_best if rivals == "best" else _share
    of_object = share(mass, rows_o)
    return of_object * share(mass * of_object, rows_h)


def gated(
    scores: Float[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
    rows_h: Int64[Tensor, " P"],
    rows_o: Int64[Tensor, " P"],
    exponent: float,
    rivals: Rivals = "both",
) -> Float[Tensor, "P K"]:
    """Scores to scores · gate^exponent where `is_real`, and as they were elsewhere; see `competition_gate`."""
    gate = competition_gate(scores, is_real, rows_h, rows_o, rivals) ** exponent
    return torch.where(is_real, gate[:, None] * scores, scores)


def _share(mass: Float[Tensor, " P"], rows: Int64[Tensor, " P"]) -> Float[Tensor, " P"]:
    groups, group_of = torch.unique(rows, return_inverse=True)
    total = mass.new_zeros(len(groups)).index_add(0, group_of, mass)[group_of]
    # Where the total is zero so is the mass, and 1 in its place keeps the division finite.
    return mass / torch.where(total > 0, total, 1.0)


def _share_of_best(mass: Float[Tensor, " P"], rows: Int64[Tensor, " P"]) -> Float[Tensor, " P"]:
    groups, group_of = torch.unique(rows, return_inverse=True)
    best = mass.new_zeros(len(groups)).scatter_reduce(0, group_of, mass, "amax")[group_of]
    return mass / torch.where(best > 0, best, 1.0)
