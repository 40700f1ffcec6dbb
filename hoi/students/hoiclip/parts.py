"""What stands before and behind HOICLIP's decoder: queries of pairs, classifiers of what it says, the enhancement.

Letters: P pairs, B images, K interactions, V verbs, O object classes, I detections, L levels, M views, D the joint
width, W the decoder's width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hoi.records import TextBank, VisualHead
from hoi.students.layers import NUM_TERMS, spatial_code
from hoi.vocabulary import Vocabulary

NORM_EPS = 1e-5


class FrozenHead(nn.Module):
    """Buffers alone, which belong to the cache and not to the student's weights.

    Args:
        head: Of the text bank.
    """

    projection: Tensor
    inverse: Tensor
    value: Tensor | None
    norm: Tensor | None

    def __init__(self, head: VisualHead) -> None:
        super().__init__()
        projection = torch.from_numpy(head.projection).float()
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(projection[:-1].double()).float(), persistent=False)
        for name in ("value", "norm"):
            part = getattr(head, name)
            self.register_buffer(name, None if part is None else torch.from_numpy(part).float(), persistent=False)

    @property
    def width(self) -> int:
        """C, of cells and tokens alike."""
        return len(self.projection) - 1

    def tokens(self, spatial_map: Float[Tensor, "B C H W"], embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B T C"]:
        """Map and unit image embedding to the class token and, row by row, the cells: all as the projection takes them.

        The cache has no class token but what became of it. In its place stands the shortest token that projects onto
        the image's embedding, at the mean length of the cells' joint vectors.
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
        """Tokens to joint vectors, of any length."""
        return tokens @ self.projection[:-1] + self.projection[-1]


LOGIT_SCALE = 1 / 0.07
"""e^s before the first step."""


class PairQueries(nn.Module):
    """The mean of human and object features to a query, with the union's crops and the boxes where asked.

    Args:
        levels: L · D.
        views: M' · D of the union's crops; 0 without them.
        with_boxes: Whether the spatial code is seen.
        width: W.
    """

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

    def forward(
        self,
        human: Float[Tensor, "P L D"],
        thing: Float[Tensor, "P L D"],
        union: Float[Tensor, "P M D"],
        boxes_h: Float[Tensor, "P 4"],
        boxes_o: Float[Tensor, "P 4"],
        size_hw: Float[Tensor, "P 2"],
    ) -> Float[Tensor, "P W"]:
        """Features and boxes of pairs to their queries; the union's views are those that `views` counts."""
        found = self.of_instances((human + thing).flatten(1) / 2)
        if self.of_union is not None:
            found = found + self.of_union(union.flatten(1))
        if self.of_boxes is not None:
            found = found + self.of_boxes(spatial_code(boxes_h, boxes_o, size_hw))
        return self.norm(found)


class InstanceTokens(nn.Module):
    """Detections to tokens of the second memory: what they look like, and the text of what they are.

    Args:
        texts: [O, D], see `object_texts`.
        levels: L · D.
        width: W.
    """

    texts: Tensor

    def __init__(self, texts: Float[Tensor, "O D"], levels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("texts", texts, persistent=False)
        self.of_feature, self.of_label = nn.Linear(levels, width), nn.Linear(texts.shape[1], width)
        self.norm = nn.LayerNorm(width)

    def forward(self, feature: Float[Tensor, "I L D"], labels: Int64[Tensor, " I"]) -> Float[Tensor, "I W"]:
        return self.norm(self.of_feature(feature.flatten(1)) + self.of_label(self.texts[labels]))


class InteractionClassifier(nn.Module):
    """Unit joint vectors to logits: e^s cos(x, text) + λ e^s cos(adapter(x), verb).

    Every verb logit goes to all interactions of the verb. There is no bias, but for `offset`.

    Args:
        bank: Frozen texts.
        vocabulary: Verbs of the interactions.
        verb_weight: λ; 0 for no verb classifier.
        offset: Whether logits are taken against a learned reference text, plus one bias for all interactions, and the
            scale starts as the teacher's over this temperature; None for neither.
    """

    texts: Tensor
    verb_of: Tensor

    def __init__(self, bank: TextBank, vocabulary: Vocabulary, verb_weight: float, offset: float | None) -> None:
        super().__init__()
        texts = torch.from_numpy(bank.text_embedding).float()
        self.register_buffer("texts", texts, persistent=False)
        self.register_buffer("verb_of", torch.from_numpy(vocabulary.verb_of), persistent=False)
        scale = LOGIT_SCALE if offset is None else bank.logit_scale / offset
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.reference = None if offset is None else nn.Parameter(texts.mean(0))
        self.bias = None if offset is None else nn.Parameter(torch.tensor(-math.log(len(texts))))
        self.verb_weight = verb_weight
        self.adapter: nn.Sequential | None = None
        if verb_weight > 0:
            width = texts.shape[1]
            sizes = (width, width // 2, width // 2, width)
            first, second, last = (nn.Linear(*pair) for pair in pairwise(sizes))
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
    """A unit vector for each object class: the mean text of its interactions, or of all where it has none."""
    texts = torch.from_numpy(bank.text_embedding).float()
    mask = torch.from_numpy(vocabulary.object_mask).float()
    sums = torch.where(mask.any(1, keepdim=True), mask @ texts, texts.sum(0))
    return F.normalize(sums, dim=-1)


def enhancement(image_similarity: Float[Tensor, "B K"], num_classes: int) -> Float[Tensor, "B K"]:
    """Cosines of whole images to what their likeliest classes gain: sigmoid(cosine) − ½, and 0 for all others.

    The public code adds sigmoid(cosine) to the former and sigmoid(0) to the latter, so that only the difference to ½
    changes any ranking.
    """
    best = image_similarity.topk(min(num_classes, image_similarity.shape[1]), dim=1)
    return torch.zeros_like(image_similarity).scatter(1, best.indices, best.values.sigmoid() - 0.5)
