"""HOICLIP's networks: queries of pairs, the interaction decoder over two memories, and classifiers of its output.

Shapes: R flat rows (queries or tokens), P pairs, I detections, B images, K interactions, V verbs, O object classes, T
tokens of an image's map, L levels of region features, M views, C channels of the map, D the joint width, W the
decoder's width.

Source: Ning et al., HOICLIP, CVPR 2023, sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hoi.records import PairBatch, TextBank, VisualHead
from hoi.students.layers import NUM_TERMS, RaggedIndex, attend, sines, spatial_code
from hoi.vocabulary import Vocabulary

WAVE_RATIO = 10_000.0
"""Ratio of the longest to the shortest wave of the sine positions."""
NORM_EPS = 1e-5
LOGIT_SCALE = 1 / 0.07
"""Scale of the classifiers' logits before the first step."""


@dataclass(frozen=True)
class Memory:
    """Tokens to attend to."""

    tokens: Float[Tensor, "R W"]
    positions: Float[Tensor, "R W"]  # added to the tokens where they are compared with a query
    index: RaggedIndex  # which image each token is of


@dataclass(frozen=True)
class Instances:
    """The distinct detections of a batch's pairs, image by image."""

    image: Int64[Tensor, " I"]  # ascending
    feature: Float[Tensor, "I L D"]  # as the batch has them
    boxes: Float[Tensor, "I 4"]  # pixel-edge xyxy
    labels: Int64[Tensor, " I"]  # rows of the vocabulary's objects


def instances_of(batch: PairBatch, person_idx: int) -> Instances:
    """Return humans and objects of all pairs, each detection once."""
    rows = torch.cat([batch.rows_h, batch.rows_o])
    image = torch.cat([batch.pair_image, batch.pair_image])
    # One number that orders by image, then by detection.
    stride = int(rows.max()) + 1 if len(rows) else 1
    distinct, which = torch.unique(image * stride + rows, return_inverse=True)
    positions = torch.arange(len(rows), device=rows.device)
    # Humans come first, so one that is also the object of a pair keeps the label of a person.
    first = torch.full_like(distinct, len(rows)).scatter_reduce(0, which, positions, "amin")
    labels = torch.cat([torch.full_like(batch.labels_o, person_idx), batch.labels_o])
    return Instances(
        image[first],
        torch.cat([batch.human_feature, batch.object_feature])[first],
        torch.cat([batch.boxes_h, batch.boxes_o])[first],
        labels[first],
    )


def union_of(boxes_h: Float[Tensor, "R 4"], boxes_o: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
    """Return the smallest box that holds both; xyxy."""
    low, high = torch.minimum(boxes_h[:, :2], boxes_o[:, :2]), torch.maximum(boxes_h[:, 2:], boxes_o[:, 2:])
    return torch.cat([low, high], -1)


def in_square(boxes: Float[Tensor, "R 4"], size_hw: Float[Tensor, "R 2"]) -> Float[Tensor, "R 4"]:
    """Return boxes (pixel-edge xyxy) as centre x, y, width, height in shares of the image's padded square."""
    side = size_hw.max(-1, keepdim=True).values
    offset = ((side - size_hw) / 2).flip(-1)
    low, high = boxes[:, :2] + offset, boxes[:, 2:] + offset
    return torch.cat([(low + high) / 2, high - low], -1) / side


def cells_in_square(height: int, width: int, device: torch.device) -> Float[Tensor, "T 4"]:
    """Return the whole square, for the class token, then the map's cells row by row; as `in_square`."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    cells = torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
    size = torch.tensor([1 / width, 1 / height], device=device).expand(len(cells), 2)
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]], device=device)
    return torch.cat([whole, torch.cat([cells, size], -1)])


def sine_positions(boxes: Float[Tensor, "R 4"], width: int) -> Float[Tensor, "R W"]:
    """Return the positional encoding of boxes as `in_square` gives them."""
    waves = width // 8
    steps = torch.arange(waves, device=boxes.device, dtype=boxes.dtype) / max(1, waves)
    return sines(2 * math.pi * boxes[:, :, None] / WAVE_RATIO**steps, width)


class Attention(nn.Module):
    """Multi-head attention from flat queries to flat rows, image by image."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self,
        queries: Float[Tensor, "R W"],
        of_queries: RaggedIndex,
        keys: Float[Tensor, "S W"],
        values: Float[Tensor, "S W"],
        of_rows: RaggedIndex,
    ) -> Float[Tensor, "R W"]:
        """Return what each query takes from its own image's rows; queries and keys come with their positions added."""
        query, key, value = self.query(queries), self.key(keys), self.value(values)
        mask = of_rows.mask
        # An image without rows keeps its first place, a zero, so that no softmax is over nothing.
        mask[:, 0] = True
        dropout = self.dropout if self.training else 0.0
        tables = of_queries.pad(query), of_rows.pad(key), of_rows.pad(value)
        return self.out(of_queries.flat(attend(*tables, self.heads, mask[:, None, None], dropout)))


class DualAttention(nn.Module):
    """Apply one attention to every memory; add each result onto the queries and normalise, then sum them all."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, queries: Tensor, positions: Tensor, index: RaggedIndex, memories: Sequence[Memory]) -> Tensor:
        def attended(memory: Memory) -> Tensor:
            keys, values = memory.tokens + memory.positions, memory.tokens
            return self.attention(queries + positions, index, keys, values, memory.index)

        first, *others = (self.norm(queries + self.dropout(attended(memory))) for memory in memories)
        return sum(others, first)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the memories and a feed-forward network, each normalised after it is added."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.among_queries = Attention(width, heads, dropout)
        self.norm_first, self.norm_last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_memories = DualAttention(width, heads, dropout)
        self.network = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, positions: Tensor, index: RaggedIndex, memories: Sequence[Memory]) -> Tensor:
        placed = queries + positions
        attended = self.among_queries(placed, index, placed, queries, index)
        queries = self.norm_first(queries + self.dropout(attended))
        queries = self.to_memories(queries, positions, index, memories)
        return self.norm_last(queries + self.dropout(self.network(queries)))


class InteractionDecoder(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward, dropout) for _ in range(layers))

    def forward(
        self, queries: Tensor, positions: Tensor, index: RaggedIndex, memories: Sequence[Memory]
    ) -> list[Float[Tensor, "R W"]]:
        """Return each layer's queries, the last layer's last; the queries themselves where there is no layer."""
        results = []
        for layer in self.layers:
            queries = layer(queries, positions, index, memories)
            results.append(queries)
        return results or [queries]


class FrozenHead(nn.Module):
    """The teacher's frozen last layers, from the text bank; buffers that are no part of the student's weights."""

    projection: Tensor
    inverse: Tensor
    value: Tensor | None
    norm: Tensor | None

    def __init__(self, head: VisualHead) -> None:
        super().__init__()
        projection = torch.as_tensor(head.projection).float()
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(projection[:-1].double()).float(), persistent=False)
        for name in ("value", "norm"):
            part = getattr(head, name)
            self.register_buffer(name, None if part is None else torch.as_tensor(part).float(), persistent=False)

    @property
    def width(self) -> int:
        return len(self.projection) - 1

    def tokens(self, spatial_map: Float[Tensor, "B C H W"], embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B T C"]:
        """Return the class token and, row by row, the map's cells, all as the projection takes them.

        The cache holds only the class token's projection. In its place stands the shortest token that projects onto
        the image's unit embedding, at the mean length of the cells' joint vectors.
        """
        cells = spatial_map.flatten(2).transpose(1, 2)
        if self.norm is not None:
            cells = F.layer_norm(cells, (self.width,), self.norm[0], self.norm[1], NORM_EPS)
        if self.value is not None:
            cells = cells @ self.value[:-1] + self.value[-1]
        length = self.project(cells).norm(dim=-1).mean(1, keepdim=True)
        pooled = (length * embedding - self.projection[-1]) @ self.inverse
        return torch.cat([pooled[:, None], cells], 1)

    def project(self, tokens: Float[Tensor, "*R C"]) -> Float[Tensor, "*R D"]:
        """Return the tokens' joint vectors, not normalised."""
        return tokens @ self.projection[:-1] + self.projection[-1]


class PairQueries(nn.Module):
    """Queries from the mean of human and object features, optionally with the union's crops and the boxes."""

    def __init__(self, levels: int, views: int, with_boxes: bool, width: int) -> None:
        super().__init__()
        self.of_instances = nn.Linear(levels, width)
        self.of_union = nn.Linear(views, width) if views else None
        self.of_boxes = (
            nn.Sequential(nn.LayerNorm(NUM_TERMS), nn.Linear(NUM_TERMS, width), nn.GELU(), nn.Linear(width, width))
            if with_boxes
            else None
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: PairBatch, union: Float[Tensor, "P M D"]) -> Float[Tensor, "P W"]:
        queries = self.of_instances((batch.human_feature.float() + batch.object_feature.float()).flatten(1) / 2)
        if self.of_union is not None:
            queries = queries + self.of_union(union.flatten(1))
        if self.of_boxes is not None:
            code = spatial_code(batch.boxes_h, batch.boxes_o, batch.size_hw[batch.pair_image])
            queries = queries + self.of_boxes(code)
        return self.norm(queries)


class InstanceTokens(nn.Module):
    """Tokens of the second memory: what detections look like, and the text of their class (`object_texts`)."""

    texts: Tensor

    def __init__(self, texts: Float[Tensor, "O D"], levels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)
        self.of_feature, self.of_label = nn.Linear(levels, width), nn.Linear(texts.shape[1], width)
        self.norm = nn.LayerNorm(width)

    def forward(self, feature: Float[Tensor, "I L D"], labels: Int64[Tensor, " I"]) -> Float[Tensor, "I W"]:
        return self.norm(self.of_feature(feature.flatten(1)) + self.of_label(self.texts[labels]))


class InteractionClassifier(nn.Module):
    """Logits of unit joint vectors: e^s cos(x, text) + λ e^s cos(adapter(x), verb of the text).

    Args:
        verb_weight: λ; 0 for no verb classifier.
        offset: A temperature: logits are taken against a learned reference text, plus one bias for all interactions,
            and the scale starts as the teacher's over this temperature. None for neither.
    """

    texts: Tensor
    verb_of: Tensor

    def __init__(self, bank: TextBank, vocabulary: Vocabulary, verb_weight: float, offset: float | None) -> None:
        super().__init__()
        texts = torch.as_tensor(bank.text_embedding).float()
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("verb_of", torch.as_tensor(vocabulary.verb_of), persistent=False)
        scale = LOGIT_SCALE if offset is None else bank.logit_scale / offset
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.reference = None if offset is None else nn.Parameter(texts.mean(0))
        self.bias = None if offset is None else nn.Parameter(torch.tensor(-math.log(len(texts))))
        self.verb_weight = verb_weight
        self.adapter: nn.Sequential | None = None
        if verb_weight > 0:
            width = texts.shape[1]
            half = width // 2
            first, second, last = nn.Linear(width, half), nn.Linear(half, half), nn.Linear(half, width)
            self.adapter = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
            self.verbs = nn.Parameter(F.normalize(torch.randn(len(vocabulary.verbs), width), dim=-1))

    def forward(self, joint: Float[Tensor, "P D"]) -> Float[Tensor, "P K"]:
        scale = self.log_scale.exp()
        texts = self.texts if self.reference is None else self.texts - self.reference
        logits = scale * joint @ texts.T
        if self.bias is not None:
            logits = logits + self.bias
        if self.adapter is not None:
            verbs = F.normalize(self.adapter(joint), dim=-1) @ F.normalize(self.verbs, dim=-1).T
            logits = logits + self.verb_weight * scale * verbs[:, self.verb_of]
        return logits


def object_texts(bank: TextBank, vocabulary: Vocabulary) -> Float[Tensor, "O D"]:
    """Return a unit vector per object class: the mean text of its interactions, or of all if it has none."""
    texts = torch.as_tensor(bank.text_embedding).float()
    mask = torch.as_tensor(vocabulary.object_mask).float()
    sums = torch.where(mask.any(1, keepdim=True), mask @ texts, texts.sum(0))
    return F.normalize(sums, dim=-1)


def enhancement(image_similarity: Float[Tensor, "B K"], num_classes: int) -> Float[Tensor, "B K"]:
    """Return what an image's likeliest classes gain: sigmoid(cosine) − ½; 0 for all others.

    The public code adds sigmoid(cosine) to the former and ½ to the latter; only the difference changes a ranking.
    """
    best = image_similarity.topk(min(num_classes, image_similarity.shape[1]), dim=1)
    return torch.zeros_like(image_similarity).scatter(1, best.indices, best.values.sigmoid() - 0.5)
