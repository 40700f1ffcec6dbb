"""The Interaction Cognition Network: pairs that look at one another, at the map, and at the context.

Letters: B images, P pairs, Q the most pairs of an image, T cells of the map, Z context tokens, W width, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hoi.records import PairBatch
from hoi.students.clhoi_attention import NO_ATTENTION, Attention, FeedForward
from hoi.students.clhoi_geometry import NUM_RELATIONS, pair_relations, union_cover

FIRST_SOFTNESS = 4.0
"""What a head's attention to a cell outside of the union box loses before the softmax, before training. [choice]"""


@dataclass(frozen=True)
class Seats:
    """Where each pair of a flat batch sits among those of its image, so that images can be computed side by side.

    Args:
        image: int64 [P].
        seat: int64 [P], 0..Q-1.
        taken: bool [B, Q].
    """

    image: Int64[Tensor, " P"]
    seat: Int64[Tensor, " P"]
    taken: Bool[Tensor, "B Q"]

    @classmethod
    def of(cls, batch: PairBatch) -> Seats:
        """The seats of a batch; one is there, empty, where no image has a pair."""
        counts = torch.bincount(batch.pair_image, minlength=batch.num_images)
        first = counts.cumsum(0) - counts
        seat = torch.arange(batch.num_pairs, device=counts.device) - first[batch.pair_image]
        most = max(1, int(counts.max())) if len(counts) else 1
        taken = torch.arange(most, device=counts.device) < counts[:, None]
        return cls(batch.pair_image, seat, taken)

    def place(self, flat: Tensor) -> Tensor:
        """[P, ...] to [B, Q, ...], zeros where no pair sits."""
        placed = flat.new_zeros(*self.taken.shape, *flat.shape[1:])
        return placed.index_put((self.image, self.seat), flat)

    def take(self, placed: Tensor) -> Tensor:
        """[B, Q, ...] to [P, ...]."""
        return placed[self.image, self.seat]

    def couples(self) -> tuple[Int64[Tensor, " R"], Int64[Tensor, " R"]]:
        """All pairs of pairs of one image, itself with itself among them, as rows of the flat batch."""
        row_at = torch.full(self.taken.shape, -1, device=self.taken.device)
        row_at[self.image, self.seat] = torch.arange(len(self.image), device=self.taken.device)
        image, one, other = (self.taken[:, :, None] & self.taken[:, None]).nonzero(as_tuple=True)
        return row_at[image, one], row_at[image, other]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, with_context: bool) -> None:
        super().__init__()
        self.softness = nn.Parameter(torch.full((heads,), FIRST_SOFTNESS))
        self.pairs, self.map = (Attention(width, heads, dropout) for _ in range(2))
        self.context = Attention(width, heads, dropout) if with_context else None
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B Q W"],
        between: Float[Tensor, "B A Q Q"],
        cells: Float[Tensor, "B T W"],
        outside: Float[Tensor, "B one Q T"],
        context: Float[Tensor, "B Z W"] | None,
    ) -> Float[Tensor, "B Q W"]:
        tokens = tokens + self.pairs(tokens, tokens, between)
        tokens = tokens + self.map(tokens, cells, -F.softplus(self.softness)[:, None, None] * outside)
        if self.context is not None and context is not None:
            tokens = tokens + self.context(tokens, context)
        return tokens + self.feed_forward(tokens)


class Cognition(nn.Module):
    """Pair tokens to pair tokens that know their rivals, what the map shows around them, and what the context says.

    Args:
        num_layers: How often.
        width, heads, dropout: Of each layer.
        with_context: Whether there are context tokens to look at.
    """

    def __init__(self, num_layers: int, width: int, heads: int, dropout: float, with_context: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, dropout, with_context) for _ in range(num_layers))
        self.relations = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(NUM_RELATIONS),
                nn.Linear(NUM_RELATIONS, width // 4),
                nn.GELU(),
                nn.Linear(width // 4, heads),
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        batch: PairBatch,
        pairs: Float[Tensor, "P W"],
        cells: Float[Tensor, "B T W"],
        map_hw: tuple[int, int],
        context: Float[Tensor, "B Z W"] | None,
    ) -> Float[Tensor, "P W"]:
        """See the class.

        Args:
            batch: Whose boxes say where pairs lie.
            pairs: One token a pair.
            cells: Of each image's map.
            map_hw: Rows and columns of the map.
            context: What the translator says; read where the network is made for it.
        """
        seats = Seats.of(batch)
        size_hw = batch.size_hw[batch.pair_image]
        outside = 1 - union_cover(batch.boxes_h, batch.boxes_o, size_hw, *map_hw)
        outside = seats.place(outside)[:, None]
        first, second = seats.couples()
        relations = pair_relations(batch.boxes_h, batch.boxes_o, batch.rows_h, batch.rows_o, size_hw, first, second)
        tokens = seats.place(pairs)
        for layer, to_bias in zip(self.layers, self.relations, strict=True):
            tokens = layer(tokens, _between(seats, first, second, to_bias(relations)), cells, outside, context)
        return seats.take(self.norm(tokens))


def _between(seats: Seats, first: Tensor, second: Tensor, bias: Float[Tensor, "R A"]) -> Float[Tensor, "B A Q Q"]:
    """What is added where a pair looks at another of its image; of no other image, and at no empty seat."""
    num_images, most = seats.taken.shape
    shape = (num_images, most, most, bias.shape[1])
    where = (seats.image[first], seats.seat[first], seats.seat[second])
    return bias.new_full(shape, NO_ATTENTION).index_put(where, bias).permute(0, 3, 1, 2)
