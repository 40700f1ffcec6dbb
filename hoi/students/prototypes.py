"""Visual semantic arithmetic: what a verb looks like is its interactions' unions without their objects.

Sums are kept in float64 over weights in steps of 2⁻¹⁰ and features as cached (float16, unit norm), all of which float64
adds without rounding: so the order of images, shards and processes changes no bit.

Letters: P pairs, K interactions, V verbs, O object classes, D the joint width.

Source: Ning et al., HOICLIP, CVPR 2023, section 3.3; the human's feature is not subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

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
