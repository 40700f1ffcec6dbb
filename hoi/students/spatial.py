"""Two boxes of a pair to the 36 numbers that say how they lie to each other.

Letters: P pairs.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

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
