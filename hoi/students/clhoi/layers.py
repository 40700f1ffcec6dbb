"""Where things lie, as the student `clhoi` tells its tokens: cells of the map, unions of pairs, pairs to one another.

Letters: P pairs, R pairs of pairs, E what is said of each, H rows and V columns of the map, T = H · V its cells row by
row, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hoi.students.layers import NUM_TERMS, spatial_code

NO_ATTENTION = -1e4
"""Bias where a token must not look; finite, so that a row without any other place gives no NaN."""
FEED_FORWARD = 2
"""Hidden width of the feed-forward layers, in widths."""


class Attention(nn.Module):
    """Query tokens to what they take from a memory; both are normalised first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.norm_memory = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "B Q W"],
        memory: Float[Tensor, "B T W"],
        bias: Float[Tensor, "B A Q T"] | None = None,
    ) -> Float[Tensor, "B Q W"]:
        """Tokens and memory to a correction of the tokens.

        Args:
            bias: Added before the softmax over the memory.
        """
        query = self._split(self.query(self.norm(tokens)))
        key, value = map(self._split, self.key_value(self.norm_memory(memory)).chunk(2, -1))
        mask = None if bias is None else bias.to(query.dtype)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Tokens to a correction of each alone."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, FEED_FORWARD * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(FEED_FORWARD * width, width),
            nn.Dropout(dropout),
        )


NUM_RELATIONS = 2 * NUM_TERMS + 4
"""Numbers that say how two pairs lie to each other."""


def sine_positions(rows: int, columns: int, width: int, device: torch.device) -> Float[Tensor, "T W"]:
    """Cells of a map to sines and cosines of their row and column, at falling frequencies.

    Args:
        rows, columns: H and V.
        width: A multiple of 4: a quarter each for the sines and the cosines of rows and of columns.

    Source: Carion et al., DETR (ECCV 2020), with the centres of cells as shares of the map.
    """
    frequency = 1e4 ** -(torch.arange(width // 4, device=device) / (width // 4))

    def waves(cells: int) -> Tensor:
        angles = 2 * math.pi * (torch.arange(cells, device=device) + 0.5)[:, None] / cells * frequency
        return torch.cat([angles.sin(), angles.cos()], 1)

    by_row, by_column = waves(rows)[:, None].expand(-1, columns, -1), waves(columns)[None].expand(rows, -1, -1)
    return torch.cat([by_row, by_column], 2).flatten(0, 1)


def union_cover(
    boxes_h: Float[Tensor, "P 4"],
    boxes_o: Float[Tensor, "P 4"],
    size_hw: Float[Tensor, "P 2"],
    rows: int,
    columns: int,
) -> Float[Tensor, "P T"]:
    """The share of each cell of the map, row by row, that lies in a pair's union box.

    The map is that of the image centred on the smallest square that holds it, as the cache embeds it.

    Args:
        boxes_h, boxes_o: Pixels.
        size_hw: Of each pair's image.
        rows, columns: H and V.
    """
    side = size_hw.max(1, keepdim=True).values
    shift = (side - size_hw.flip(1)) / 2
    low = (torch.minimum(boxes_h[:, :2], boxes_o[:, :2]) + shift) / side
    high = (torch.maximum(boxes_h[:, 2:], boxes_o[:, 2:]) + shift) / side

    def cover(axis: int, cells: int) -> Tensor:
        edges = torch.arange(cells, device=low.device)
        inside = torch.minimum(high[:, axis, None] * cells, edges + 1) - torch.maximum(
            low[:, axis, None] * cells, edges
        )
        return inside.clamp(0, 1)

    return (cover(1, rows)[:, :, None] * cover(0, columns)[:, None]).flatten(1)


def pair_relations(
    boxes_h: Float[Tensor, "P 4"],
    boxes_o: Float[Tensor, "P 4"],
    rows_h: Int64[Tensor, " P"],
    rows_o: Int64[Tensor, " P"],
    size_hw: Float[Tensor, "P 2"],
    first: Int64[Tensor, " R"],
    second: Int64[Tensor, " R"],
) -> Float[Tensor, "R E"]:
    """Pairs of pairs to how their humans lie to each other, how their objects do, and whom they share.

    Args:
        boxes_h, boxes_o, size_hw: Pixels.
        rows_h, rows_o: Equal rows are the same human or object.
        first, second: The two pairs.
    """
    shared = [
        (rows_h[first] == rows_h[second]),
        (rows_o[first] == rows_o[second]),
        (rows_h[first] == rows_o[second]),
        (rows_o[first] == rows_h[second]),
    ]
    humans = spatial_code(boxes_h[first], boxes_h[second], size_hw[first])
    objects = spatial_code(boxes_o[first], boxes_o[second], size_hw[first])
    return torch.cat([humans, objects, torch.stack(shared, 1).to(humans.dtype)], 1)
