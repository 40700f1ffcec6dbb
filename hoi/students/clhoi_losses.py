"""From pairs to their image, and what the teacher's confidences in the image teach: the student `clhoi`'s losses.

Letters: B images, P pairs, Q the most pairs of an image, K interactions, D the joint width, n anchors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hoi.students.clhoi_cognition import Seats

IGNORED = -1e4
"""Logit of what takes no part in a softmax."""


def pool_pairs(
    seats: Seats,
    logits: Float[Tensor, "P K"],
    vectors: Float[Tensor, "P D"],
    log_interactive: Float[Tensor, " P"],
    admitted: Bool[Tensor, "P K"],
    temperature: float,
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K D"], Bool[Tensor, "B K"]]:
    """Cross-level pooling: a_pk = softmax_p(z_pk / temperature + log r_p), Z_k = Σ a z, G_k = Σ a g.

    Args:
        seats: Which image each pair is of.
        logits: z.
        vectors: g.
        log_interactive: log r.
        admitted: Pairs whose object admits the interaction; no other takes part.

    Returns:
        Z and G, 0 where no pair takes part, and where some does.
    """
    takes_part = seats.place(admitted)
    weights = seats.place(logits / temperature + log_interactive[:, None])
    weights = weights.masked_fill(~takes_part, IGNORED).softmax(1) * takes_part
    pooled = (weights * seats.place(logits)).sum(1)
    return pooled, torch.einsum("bqk,bqd->bkd", weights, seats.place(vectors)), takes_part.any(1)


def soft_focal(
    logits: Float[Tensor, "R K"], targets: Float[Tensor, "R K"], counted: Bool[Tensor, "R K"], focus: float
) -> Float[Tensor, " R"]:
    """Logits and confidences to the sum over counted interactions of |t − σ|^focus · cross-entropy, row by row.

    Args:
        logits: Before the sigmoid.
        targets: In [0, 1].
        counted: Where a teacher was asked.
        focus: 0 is plain cross-entropy.

    Source: Li et al., Generalized Focal Loss (NeurIPS 2020), eq. 3.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # A power of 0 at a distance of 0 has no finite gradient for exponents below 1.
    distance = (targets - logits.sigmoid()).abs().clamp(min=torch.finfo(logits.dtype).eps)
    return torch.where(counted, distance**focus * cross_entropy, 0.0).sum(1)


def interaction_contrast(
    vectors: Float[Tensor, "B K D"],
    texts: Float[Tensor, "K D"],
    positive: Bool[Tensor, "B K"],
    asked: Bool[Tensor, "B K"],
    object_of: Int64[Tensor, " K"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """InfoNCE between what an image's pairs say of the interactions that its teacher has seen, and their texts.

    An anchor is an interaction seen in an image. Its vector is told from the texts of the object's other interactions
    that were asked there and not seen, and from the texts of the batch's other anchors; its text is told from the
    vectors of the batch's other anchors. What is seen in an image as well is no negative there. Means over an image's
    anchors, then over all images.

    Args:
        vectors: G; any norm.
        texts: Unit norm.
        positive: Seen by the teacher; asked, and pooled from a pair.
        asked: Of the teacher.
        object_of: Each interaction's object.
        scale: One over the temperature.
    """
    image, seen = positive.nonzero(as_tuple=True)
    anchors = F.normalize(vectors[image, seen], dim=-1)
    own = texts[seen]
    is_same_object = object_of[seen][:, None] == object_of
    is_hard = is_same_object & asked[image] & ~positive[image]
    others = torch.eye(len(image), dtype=torch.bool, device=image.device).logical_not()
    is_seen_too = positive[image][:, seen] & others
    nearness = scale * anchors @ own.T
    hard = (scale * anchors @ texts.T).masked_fill(~is_hard, IGNORED)
    to_texts = torch.cat([nearness.masked_fill(is_seen_too, IGNORED), hard], 1).log_softmax(1)
    to_vectors = nearness.masked_fill(is_seen_too, IGNORED).log_softmax(0)
    per_anchor = -(to_texts[:, : len(image)].diagonal() + to_vectors.diagonal()) / 2
    num_anchors = positive.sum(1).clamp(min=1)
    return (per_anchor / num_anchors[image]).sum() / len(positive)
