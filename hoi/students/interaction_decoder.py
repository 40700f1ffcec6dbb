"""The interaction decoder: queries of pairs attend to one another, then to two memories by one shared attention.

Letters: R queries over all images, S rows of a memory, W width, B images, N rows of the image with most.

Source: Ning et al., HOICLIP, CVPR 2023, section 3.2: knowledge integration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hoi.students.memory import Memory, Places


class Attention(nn.Module):
    """Multi-head attention from flat queries to flat rows, image by image."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        queries: Float[Tensor, "R W"],
        of_queries: Places,
        keys: Float[Tensor, "S W"],
        values: Float[Tensor, "S W"],
        of_rows: Places,
    ) -> Float[Tensor, "R W"]:
        """What each query takes from the rows of its own image.

        Args:
            queries, keys: With their positions.
            of_queries: Whose images the queries are.
            values: Of the rows.
            of_rows: Whose images the rows are.
        """
        tables = (of_queries.pad(self.query(queries)), of_rows.pad(self.key(keys)), of_rows.pad(self.value(values)))
        query, key, value = (table.unflatten(2, (self.heads, -1)).transpose(1, 2) for table in tables)
        mask = of_rows.mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(of_queries.flat(found.transpose(1, 2).flatten(2)))


class DualAttention(nn.Module):
    """One cross-attention, applied to every memory, each result added to the queries and normalised, then summed."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, queries: Tensor, positions: Tensor, places: Places, memories: Sequence[Memory]) -> Tensor:
        """Queries [R, W] and their positions to the sum over the memories."""
        first, *others = (
            self.norm(
                queries
                + self.dropout(
                    self.attention(queries + positions, places, at.tokens + at.positions, at.tokens, at.places)
                )
            )
            for at in memories
        )
        return sum(others, first)


class DecoderLayer(nn.Module):
    """Self-attention, dual attention and a feed-forward network, each normalised after it is added."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.among_queries = Attention(width, heads, dropout)
        self.norm_first, self.norm_last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_memories = DualAttention(width, heads, dropout)
        self.network = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, positions: Tensor, places: Places, memories: Sequence[Memory]) -> Tensor:
        """Queries [R, W] of pairs to the same, having looked around."""
        placed = queries + positions
        found = self.among_queries(placed, places, placed, queries, places)
        queries = self.norm_first(queries + self.dropout(found))
        queries = self.to_memories(queries, positions, places, memories)
        return self.norm_last(queries + self.dropout(self.network(queries)))


class InteractionDecoder(nn.Module):
    """Layer after layer; all their results are wanted, as each is taught."""

    def __init__(self, layers: int, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward, dropout) for _ in range(layers))

    def forward(
        self, queries: Tensor, positions: Tensor, places: Places, memories: Sequence[Memory]
    ) -> list[Float[Tensor, "R W"]]:
        """Queries to each layer's result, the last one last; the queries themselves where there is no layer."""
        found = [queries]
        for layer in self.layers:
            found.append(layer(found[-1], positions, places, memories))
        return found[1:] or found
