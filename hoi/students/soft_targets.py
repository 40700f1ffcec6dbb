"""The teacher's scores of pairs to targets of sigmoids: masked, gated, and rescaled class by class. No label is read.

Letters: P pairs, K interactions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hoi.config import HoiclipConfig
from hoi.gating import gated
from hoi.losses import ScoreForm
from hoi.records import PairBatch, TextBank


@dataclass(frozen=True)
class PairTargets:
    """How a batch's cached similarities become what its pairs ought to score.

    Args:
        config: The `target_` keys are read.
        bank: The teacher's scale and bias.
    """

    config: HoiclipConfig
    bank: TextBank

    def raw(
        self, batch: PairBatch, admitted: Bool[Tensor, "P K"], is_real: Bool[Tensor, "P K"]
    ) -> Float[Tensor, "P K"]:
        """Union scores, gated by the image's and by their rivals', before rescaling; 0 where not admitted.

        Args:
            batch: Of the pairs.
            admitted: What each pair's object admits.
            is_real: The same without `no_interaction`.
        """
        config, scores = self.config, self.of_unions(batch)
        if config.target_image_exponent > 0:
            image = self._scores(batch.image_similarity.float())
            # Over the image's own best, so that an image of many interactions is not punished for them.
            share = image / image.max(1, keepdim=True).values
            scores = scores * share[batch.pair_image] ** config.target_image_exponent
        scores = scores * admitted
        if config.target_gate_exponent > 0:
            scores = gated(scores, is_real, batch.rows_h, batch.rows_o, config.target_gate_exponent)
        return scores

    def of_unions(self, batch: PairBatch) -> Float[Tensor, "P K"]:
        """What the frozen teacher says of the union crops; unmasked."""
        union = batch.union_similarity.float()
        return self._scores(union.mean(1) if self.config.target_views == "all" else union[:, 0])

    def _scores(self, similarity: Tensor) -> Tensor:
        bank = self.bank
        form = ScoreForm("softmax" if bank.logit_bias is None else "sigmoid", self.config.target_temperature)
        return form.scores(bank.logit_scale * similarity + (bank.logit_bias or 0.0))


@dataclass
class ClassScales:
    """What each class's targets are divided by, so that its top training pairs reach 1.

    Args:
        share: Of the pairs that admit the class.
        least: Number of such pairs.
    """

    share: float
    least: int
    classes: list[Int64[Tensor, " R"]] = field(default_factory=list)
    scores: list[Float[Tensor, " R"]] = field(default_factory=list)

    def add(self, raw: Float[Tensor, "P K"], admitted: Bool[Tensor, "P K"]) -> None:
        """Takes pairs in."""
        pair, interaction = admitted.nonzero(as_tuple=True)
        self.classes.append(interaction.cpu())
        self.scores.append(raw[pair, interaction].cpu())

    def scales(self, num_classes: int) -> Float[Tensor, " K"]:
        """Each class's score at its last top pair; 1 where no pair admits it, or none has a score."""
        scales = torch.ones(num_classes)
        if not self.classes or self.share == 0:
            return scales
        classes, scores = torch.cat(self.classes), torch.cat(self.scores)
        order = torch.argsort(classes, stable=True)
        counts = torch.bincount(classes, minlength=num_classes).tolist()
        for k, of_class in enumerate(scores[order].split(counts)):
            top = min(max(self.least, math.ceil(self.share * len(of_class))), len(of_class))
            if top:
                last = of_class.topk(top).values[-1]
                scales[k] = last if last > 0 else 1.0
        return scales
