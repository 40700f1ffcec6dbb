"""Images to what a CoCa's decoder looks at, whichever image tower it has.

open_clip's ViTs give their tokens themselves. Of its ResNets only the pooled embedding comes out, though the attention
pool makes a token of every cell: these are taken here, so that a captioner may start from a CLIP of that kind.

Letters: B images, L tokens, D joint width, W width of the tokens, S side in pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn import functional


def image_states(tower: Any, views: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B L W"]]:
    """Normalised images to the contrastive embedding, not normalised, and the tokens.

    Args:
        tower: Image tower of a CoCa.
        views: Of any size if the tower is a ResNet; the positions of its pool are interpolated.
    """
    if not isinstance(tower, ModifiedResNet):
        embedding, tokens = tower(views)
        return embedding, tokens
    cells = tower.stem(views)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        cells = layer(cells)
    pool = tower.attnpool
    x = cells.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + resized_positions(pool.positional_embedding, cells.shape[-1])
    query, key, value = (
        projection(x).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for projection in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    tokens = pool.c_proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    return tokens[:, 0], tokens


def resized_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [1 + old², C] to [1 + side², C]; the first, of the pooled token, stays."""
    old = math.isqrt(len(positions) - 1)
    if old == side:
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old)
    sized = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], sized.flatten(2)[0].T])
