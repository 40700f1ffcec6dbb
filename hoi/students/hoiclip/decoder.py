"""The interaction decoder: queries of pairs attend to one another, then to two memories by one shared attention.

Letters: R queries over all images, S rows of a memory, W width, B images, N rows of the image with most.

Source: Ning et al., HOICLIP, CVPR 2023, section 3.2: knowledge integration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hoi.records import PairBatch

FREQUENCIES = 10_000.0
"""Ratio of the longest to the shortest wave of the sine positions."""


@dataclass(frozen=True)
class Places:
    """Where flat rows stand among their images.

    Args:
        image: int64 [R], ascending.
        slot: int64 [R], the row's place in its image.
        num_images: B.
        length: N, at least 1.
    """

    image: Int64[Tensor, " R"]
    slot: Int64[Tensor, " R"]
    num_images: int
    length: int

    @classmethod
    def of(cls, image: Int64[Tensor, " R"], num_images: int) -> Places:
        """Each row's image, ascending, to its places."""
        counts = torch.bincount(image, minlength=num_images)
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(image), device=image.device) - first[image]
        return cls(image, slot, num_images, max(1, int(counts.max())))

    def pad(self, rows: Float[Tensor, "R W"]) -> Float[Tensor, "B N W"]:
        """Flat rows to a table per image, zeros behind the last."""
        return rows.new_zeros(self.num_images, self.length, rows.shape[1]).index_put((self.image, self.slot), rows)

    def flat(self, table: Float[Tensor, "B N W"]) -> Float[Tensor, "R W"]:
        """Back from `pad`."""
        return table[self.image, self.slot]

    @property
    def mask(self) -> Bool[Tensor, "B N"]:
        """What there is. An image without rows keeps its first, a zero, so that no softmax is over nothing."""
        mask = torch.zeros(self.num_images, self.length, dtype=torch.bool, device=self.image.device)
        mask[self.image, self.slot] = True
        mask[:, 0] = True
        return mask


@dataclass(frozen=True)
class Memory:
    """Tokens to attend to.

    Args:
        tokens: Flat.
        positions: Added to them where they are compared with a query.
        places: Of both.
    """

    tokens: Float[Tensor, "R W"]
    positions: Float[Tensor, "R W"]
    places: Places


@dataclass(frozen=True)
class Instances:
    """The distinct detections of a batch's pairs, image by image.

    Args:
        image: int64 [I], ascending.
        feature: As the batch has them.
        boxes: Pixel-edge xyxy.
        labels: int64 [I], rows of the vocabulary's objects.
    """

    image: Int64[Tensor, " I"]
    feature: Float[Tensor, "I L D"]
    boxes: Float[Tensor, "I 4"]
    labels: Int64[Tensor, " I"]


def instances_of(batch: PairBatch, person_idx: int) -> Instances:
    """Humans and objects of all pairs, each detection once.

    Args:
        batch: The pairs.
        person_idx: Label of every human.
    """
    rows = torch.cat([batch.rows_h, batch.rows_o])
    image = torch.cat([batch.pair_image, batch.pair_image])
    # One number that orders by image, then by detection.
    stride = int(rows.max()) + 1 if len(rows) else 1
    distinct, which = torch.unique(image * stride + rows, return_inverse=True)
    places = torch.arange(len(rows), device=rows.device)
    # A human comes first, so one that is also what it is paired with keeps its own label.
    first = torch.full_like(distinct, len(rows)).scatter_reduce(0, which, places, "amin")
    labels = torch.cat([torch.full_like(batch.labels_o, person_idx), batch.labels_o])
    return Instances(
        image[first],
        torch.cat([batch.human_feature, batch.object_feature])[first],
        torch.cat([batch.boxes_h, batch.boxes_o])[first],
        labels[first],
    )


def union_of(boxes_h: Float[Tensor, "R 4"], boxes_o: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
    """Two boxes to the smallest one that holds both; xyxy."""
    low, high = torch.minimum(boxes_h[:, :2], boxes_o[:, :2]), torch.maximum(boxes_h[:, 2:], boxes_o[:, 2:])
    return torch.cat([low, high], -1)


def in_square(boxes: Float[Tensor, "R 4"], size_hw: Float[Tensor, "R 2"]) -> Float[Tensor, "R 4"]:
    """Pixel-edge xyxy to centre x, y, width and height as shares of the padded square around the image."""
    side = size_hw.max(-1, keepdim=True).values
    offset = ((side - size_hw) / 2).flip(-1)
    low, high = boxes[:, :2] + offset, boxes[:, 2:] + offset
    return torch.cat([(low + high) / 2, high - low], -1) / side


def cells_in_square(height: int, width: int, device: torch.device) -> Float[Tensor, "T 4"]:
    """The whole square, for the class token, then the map's cells row by row; centre x, y, width and height."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    cells = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
    size = torch.tensor([1 / width, 1 / height], device=device).expand(len(cells), 2)
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]], device=device)
    return torch.cat([whole, torch.cat([cells, size], -1)])


def sine_positions(places: Float[Tensor, "R 4"], width: int) -> Float[Tensor, "R W"]:
    """Centre x, y, width and height, as shares, to sines and cosines of each; zeros fill up what 8 does not divide.

    Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, for a box in place of a point.
    """
    waves = width // 8
    steps = torch.arange(waves, device=places.device, dtype=places.dtype) / max(1, waves)
    angles = 2 * math.pi * places[:, :, None] / FREQUENCIES**steps
    found = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    return torch.nn.functional.pad(found, (0, width - found.shape[1]))


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
