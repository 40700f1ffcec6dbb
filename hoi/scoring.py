"""Branch scores of pairs to scored triplets: masked by object, times the detection prior. Students and baselines alike.

Letters: P pairs, K interactions, R triplets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hoi.records import BranchScores, PairBatch, Triplets
from hoi.vocabulary import Vocabulary


@runtime_checkable
class Scorer(Protocol):
    """Whatever gives the pairs of a batch a score: a student, a branch of one, or a baseline."""

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to [P, K] scores by row name."""
        ...


def extra_of(scorer: Scorer) -> tuple[str, ...]:
    """The cached fields beyond the usual that a scorer reads: those that it names, none where it names none."""
    return getattr(scorer, "scoring_fields", ())


def score_triplets(
    batch: PairBatch, pair_scores: Float[Tensor, "P K"], vocabulary: Vocabulary, exponent: float
) -> Triplets:
    """Scores of pairs to one triplet for every interaction that the pair's object admits.

    Args:
        batch: Where boxes and detection scores stand.
        pair_scores: In [0, 1]; what stands at interactions of other objects is dropped.
        vocabulary: Says which interactions an object admits.
        exponent: γ of the detection prior (s_h · s_o)^γ.

    Returns:
        Triplets by pair, then interaction; a pair whose object admits none gives none.
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
    """All batches of a split to the triplets of every row that the scorer names.

    Args:
        scorer: A student in evaluation mode, or a baseline.
        batches: In any order.
        vocabulary, exponent: As in `score_triplets`.
        device: Where the scorer computes.
    """
    parts: dict[str, list[Triplets]] = {}
    with torch.inference_mode():
        for batch in batches:
            moved = batch.to(device)
            for name, pair_scores in scorer.branch_scores(moved).items():
                parts.setdefault(name, []).append(score_triplets(moved, pair_scores, vocabulary, exponent))
    return {name: concatenate(triplets) for name, triplets in parts.items()}


def concatenate(parts: list[Triplets]) -> Triplets:
    """Triplets of several batches, one after the other."""
    return Triplets(
        image=np.concatenate([part.image for part in parts]),
        boxes_h=np.concatenate([part.boxes_h for part in parts]),
        boxes_o=np.concatenate([part.boxes_o for part in parts]),
        interaction=np.concatenate([part.interaction for part in parts]),
        score=np.concatenate([part.score for part in parts]),
    )
