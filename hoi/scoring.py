"""Turns scores of pairs into scored triplets, for students and baselines alike, and the competition gate.

Shapes: P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
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
    """Return each pair's share of what its object, then its human, does, in [0, 1]; 1 for a pair without a rival.

    The mass of a pair is the sum of its scores over real interactions. Its share of the mass of its object's pairs,
    times the share of what then remains among its human's pairs, is the gate.

    Scores are not negative; real is what the pair's object admits, `no_interaction` left out; equal rows are the same
    detection; `rivals` is the setting `gate.kind`.
    """
    mass = (scores * is_real).sum(1)
    if rivals == "object":
        return _share(mass, rows_o)
    if rivals == "human":
        return _share(mass, rows_h)
    of_object = _share(mass, rows_o, of_best=rivals == "best")
    return of_object * _share(mass * of_object, rows_h, of_best=rivals == "best")


def gated(
    scores: Float[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
    rows_h: Int64[Tensor, " P"],
    rows_o: Int64[Tensor, " P"],
    exponent: float,
    rivals: Rivals = "both",
) -> Float[Tensor, "P K"]:
    """Return scores · gate^exponent where `is_real`, and the scores elsewhere."""
    gate = competition_gate(scores, is_real, rows_h, rows_o, rivals) ** exponent
    return torch.where(is_real, gate[:, None] * scores, scores)


def _share(mass: Float[Tensor, " P"], rows: Int64[Tensor, " P"], of_best: bool = False) -> Float[Tensor, " P"]:
    groups, group_of = torch.unique(rows, return_inverse=True)
    empty = mass.new_zeros(len(groups))
    whole = empty.scatter_reduce(0, group_of, mass, "amax") if of_best else empty.index_add(0, group_of, mass)
    whole = whole[group_of]
    # Where the whole is zero, so is the mass; 1 in its place keeps the division finite.
    return mass / torch.where(whole > 0, whole, 1.0)


@runtime_checkable
class Scorer(Protocol):
    """Scores the pairs of a batch: a student or a baseline."""

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return scores [P, K] by row name."""


def extra_of(scorer: Scorer) -> tuple[str, ...]:
    """Return the extra cached fields that a scorer reads: its `scoring_fields`, if it has any."""
    return getattr(scorer, "scoring_fields", ())


def score_triplets(
    batch: PairBatch, pair_scores: Float[Tensor, "P K"], vocabulary: Vocabulary, exponent: float
) -> Triplets:
    """Return a triplet for every pair and interaction that its object admits: (s_h · s_o)^exponent · pair score."""
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
    columns = [column.name for column in fields(Triplets)]
    return {
        name: Triplets(**{column: np.concatenate([getattr(t, column) for t in triplets]) for column in columns})
        for name, triplets in parts.items()
    }
