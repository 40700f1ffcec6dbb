"""Tokens that look at one another and at a memory: the layers of the student `clhoi`.

Letters: B images, Q query tokens, T memory tokens, W width, A heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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
