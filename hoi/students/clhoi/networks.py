"""CL-HOI's networks: a translator of CLIP's map into words, and a cognition network in which pairs look around.

Shapes: B images, P pairs, Q pairs of the image with most, R pairs of pairs, E numbers about each, C channels, H rows
and V columns of the map, T = H · V its cells row by row, W width, A heads, Z tokens, S sentences, D the joint width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hoi.records import PairBatch
from hoi.students.layers import NUM_TERMS, RaggedIndex, attend, sines, spatial_code

IGNORED = -1e4
"""Logit, or bias of attention, of what takes no part in a softmax; finite, so that an empty row gives no NaN."""
FEED_FORWARD = 2  # hidden width of the feed-forward layers, in widths
NUM_RELATIONS = 2 * NUM_TERMS + 4  # numbers that say how two pairs lie to each other
FIRST_SOFTNESS = 4.0
"""What a head's attention to a cell outside the union box loses before the softmax, before training. [choice]"""
SAME = 0.999
"""Cosine from which two sentences are the same; embeddings are cached in float16."""
FIRST_TEMPERATURE = 0.07
IMAGE_WEIGHT = 0.5  # of the tokens' mean against CLIP's embedding of the image [choice]


class Attention(nn.Module):
    """A correction of tokens by what they take from a memory; both are normalised first."""

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
        """Return the correction; the bias is added before the softmax."""
        query = self.query(self.norm(tokens))
        key, value = self.key_value(self.norm_memory(memory)).chunk(2, -1)
        mask = None if bias is None else bias.to(query.dtype)
        return self.out(attend(query, key, value, self.heads, mask, self.dropout if self.training else 0.0))


class FeedForward(nn.Sequential):
    """A correction of each token alone."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, FEED_FORWARD * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(FEED_FORWARD * width, width),
            nn.Dropout(dropout),
        )


def sine_positions(rows: int, columns: int, width: int, device: torch.device) -> Float[Tensor, "T W"]:
    """Return the positional encoding of the row and column of each cell's centre; width must be a multiple of 4."""
    frequency = 1e4 ** -(torch.arange(width // 4, device=device) / (width // 4))

    def angles(cells: int) -> Tensor:
        return 2 * math.pi * (torch.arange(cells, device=device) + 0.5)[:, None] / cells * frequency

    of_rows = angles(rows)[:, None].expand(-1, columns, -1)
    of_columns = angles(columns)[None].expand(rows, -1, -1)
    return sines(torch.stack([of_rows, of_columns], 2).flatten(0, 1), width)


def union_cover(
    boxes_h: Float[Tensor, "P 4"],
    boxes_o: Float[Tensor, "P 4"],
    size_hw: Float[Tensor, "P 2"],
    rows: int,
    columns: int,
) -> Float[Tensor, "P T"]:
    """Return the share of each cell of the map that lies in a pair's union box; boxes and sizes in pixels.

    The map is that of the image's padded square, as the cache embeds it.
    """
    side = size_hw.max(1, keepdim=True).values
    shift = (side - size_hw.flip(1)) / 2
    low = (torch.minimum(boxes_h[:, :2], boxes_o[:, :2]) + shift) / side
    high = (torch.maximum(boxes_h[:, 2:], boxes_o[:, 2:]) + shift) / side

    def cover(axis: int, cells: int) -> Tensor:
        edges = torch.arange(cells, device=low.device)
        start, end = low[:, axis, None] * cells, high[:, axis, None] * cells
        return (torch.minimum(end, edges + 1) - torch.maximum(start, edges)).clamp(0, 1)

    return (cover(1, rows)[:, :, None] * cover(0, columns)[:, None]).flatten(1)


def pair_relations(batch: PairBatch, first: Int64[Tensor, " R"], second: Int64[Tensor, " R"]) -> Float[Tensor, "R E"]:
    """Return how the humans of two pairs lie to each other, how their objects do, and which detections they share."""
    rows_h, rows_o, size_hw = batch.rows_h, batch.rows_o, batch.size_hw[batch.pair_image[first]]
    shared = [
        rows_h[first] == rows_h[second],
        rows_o[first] == rows_o[second],
        rows_h[first] == rows_o[second],
        rows_o[first] == rows_h[second],
    ]
    codes = [spatial_code(boxes[first], boxes[second], size_hw) for boxes in (batch.boxes_h, batch.boxes_o)]
    return torch.cat([*codes, torch.stack(shared, 1).to(codes[0].dtype)], 1)


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
    """Attention layers of the pairs: over one another, the map around them, and the context tokens if any."""

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
        map_hw: Sequence[int],
        context: Float[Tensor, "B Z W"] | None,
    ) -> Float[Tensor, "P W"]:
        """Return the pairs' tokens after all layers; the cells are those of a map of `map_hw` rows and columns."""
        index = RaggedIndex.of(batch.pair_image, batch.num_images)
        cover = union_cover(batch.boxes_h, batch.boxes_o, batch.size_hw[batch.pair_image], *map_hw)
        outside = index.pad(1 - cover)[:, None]
        first, second = index.couples()
        relations = pair_relations(batch, first, second)
        # A pair attends to pairs of its own image alone, and to no empty place.
        where = (index.image[first], index.slot[first], index.slot[second])
        tokens = index.pad(pairs)
        for layer, to_bias in zip(self.layers, self.relations, strict=True):
            bias = to_bias(relations)
            table = bias.new_full((index.num_images, index.length, index.length, bias.shape[1]), IGNORED)
            between = table.index_put(where, bias).permute(0, 3, 1, 2)
            tokens = layer(tokens, between, cells, outside, context)
        return index.flat(self.norm(tokens))


class MapEncoder(nn.Module):
    """Tokens of CLIP's map, with their positions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(channels, width), nn.LayerNorm(width)

    def forward(self, spatial_map: Float[Tensor, "B C H V"]) -> Float[Tensor, "B T W"]:
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
    """Context tokens, which are learned queries that attend to the map, and their words in the space of texts."""

    def __init__(self, num_queries: int, num_layers: int, width: int, heads: int, dropout: float, joint: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) / math.sqrt(width))
        self.layers = nn.ModuleList(_DecoderLayer(width, heads, dropout) for _ in range(num_layers))
        self.norm, self.to_joint = nn.LayerNorm(width), nn.Linear(width, joint)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    def forward(self, cells: Float[Tensor, "B T W"]) -> Float[Tensor, "B Z W"]:
        tokens = self.queries.expand(len(cells), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, cells)
        return self.norm(tokens)

    def words(self, tokens: Float[Tensor, "B Z W"]) -> Float[Tensor, "B Z D"]:
        """Return the tokens' unit vectors among texts."""
        return F.normalize(self.to_joint(tokens).float(), dim=-1)


def context_loss(
    words: Float[Tensor, "B Z D"],
    sentences: Float[Tensor, "B S D"],
    mask: Bool[Tensor, "B S"],
    image_embedding: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the contrast of (unit) words with their own captions, and of their mean with CLIP's image.

    A sentence and an image are as near as the sentence and the nearest of the image's words. Two cross-entropies: each
    sentence among the batch's images, and each image's own sentence among those of other images; equal sentences are
    not negatives of each other. Means over an image's sentences, then over all images; no caption adds nothing.
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
