"""The Visual Linguistic Translator: a picture's map to a few tokens in the space of texts, and what a caption teaches.

A caption says of an image what nobody says of its pairs: it may name what is done, in its own words. The tokens learn
to be near the caption's sentences and far from those of other images.

Letters: B images, C channels, H, V cells of the map, T = H · V, W width, Z tokens, S sentences, D the joint width,
n sentences of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hoi.records import PairBatch
from hoi.students.clhoi.layers import (
    NO_ATTENTION,
    NUM_RELATIONS,
    Attention,
    FeedForward,
    pair_relations,
    sine_positions,
    union_cover,
)

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


SAME = 0.999
"""Cosine from which two sentences are the same; embeddings are cached in float16."""
FIRST_TEMPERATURE = 0.07
IGNORED = -1e4
"""Logit of what is no negative."""
IMAGE_WEIGHT = 0.5
"""Of the tokens' mean against CLIP's embedding of the image. [choice]"""


class MapEncoder(nn.Module):
    """CLIP's map [B, C, H, V] to tokens [B, T, W] that know where they lie."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(channels, width), nn.LayerNorm(width)

    def forward(self, spatial_map: Float[Tensor, "B C H V"]) -> Float[Tensor, "B T W"]:
        """See the class."""
        rows, columns = spatial_map.shape[2:]
        tokens = self.norm(self.project(spatial_map.flatten(2).transpose(1, 2)))
        return tokens + sine_positions(rows, columns, tokens.shape[2], tokens.device)


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own, self.map = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, tokens: Tensor, cells: Tensor) -> Tensor:
        tokens = tokens + self.own(tokens, tokens)
        tokens = tokens + self.map(tokens, cells)
        return tokens + self.feed_forward(tokens)


class Translator(nn.Module):
    """Cells of the map to context tokens: learned queries that ask them.

    Args:
        num_queries: Z.
        num_layers: Of the decoder.
        width, heads, dropout: Of each.
        joint: D.
    """

    def __init__(self, num_queries: int, num_layers: int, width: int, heads: int, dropout: float, joint: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) / math.sqrt(width))
        self.layers = nn.ModuleList(_DecoderLayer(width, heads, dropout) for _ in range(num_layers))
        self.norm, self.to_joint = nn.LayerNorm(width), nn.Linear(width, joint)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    def forward(self, cells: Float[Tensor, "B T W"]) -> Float[Tensor, "B Z W"]:
        """Cells to the tokens that pairs look at."""
        tokens = self.queries.expand(len(cells), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, cells)
        return self.norm(tokens)

    def words(self, tokens: Float[Tensor, "B Z W"]) -> Float[Tensor, "B Z D"]:
        """Tokens to their unit vectors in the space of texts."""
        return F.normalize(self.to_joint(tokens).float(), dim=-1)


def context_loss(
    words: Float[Tensor, "B Z D"],
    sentences: Float[Tensor, "B S D"],
    mask: Bool[Tensor, "B S"],
    image_embedding: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """How far the words are from their own captions, and their mean from CLIP's image.

    A sentence and an image are as near as the sentence and the nearest of the image's words. Two cross-entropies at
    the given scale: each sentence among the batch's images, and each image's own sentence among those of other images;
    sentences that are the same count for none of the other's negatives. Means over an image's sentences, then over all
    images; those without a caption add nothing.

    Args:
        words: Unit norm.
        sentences: Unit norm where the mask says so.
        image_embedding: CLIP's.
        scale: One over the temperature.
    """
    image, slot = mask.nonzero(as_tuple=True)
    said = sentences[image, slot]
    nearness = scale * torch.einsum("nd,bzd->nbz", said, words).amax(2)
    is_same = (said @ said.T >= SAME) & (image[:, None] != image)
    says_it_too = is_same.float() @ F.one_hot(image, len(words)).float() > 0
    to_images = nearness.masked_fill(says_it_too, IGNORED).log_softmax(1).gather(1, image[:, None])[:, 0]
    # Row i, column j: the image of sentence i, and sentence j.
    is_sibling = (image[:, None] == image) & ~torch.eye(len(image), dtype=torch.bool, device=image.device)
    of_image = nearness[:, image].T.masked_fill(is_sibling | says_it_too[:, image].T, IGNORED)
    to_sentences = of_image.log_softmax(1).diagonal()
    per_sentence = -(to_images + to_sentences) / 2
    per_image = words.new_zeros(len(words)).index_add(0, image, per_sentence / mask.sum(1).clamp(min=1)[image])
    likeness = F.cosine_similarity(words.mean(1), image_embedding.float(), dim=-1)
    return (per_image + IMAGE_WEIGHT * (1 - likeness)).mean()
