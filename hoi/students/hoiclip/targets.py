"""The teacher's scores of pairs to targets of sigmoids: masked, gated, and rescaled class by class. No label is read.

Letters: P pairs, K interactions.
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
from hoi.students.losses import ScoreForm
from hoi.vocabulary import Vocabulary

WEIGHT_STEPS = 1024.0


@dataclass
class RegionSums:
    """Features of unions by interaction and of objects by class, summed over pairs.

    Args:
        union: float64 [K, D].
        object: float64 [O, D].
    """

    union: Tensor
    object: Tensor

    @classmethod
    def empty(cls, vocabulary: Vocabulary, width: int) -> RegionSums:
        """Nothing seen yet."""
        shape = torch.zeros(len(vocabulary), width, dtype=torch.float64)
        return cls(shape, torch.zeros(len(vocabulary.objects), width, dtype=torch.float64))

    def add(
        self,
        weights: Float[Tensor, "P K"],
        union: Float[Tensor, "P D"],
        thing: Float[Tensor, "P D"],
        labels_o: Int64[Tensor, " P"],
    ) -> None:
        """Takes pairs in: every interaction that a pair does counts, and every pair that does one.

        Args:
            weights: In [0, 1], 0 for what a pair does not do.
            union: Of the pair's union region.
            thing: Of its object's region.
            labels_o: Of its object.
        """
        steps = (weights.double() * WEIGHT_STEPS).round() / WEIGHT_STEPS
        self.union += steps.T @ union.double()
        most = steps.max(1, keepdim=True).values
        self.object.index_add_(0, labels_o, most * thing.double())


def verb_prototypes(
    sums: RegionSums, texts: Float[Tensor, "K D"], vocabulary: Vocabulary
) -> tuple[Float[Tensor, "V D"], np.ndarray]:
    """Sums to one unit vector a verb, and which verbs were seen, bool [V].

    A verb takes the mean of d_k = norm(union of k) − norm(object of k) over its interactions that were seen. One that
    was never seen takes the same arithmetic over texts: that of k less the mean text of k's object.

    Args:
        sums: Of the training pairs.
        texts: Unit norm.
        vocabulary: Whose rows these are.
    """
    object_of, verb_of = torch.from_numpy(vocabulary.object_of), torch.from_numpy(vocabulary.verb_of)
    num_verbs = len(vocabulary.verbs)
    was_seen = sums.union.any(1)
    visual = F.normalize(sums.union, dim=-1) - F.normalize(sums.object, dim=-1)[object_of]
    of_verbs = _sum_by(verb_of[was_seen], visual[was_seen], num_verbs)
    seen_verbs = torch.bincount(verb_of[was_seen], minlength=num_verbs) > 0
    of_objects = F.normalize(_sum_by(object_of, texts.double(), len(vocabulary.objects)), dim=-1)
    by_text = _sum_by(verb_of, texts.double() - of_objects[object_of], num_verbs)
    found = torch.where(seen_verbs[:, None], of_verbs, by_text)
    return F.normalize(found, dim=-1).float(), seen_verbs.numpy()


def _sum_by(group: Tensor, rows: Tensor, num_groups: int) -> Tensor:
    return rows.new_zeros(num_groups, rows.shape[1]).index_add(0, group, rows)


@dataclass(frozen=True)
class PairTargets:
    """How a batch's cached similarities become what its pairs ought to score.

    Args:
        config: `targets` is read.
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
        if config.targets.image_exponent > 0:
            image = self._scores(batch.image_similarity.float())
            # Over the image's own best, so that an image of many interactions is not punished for them.
            share = image / image.max(1, keepdim=True).values
            scores = scores * share[batch.pair_image] ** config.targets.image_exponent
        scores = scores * admitted
        if config.targets.gate_exponent > 0:
            scores = gated(scores, is_real, batch.rows_h, batch.rows_o, config.targets.gate_exponent)
        return scores

    def of_unions(self, batch: PairBatch) -> Float[Tensor, "P K"]:
        """What the frozen teacher says of the union crops; unmasked."""
        union = batch.union_similarity.float()
        return self._scores(union.mean(1) if self.config.targets.views == "all" else union[:, 0])

    def _scores(self, similarity: Tensor) -> Tensor:
        bank = self.bank
        form = ScoreForm("softmax" if bank.logit_bias is None else "sigmoid", self.config.targets.temperature)
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
