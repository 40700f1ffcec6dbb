"""Layers and losses shared by the students: ragged rows, attention, spatial code, how scores are read and compared.

Shapes: B images, P pairs, K interactions, R rows of anything, N rows of the image with most, W any width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add, mul
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NUM_TERMS = 36
LOG_FLOOR = 1e-3
"""Added before the logarithm. The source adds 1e-10, which turns each of the many exact zeros into −23."""
NOT_ADMITTED = -1e4
"""Logit of an interaction that the pair's object does not admit; finite, so that no gradient becomes NaN."""


@dataclass(frozen=True)
class RaggedIndex:
    """Position of flat rows in a padded table with one line per image."""

    image: Int64[Tensor, " R"]  # ascending
    slot: Int64[Tensor, " R"]  # the row's place in its image
    num_images: int  # B
    length: int  # N, at least 1

    @classmethod
    def of(cls, image: Int64[Tensor, " R"], num_images: int) -> RaggedIndex:
        """Index rows by their image, which must be ascending."""
        counts = torch.bincount(image, minlength=num_images)
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(image), device=image.device) - first[image]
        return cls(image, slot, num_images, max(1, int(counts.max())) if len(counts) else 1)

    def pad(self, rows: Tensor) -> Tensor:
        """Return [R, ...] as [B, N, ...], zeros behind the last row of each image."""
        table = rows.new_zeros(self.num_images, self.length, *rows.shape[1:])
        return table.index_put((self.image, self.slot), rows)

    def flat(self, table: Tensor) -> Tensor:
        """Return [B, N, ...] as [R, ...]; undoes `pad`."""
        return table[self.image, self.slot]

    @property
    def mask(self) -> Bool[Tensor, "B N"]:
        """Which places hold a row."""
        mask = torch.zeros(self.num_images, self.length, dtype=torch.bool, device=self.image.device)
        mask[self.image, self.slot] = True
        return mask

    def couples(self) -> tuple[Int64[Tensor, " C"], Int64[Tensor, " C"]]:
        """Return all ordered couples of rows of one image, each row with itself among them, as indices of flat rows."""
        mask = self.mask
        row_at = torch.full(mask.shape, -1, device=mask.device)
        row_at[self.image, self.slot] = torch.arange(len(self.image), device=mask.device)
        image, one, other = (mask[:, :, None] & mask[:, None]).nonzero(as_tuple=True)
        return row_at[image, one], row_at[image, other]


def attend(
    query: Float[Tensor, "B N W"],
    key: Float[Tensor, "B M W"],
    value: Float[Tensor, "B M W"],
    heads: int,
    mask: Tensor | None,
    dropout: float,
) -> Float[Tensor, "B N W"]:
    """Return multi-head attention of projected queries over projected keys and values; `mask` as torch's attn_mask."""
    query, key, value = (table.unflatten(2, (heads, -1)).transpose(1, 2) for table in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def sines(angles: Float[Tensor, "R C V"], width: int) -> Float[Tensor, "R W"]:
    """Return the sines, then the cosines, of each coordinate's V angles, coordinate by coordinate; zeros fill the rest.

    Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020.
    """
    waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    return F.pad(waves, (0, width - waves.shape[1]))


def spatial_code(
    boxes_h: Float[Tensor, "P 4"], boxes_o: Float[Tensor, "P 4"], size_hw: Float[Tensor, "P 2"]
) -> Float[Tensor, "P 36"]:
    """Return 18 terms that say how two boxes (pixel-edge xyxy, at least one pixel a side) lie, and their logarithms.

    The terms: both centres (x, y), both sizes (w, h) and both areas as shares of the image, area ratio object over
    human, both aspect ratios w/h, IoU, and the object's centre offset over the human's size: right, left, down, up.

    Source: fredzzhang/spatially-conditioned-graphs, `ops.py`, `compute_spatial_encodings`; the floors differ.
    """
    image_wh = size_hw.flip(-1)
    centre_h, centre_o = (boxes_h[:, :2] + boxes_h[:, 2:]) / 2, (boxes_o[:, :2] + boxes_o[:, 2:]) / 2
    wh_h, wh_o = (boxes_h[:, 2:] - boxes_h[:, :2]).clamp(min=1), (boxes_o[:, 2:] - boxes_o[:, :2]).clamp(min=1)
    area_h, area_o, area_image = wh_h.prod(-1), wh_o.prod(-1), image_wh.prod(-1)
    overlap_wh = torch.minimum(boxes_h[:, 2:], boxes_o[:, 2:]) - torch.maximum(boxes_h[:, :2], boxes_o[:, :2])
    overlap = overlap_wh.clamp(min=0).prod(-1)
    right, down = ((centre_o - centre_h) / wh_h).unbind(-1)
    ratios = [
        area_h / area_image,
        area_o / area_image,
        area_o / area_h,
        wh_h[:, 0] / wh_h[:, 1],
        wh_o[:, 0] / wh_o[:, 1],
        overlap / (area_h + area_o - overlap),
        *(offset.clamp(min=0) for offset in (right, -right, down, -down)),
    ]
    shares = [centre_h / image_wh, centre_o / image_wh, wh_h / image_wh, wh_o / image_wh]
    terms = torch.cat([*shares, torch.stack(ratios, -1)], -1)
    return torch.cat([terms, (terms + LOG_FLOOR).log()], -1)


Aggregation = Literal["max", "logsumexp", "softmax_mean", "noisy_or"]
MIN_PROBABILITY = 1e-30
"""Least score of a noisy or; below it there is no gradient."""


@dataclass(frozen=True)
class ScoreForm:
    """How logits over K interactions become scores in [0, 1]; teacher and student are read alike."""

    kind: Literal["softmax", "sigmoid"]  # over all K (CLIP), or of each alone (SigLIP, and supervision by labels)
    temperature: float  # divides the logits first

    def scores(self, logits: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
        tempered = logits / self.temperature
        return tempered.softmax(-1) if self.kind == "softmax" else tempered.sigmoid()

    def divergence(self, targets: Float[Tensor, "R K"], logits: Float[Tensor, "R K"]) -> Float[Tensor, " R"]:
        """Return each row's KL(targets ‖ scores of the logits) in nats: K-way, or the sum of K two-way divergences."""
        tempered = logits / self.temperature
        if self.kind == "softmax":
            return (torch.xlogy(targets, targets) - targets * tempered.log_softmax(-1)).sum(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(tempered, targets, reduction="none")
        negative_entropy = torch.xlogy(targets, targets) + torch.xlogy(1 - targets, 1 - targets)
        return (cross_entropy + negative_entropy).sum(-1)

    def aggregate(
        self, logits: Float[Tensor, "P K"], pair_image: Int64[Tensor, " P"], num_images: int, how: Aggregation
    ) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
        """Return the images' logits, and which images have pairs; see `aggregate` and `noisy_or`."""
        if how == "noisy_or":
            probability, has_pairs = noisy_or(self.scores(logits), pair_image, num_images)
            aggregated = probability.log() if self.kind == "softmax" else probability.logit()
        else:
            aggregated, has_pairs = aggregate(logits / self.temperature, pair_image, num_images, how)
        return aggregated * self.temperature, has_pairs


def mean_over_images(
    values: Float[Tensor, " P"], pair_image: Int64[Tensor, " P"], num_images: int
) -> Float[Tensor, ""]:
    """Return the mean over all images of each image's mean over its pairs; an image without pairs adds 0."""
    pairs_of = torch.bincount(pair_image, minlength=num_images).clamp(min=1)
    return (values / pairs_of[pair_image]).sum() / num_images


def aggregate(
    logits: Float[Tensor, "P K"],
    pair_image: Int64[Tensor, " P"],
    num_images: int,
    how: Literal["max", "logsumexp", "softmax_mean"],
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """Reduce pair logits to image logits, 0 where there is no pair, and say which images have pairs.

    `softmax_mean` is the mean weighted by softmax over the image's pairs. A single pair passes unchanged.
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
    scores: Float[Tensor, "P K"], pair_image: Int64[Tensor, " P"], num_images: int
) -> tuple[Float[Tensor, "B K"], Bool[Tensor, " B"]]:
    """Return 1 − Π(1 − score) over each image's pairs, and which images have pairs.

    The ends of [0, 1] are left out, so that logarithms and gradients are finite.
    """
    eps = torch.finfo(scores.dtype).eps
    log_missed = torch.log1p(-scores.clamp(max=1 - eps))
    missed = scores.new_zeros(num_images, scores.shape[1]).index_add(0, pair_image, log_missed)
    has_pairs = torch.bincount(pair_image, minlength=num_images) > 0
    return (-torch.expm1(missed)).clamp(min=MIN_PROBABILITY, max=1 - eps), has_pairs


def fuse(branches: Iterable[tuple[Tensor, float]], how: Literal["product", "sum"]) -> Tensor:
    """Return the branches' scores [P, K] combined by their weights: Π s^w, or Σ w · s / Σ w; one must be above 0."""
    counted = [(scores, weight) for scores, weight in branches if weight > 0]
    if how == "sum":
        return reduce(add, (scores * weight for scores, weight in counted)) / sum(weight for _, weight in counted)
    return reduce(mul, (scores if weight == 1 else scores**weight for scores, weight in counted))


def soft_focal(
    logits: Float[Tensor, "R K"],
    targets: Float[Tensor, "R K"],
    counted: Bool[Tensor, "R K"],
    focus: float,
    weight: Tensor | float = 1.0,
) -> Float[Tensor, "R K"]:
    """Return weight · |target − σ(logit)|^focus · cross-entropy, elementwise, and 0 where not counted.

    Source: Lin et al., ICCV 2017, for labels; Li et al., Generalized Focal Loss, NeurIPS 2020, eq. 5, between.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # A power at a distance of 0 has no finite gradient for exponents below 1.
    distance = (targets - logits.sigmoid()).abs().clamp(min=torch.finfo(logits.dtype).eps)
    return torch.where(counted, weight * distance**focus * cross_entropy, 0.0)


def focal_loss(
    logits: Float[Tensor, "R K"],
    targets: Tensor,
    counted: Bool[Tensor, "R K"],
    focus: float,
    alpha: float | None = None,
) -> Float[Tensor, ""]:
    """Return the focal loss summed over what is counted, divided by the sum of its targets (at least 1).

    Positives weigh `alpha`, negatives 1 − alpha; None weighs all by 1.
    """
    targets = targets.to(logits.dtype)
    weight = 1.0 if alpha is None else alpha * targets + (1 - alpha) * (1 - targets)
    loss = soft_focal(logits, targets, counted, focus, weight).sum()
    return loss / torch.where(counted, targets, 0.0).sum().clamp(min=1)
