"""Layers of the students: corrections of frozen features, encoders of pairs, and what boxes alone say.

Letters: B images, P pairs, R rows of anything, K interactions, O object classes, D the joint width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add, mul
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NUM_TERMS = 36
LOG_FLOOR = 1e-3
"""Added before the logarithm. The source adds 1e-10, which turns each of the many exact zeros into −23."""


def spatial_code(
    boxes_h: Float[Tensor, "P 4"], boxes_o: Float[Tensor, "P 4"], size_hw: Float[Tensor, "P 2"]
) -> Float[Tensor, "P 36"]:
    """Human and object boxes to 18 relative terms and their logarithms.

    The terms: both centres (x, y), both sizes (w, h) and both areas as shares of the image, area ratio object over
    human, both aspect ratios w/h, IoU, and the object's centre offset over the human's size: right, left, down, up.

    Args:
        boxes_h, boxes_o: Pixel-edge xyxy. A side below one pixel counts as one.
        size_hw: Image of each pair, pixels.

    Source: fredzzhang/spatially-conditioned-graphs, `ops.py`, `compute_spatial_encodings`; the floors differ.
    """
    image_wh = size_hw.flip(-1)
    centre_h, centre_o = (boxes_h[:, :2] + boxes_h[:, 2:]) / 2, (boxes_o[:, :2] + boxes_o[:, 2:]) / 2
    wh_h, wh_o = (boxes_h[:, 2:] - boxes_h[:, :2]).clamp(min=1), (boxes_o[:, 2:] - boxes_o[:, :2]).clamp(min=1)
    area_h, area_o, area_image = wh_h.prod(-1), wh_o.prod(-1), image_wh.prod(-1)
    overlap_wh = torch.minimum(boxes_h[:, 2:], boxes_o[:, 2:]) - torch.maximum(boxes_h[:, :2], boxes_o[:, :2])
    overlap = overlap_wh.clamp(min=0).prod(-1)
    offset = (centre_o - centre_h) / wh_h
    ratios = [
        area_h / area_image,
        area_o / area_image,
        area_o / area_h,
        wh_h[:, 0] / wh_h[:, 1],
        wh_o[:, 0] / wh_o[:, 1],
        overlap / (area_h + area_o - overlap),
        offset[:, 0].clamp(min=0),
        (-offset[:, 0]).clamp(min=0),
        offset[:, 1].clamp(min=0),
        (-offset[:, 1]).clamp(min=0),
    ]
    shares = [centre_h / image_wh, centre_o / image_wh, wh_h / image_wh, wh_o / image_wh]
    terms = torch.cat([*shares, torch.stack(ratios, -1)], -1)
    return torch.cat([terms, (terms + LOG_FLOOR).log()], -1)


BRANCHES = ("global", "union", "human_object")
NOT_ADMITTED = -1e4
"""Logit of an interaction that the pair's object does not admit."""


@dataclass(frozen=True)
class BranchLogits:
    """What each branch says, before softmax or sigmoid.

    Args:
        image: [B, K], the global branch.
        human_object: [P, K].
        union: [P, K]; None where the union's features are the human-object branch's.
        spatial: [P, K + 1], the last for no interaction; None without that branch.
        relatedness: [P]; None without that head.
    """

    image: Float[Tensor, "B K"]
    human_object: Float[Tensor, "P K"]
    union: Float[Tensor, "P K"] | None
    spatial: Float[Tensor, "P K1"] | None = None
    relatedness: Float[Tensor, " P"] | None = None


class Adapter(nn.Module):
    """[R, D_in] features to a correction [R, D] that is zero before the first step."""

    def __init__(self, width_in: int, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout))
        self.last = nn.Linear(width, width_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.layers(features)).float()


class PairEncoder(nn.Module):
    """Human and object features and their spatial code to one unit vector [P, D] that asks the knowledge bank."""

    def __init__(self, width_in: int, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(width_in)
        self.norm_spatial = nn.LayerNorm(NUM_TERMS)
        self.layers = nn.Sequential(
            nn.Linear(width_in + NUM_TERMS, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width_out),
        )

    def forward(self, features: Tensor, spatial: Tensor) -> Tensor:
        inputs = torch.cat([self.norm_features(features), self.norm_spatial(spatial)], -1)
        return F.normalize(self.layers(inputs).float(), dim=-1)


class SigmoidOffsets(nn.Module):
    """What sigmoids need and softmax does not: each branch's zero point.

    Cosines to interaction texts share a large common part, so a logit is taken against a learned reference text, which
    starts as the mean of the bank, plus a bias, which starts at odds of 1 to K.
    """

    def __init__(self, text_embedding: Tensor) -> None:
        super().__init__()
        self.reference = nn.ParameterDict({name: nn.Parameter(text_embedding.mean(0)) for name in BRANCHES})
        self.bias = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(-math.log(len(text_embedding)))) for name in BRANCHES}
        )


class SpatialBranch(nn.Module):
    """Boxes and object class of a pair, and no pixel, to logits over the interactions its object admits, or none.

    Args:
        admitted: bool [O, K], which interactions an object class admits.
        width: Of the two hidden layers.
        dropout: In them.
    """

    admitted: Tensor

    def __init__(self, admitted: Tensor, width: int, dropout: float) -> None:
        super().__init__()
        num_objects, num_interactions = admitted.shape
        with_none = torch.cat([admitted, torch.ones(num_objects, 1, dtype=torch.bool)], 1)
        self.register_buffer("admitted", with_none, persistent=False)
        self.norm = nn.LayerNorm(NUM_TERMS)
        self.layers = nn.Sequential(
            nn.Linear(NUM_TERMS + num_objects, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, num_interactions + 1),
        )

    def forward(self, spatial: Tensor, labels_o: Tensor) -> Tensor:
        """Spatial code [P, 36] and object classes [P] to logits [P, K + 1]; the last is that of no interaction."""
        classes = F.one_hot(labels_o, len(self.admitted)).to(spatial.dtype)
        logits = self.layers(torch.cat([self.norm(spatial), classes], -1)).float()
        return logits.masked_fill(~self.admitted[labels_o], NOT_ADMITTED)


class RelatednessHead(nn.Module):
    """[P, D] pair vectors to the logit [P] that the pair is one that its image is about; no gradient flows back."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width_in), nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(pairs.detach())[:, 0].float()


def fuse(branches: Iterable[tuple[Tensor, float]], how: Literal["product", "sum"]) -> Tensor:
    """Branches' scores and weights to one score: Π s^w, or Σ w · s / Σ w.

    Args:
        branches: Scores [P, K] in [0, 1] and their weight; 0 leaves a branch out, and one is left at least.
        how: `product` or `sum`.
    """
    counted = [(scores, weight) for scores, weight in branches if weight > 0]
    if how == "sum":
        return reduce(add, (scores * weight for scores, weight in counted)) / sum(weight for _, weight in counted)
    return reduce(mul, (scores if weight == 1 else scores**weight for scores, weight in counted))
