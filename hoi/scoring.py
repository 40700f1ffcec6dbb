"""Turns scores of pairs into scored triplets, for students and baselines alike, and the competition gate.

Shapes: P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hoi.records import BranchScores, PairBatch, Triplets
from hoi.vocabulary import Vocabulary

Rivals = Literal["both", "object", "human", "best"]


def competition_gate(
    scores: Float[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
    rows_h: Int64[Tensor, " P"],
    rows_o: Int64[Tensor, " P"],
    rivals: Rivals = "both",
) -> Float[Tensor, " P"]:
    """Return each pair's share of what its object, then its human, does; needs no training.

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
    """Return scores · gate^exponent where `is_real`, and the scores elsewhere; see `competition_gate`."""
    gate = competition_gate(scores, is_real, rows_h, rows_o, rivals) ** exponent
    return torch.where(is_real, gate[:, None] * scores, scores)


def _share(mass: Float[Tensor, " P"], rows: Int64[Tensor, " P"]) -> Float[Tensor, " P"]:
    groups, group_of = torch.unique(rows, return_inverse=True)
    total = mass.new_zeros(len(groups)).index_add(0, group_of, mass)[group_of]
    # Where the total is zero, so is the mass; 1 in its place keeps the division finite.
    return mass / torch.where(total > 0, total, 1.0)


def _share_of_best(mass: Float[Tensor, " P"], rows: Int64[Tensor, " P"]) -> Float[Tensor, " P"]:
    groups, group_of = torch.unique(rows, return_inverse=True)
    best = mass.new_zeros(len(groups)).scatter_reduce(0, group_of, mass, "amax")[group_of]
    return mass / torch.where(best > 0, best, 1.0)


@runtime_checkable
class Scorer(Protocol):
    """Scores the pairs of a batch: a student or a baseline."""

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return scores [P, K] by row name."""
        ...


def extra_of(scorer: Scorer) -> tuple[str, ...]:
    """Return the extra cached fields that a scorer reads: its `scoring_fields`, if it has any."""
    return getattr(scorer, "scoring_fields", ())


def score_triplets(
    batch: PairBatch, pair_scores: Float[Tensor, "P K"], vocabulary: Vocabulary, exponent: float
) -> Triplets:
    """Return a triplet for every pair and interaction that its object admits, by pair, then interaction.

    Args:
        pair_scores: In [0, 1]; scores at interactions of other objects are dropped.
        exponent: γ of the detection prior (s_h · s_o)^γ.
    """
    admitted = torch.from_numpy(vocabulary.object_mask).to(batch.labels_o.device)[batch.labels_o]
    pair, interaction = admitted.nonzero(as_tuple=True)
    prior = (batch.scores_h * batch.scores_o).double() ** exponent
    score = prior[pair] * pair_scores.double()[pair, interaction]
    return Triplets(
        image=batch.image_rows[batch.pair_image[pair]].cpu().numpy(),
        boxes_h=batch.boxes_h[pair].cpu().numpy(),
        boxes_o=batch.boxes_o[pair].cpu().numpy(),
        interaction=interaction.cpu().numpy(),
        score=score.cpu().numpy(),
    )


def score_split(
    scorer: Scorer,
    batches: Iterable[PairBatch],
    vocabulary: Vocabulary,
    exponent: float,
    device: torch.device | str,
) -> dict[str, Triplets]:
    """Return a split's triplets by row name."""
    parts: dict[str, list[Triplets]] = {}
    with torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            for name, pair_scores in scorer.branch_scores(moved).items():
                parts.setdefault(name, []).append(score_triplets(moved, pair_scores, vocabulary, exponent))
    return {name: concatenate(triplets) for name, triplets in parts.items()}


def concatenate(parts: list[Triplets]) -> Triplets:
    """Return the triplets of several batches, one after the other."""
    return Triplets(
        image=np.concatenate([part.image for part in parts]),
        boxes_h=np.concatenate([part.boxes_h for part in parts]),
        boxes_o=np.concatenate([part.boxes_o for part in parts]),
        interaction=np.concatenate([part.interaction for part in parts]),
        score=np.concatenate([part.score for part in parts]),
    )
