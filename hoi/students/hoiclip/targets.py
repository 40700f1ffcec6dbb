"""What HOICLIP learns: prototypes of verbs, and soft targets made from the teacher's scores without any label.

Shapes: P pairs, K interactions, V verbs, O object classes, D the joint width, R scores of any pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hoi.records import PairBatch, TextBank
from hoi.scoring import gated
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.layers import ScoreForm
from hoi.vocabulary import Vocabulary

WEIGHT_STEPS = 1024.0  # weights are rounded to 1 / this, so that sums do not depend on the order of the batches


@dataclass
class RegionSums:
    """Sums over pairs of union features by interaction [K, D], and of object features by class [O, D]; float64."""

    union: Tensor
    object: Tensor

    @classmethod
    def empty(cls, vocabulary: Vocabulary, width: int) -> RegionSums:
        shape = torch.zeros(len(vocabulary), width, dtype=torch.float64)
        return cls(shape, torch.zeros(len(vocabulary.objects), width, dtype=torch.float64))

    def add(
        self,
        weights: Float[Tensor, "P K"],
        union: Float[Tensor, "P D"],
        obj: Float[Tensor, "P D"],
        labels_o: Int64[Tensor, " P"],
    ) -> None:
        """Add pairs; the weights, in [0, 1], say how much a pair does each interaction."""
        steps = (weights.double() * WEIGHT_STEPS).round() / WEIGHT_STEPS
        self.union += steps.T @ union.double()
        most = steps.max(1, keepdim=True).values
        self.object.index_add_(0, labels_o, most * obj.double())


def verb_prototypes(
    sums: RegionSums, texts: Float[Tensor, "K D"], vocabulary: Vocabulary
) -> tuple[Float[Tensor, "V D"], np.ndarray]:
    """Return one unit vector per verb, and which verbs were seen, bool [V].

    A verb gets the mean of d_k = norm(union of k) − norm(object of k) over its interactions that were seen. One that
    was never seen gets the same arithmetic over (unit) texts: that of k minus the mean text of k's object.
    """
    object_of, verb_of = torch.as_tensor(vocabulary.object_of), torch.from_numpy(vocabulary.verb_of)
    num_verbs = len(vocabulary.verbs)
    was_seen = sums.union.any(1)
    visual = F.normalize(sums.union, dim=-1) - F.normalize(sums.object, dim=-1)[object_of]
    of_verbs = _sum_by(verb_of[was_seen], visual[was_seen], num_verbs)
    seen_verbs = torch.bincount(verb_of[was_seen], minlength=num_verbs) > 0
    of_objects = F.normalize(_sum_by(object_of, texts.double(), len(vocabulary.objects)), dim=-1)
    by_text = _sum_by(verb_of, texts.double() - of_objects[object_of], num_verbs)
    prototypes = torch.where(seen_verbs[:, None], of_verbs, by_text)
    return F.normalize(prototypes, dim=-1).float(), seen_verbs.numpy()


def _sum_by(group: Tensor, rows: Tensor, num_groups: int) -> Tensor:
    return rows.new_zeros(num_groups, rows.shape[1]).index_add(0, group, rows)


@dataclass(frozen=True)
class PairTargets:
    """Makes a batch's targets from its cached similarities, as the settings' `targets` say."""

    config: HoiclipConfig
    bank: TextBank

    def raw(
        self, batch: PairBatch, admitted: Bool[Tensor, "P K"], is_real: Bool[Tensor, "P K"]
    ) -> Float[Tensor, "P K"]:
        """Return union scores, gated by the image's and by their rivals'; 0 where not admitted."""
        settings, scores = self.config.targets, self.of_unions(batch)
        if settings.image_exponent > 0:
            image = self._scores(batch.image_similarity.float())
            # Over the image's own best, so that an image of many interactions is not punished for them.
            share = image / image.max(1, keepdim=True).values
            scores = scores * share[batch.pair_image] ** settings.image_exponent
        scores = scores * admitted
        if settings.gate_exponent > 0:
            scores = gated(scores, is_real, batch.rows_h, batch.rows_o, settings.gate_exponent)
        return scores

    def of_unions(self, batch: PairBatch) -> Float[Tensor, "P K"]:
        """Return the frozen teacher's scores of the union crops; unmasked."""
        union = batch.union_similarity.float()
        return self._scores(union.mean(1) if self.config.targets.views == "all" else union[:, 0])

    def _scores(self, similarity: Tensor) -> Tensor:
        bank = self.bank
        form = ScoreForm("softmax" if bank.logit_bias is None else "sigmoid", self.config.targets.temperature)
        return form.scores(bank.logit_scale * similarity + (bank.logit_bias or 0.0))


@dataclass
class ClassScales:
    """Divisors of each class's targets with which its top training pairs reach 1."""

    share: float  # of the pairs that admit the class; these are the top pairs
    least: int  # number of them
    classes: list[Int64[Tensor, " R"]] = field(default_factory=list)
    scores: list[Float[Tensor, " R"]] = field(default_factory=list)

    def add(self, raw: Float[Tensor, "P K"], admitted: Bool[Tensor, "P K"]) -> None:
        pair, interaction = admitted.nonzero(as_tuple=True)
        self.classes.append(interaction.cpu())
        self.scores.append(raw[pair, interaction].cpu())

    def scales(self, num_classes: int) -> Float[Tensor, " K"]:
        """Return each class's score at its last top pair; 1 where no pair admits it, or none has a score."""
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
