"""Cached similarities to soft targets, logits to scores, and how far the two are apart.

Letters: B images, P pairs, K interactions, R rows of either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Aggregation = Literal["max", "logsumexp", "softmax_mean", "noisy_or"]


MIN_CHANCE = 1e-30
"""Least score of a noisy or. What lies below learns nothing from it."""


@dataclass(frozen=True)
class ScoreForm:
    """How logits over K interactions become scores in [0, 1]; teacher and student are read alike.

    Args:
        kind: `softmax` over all K (CLIP) or `sigmoid` of each alone (SigLIP, and supervision by labels).
        temperature: Divides the logits first.
    """

    kind: Literal["softmax", "sigmoid"]
    temperature: float

    def scores(self, logits: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
        """Logits to scores in [0, 1]; those of a softmax sum to 1."""
        tempered = logits / self.temperature
        return tempered.softmax(-1) if self.kind == "softmax" else tempered.sigmoid()

    def divergence(self, targets: Float[Tensor, "R K"], logits: Float[Tensor, "R K"]) -> Float[Tensor, " R"]:
        """KL(targets ‖ scores of the logits) of each row: one K-way, or the sum of K two-way distributions.

        Args:
            targets: Soft scores, as `scores` gives them.
            logits: The student's.

        Returns:
            Nats, 0 where both agree.
        """
        tempered = logits / self.temperature
        if self.kind == "softmax":
            return (torch.xlogy(targets, targets) - targets * tempered.log_softmax(-1)).sum(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(tempered, targets, reduction="none")
        negative_entropy = torch.xlogy(targets, targets) + torch.xlogy(1 - targets, 1 - targets)
        return (cross_entropy + negative_entropy).sum(-1)

    def aggregate(
        self, logits: Float[Tensor, "P K"], pair_image: Int64[Tensor, " P"], num_images: int, how: Aggregation
    ) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
        """Logits of pairs to those of their images, to be read in this form again; see `aggregate` and `noisy_or`."""
        if how == "noisy_or":
            chance, has_pairs = noisy_or(self.scores(logits), pair_image, num_images)
            aggregated = chance.log() if self.kind == "softmax" else chance.logit()
        else:
            aggregated, has_pairs = aggregate(logits / self.temperature, pair_image, num_images, how)
        return aggregated * self.temperature, has_pairs


def mean_over_images(
    values: Float[Tensor, " P"], pair_image: Int64[Tensor, " P"], num_images: int
) -> Float[Tensor, ""]:
    """Values of pairs to the mean over all images of each image's mean; an image without pairs adds 0.

    Dividing by all images keeps the loss of a batch the mean of the losses of its parts.
    """
    pairs_of = torch.bincount(pair_image, minlength=num_images).clamp(min=1)
    return (values / pairs_of[pair_image]).sum() / num_images


def aggregate(
    logits: Float[Tensor, "P K"],
    pair_image: Int64[Tensor, " P"],
    num_images: int,
    how: Literal["max", "logsumexp", "softmax_mean"],
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """Pair logits to image logits, interaction by interaction; one pair alone passes unchanged.

    Args:
        logits: Of all pairs.
        pair_image: Each pair's image, 0..B-1.
        num_images: B.
        how: `max`; `logsumexp`; or `softmax_mean`, the mean weighted by softmax over the image's pairs.

    Returns:
        Image logits, 0 where there is no pair, and which images have pairs.
    """
    shape = (num_images, logits.shape[1])
    has_pairs = torch.bincount(pair_image, minlength=num_images) > 0
    index = pair_image[:, None].expand_as(logits)
    highest = logits.new_zeros(shape).scatter_reduce(0, index, logits, "amax", include_self=False)
    if how == "max":
        return highest, has_pairs
    shift = highest.detach()
    weights = (logits - shift[pair_image]).exp()
    total = logits.new_zeros(shape).index_add(0, pair_image, weights)
    # An image without pairs has a total of 0: 1 in its place keeps log and division finite, and no gradient flows.
    total = torch.where(has_pairs[:, None], total, 1.0)
    if how == "logsumexp":
        return shift + total.log(), has_pairs
    return logits.new_zeros(shape).index_add(0, pair_image, weights / total[pair_image] * logits), has_pairs


def noisy_or(
    chance: Float[Tensor, "P K"], pair_image: Int64[Tensor, " P"], num_images: int
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """Scores of pairs to 1 − Π(1 − score) over each image's pairs: that one of them, at least, does it.

    Args:
        chance: In [0, 1].
        pair_image: Each pair's image, 0..B-1.
        num_images: B.

    Returns:
        In (0, 1), ends left out so that logarithms and gradients are finite, and which images have pairs.
    """
    eps = torch.finfo(chance.dtype).eps
    missed = chance.new_zeros(num_images, chance.shape[1]).index_add(
        0, pair_image, torch.log1p(-chance.clamp(max=1 - eps))
    )
    has_pairs = torch.bincount(pair_image, minlength=num_images) > 0
    return (-torch.expm1(missed)).clamp(min=MIN_CHANCE, max=1 - eps), has_pairs


def soft_focal_loss(
    logits: Float[Tensor, "R K"],
    targets: Float[Tensor, "R K"],
    counted: Bool[Tensor, "R K"],
    focus: float,
    alpha: float = 0.5,
) -> Float[Tensor, ""]:
    """Logits and targets in [0, 1] to focal binary cross-entropy, summed and divided by the targets' sum, at least 1.

    Args:
        logits: Before the sigmoid.
        targets: Labels or soft scores.
        counted: Where a target says anything.
        focus: Exponent on the distance to the target; 0 is plain cross-entropy.
        alpha: Weight of what is there; what is not has the rest.

    Source: Lin et al., ICCV 2017, eq. 5, for labels; Li et al., Generalized Focal Loss, NeurIPS 2020, eq. 5, between.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    distance = (targets - logits.sigmoid()).abs()
    loss = torch.where(counted, weight * distance**focus * cross_entropy, 0.0).sum()
    return loss / torch.where(counted, targets, 0.0).sum().clamp(min=1)


def focal_loss(
    logits: Float[Tensor, "R K"], positive: Bool[Tensor, "R K"], counted: Bool[Tensor, "R K"], focus: float
) -> Float[Tensor, ""]:
    """Logits and multi-hot labels to focal binary cross-entropy, summed and divided by the number of positives.

    Args:
        logits: Before the sigmoid.
        positive: The labels.
        counted: Where a label says anything, as the interactions that the pair's object admits.
        focus: Exponent on the distance to the label; 0 is plain cross-entropy.

    Source: Lin et al., ICCV 2017, eq. 4; no class weight α.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    distance = torch.where(positive, 1 - logits.sigmoid(), logits.sigmoid())
    loss = torch.where(counted, distance**focus * cross_entropy, 0.0).sum()
    return loss / (positive & counted).sum().clamp(min=1)
