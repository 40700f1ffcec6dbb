"""Validation labels to the knobs of the rows that may be tuned: direct CLIP, in its favour, and the supervised bound.

Letters: R triplets, P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hoi.evaluation.hico import match, score_matches
from hoi.records import BranchScores, HoiLabels, PairBatch
from hoi.scoring import Scorer, extra_of, score_split
from hoi.vocabulary import Vocabulary

EXPONENTS = (1.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.4, 2.0, 2.8)
"""γ of (s_h · s_o)^γ, the plain product first; 2.8 is published for HICO-DET (spatially-conditioned-graphs)."""


@dataclass(frozen=True)
class Tuned:
    """The best of a grid.

    Args:
        choice: Row of the scorers that were tried.
        exponent: γ.
        quality: mAP on the tuning split, as a fraction.
        num_tried: Size of the grid.
    """

    choice: int
    exponent: float
    quality: float
    num_tried: int

    def to_dict(self, split: str) -> dict[str, Any]:
        """What a result row says of its tuning."""
        return {"tuned_on": split, "tuned_full": round(100 * self.quality, 4), "num_tried": self.num_tried}


class Tuner:
    """A labelled split on which many readings of the same pairs are compared; pairs are matched to the truth once.

    Args:
        batches: Gives the split's batches anew, in the same order each time.
        labels: Of the split.
        vocabulary: Whose interactions.
        device: Where scorers compute.
    """

    def __init__(
        self,
        batches: Callable[[Sequence[str]], Iterable[PairBatch]],
        labels: HoiLabels,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> None:
        self.batches, self.vocabulary, self.device = batches, vocabulary, device
        detected = score_split(_DetectionScore(), batches(()), vocabulary, 1.0, device)["detection"]
        self._detection_score = detected.score
        self._matches = match(detected, labels, len(vocabulary), protocol="official")

    def tune(self, scorers: Iterable[Scorer], name: str) -> Tuned:
        """Scorers × exponents to the pair with the best mAP; among equals the first tried, so the plainest.

        Args:
            scorers: The settings to choose from.
            name: Which of their rows is judged.
        """
        tried: list[Tuned] = []
        unmarked = np.zeros(len(self.vocabulary), bool)
        for choice, scorer in enumerate(scorers):
            plain = score_split(scorer, self.batches(extra_of(scorer)), self.vocabulary, 0.0, self.device)[name].score
            for exponent in EXPONENTS:
                score = plain * self._detection_score**exponent
                result = score_matches(self._matches, score, unmarked, unmarked)
                tried.append(Tuned(choice, exponent, result.full or 0.0, 0))
        best = max(tried, key=lambda found: found.quality)
        return Tuned(best.choice, best.exponent, best.quality, len(tried))


class _DetectionScore:
    """1 for every pair, so that the triplets' scores are s_h · s_o alone."""

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        shape = (batch.num_pairs, batch.image_similarity.shape[1])
        return {"detection": torch.ones(shape, device=batch.scores_h.device)}
