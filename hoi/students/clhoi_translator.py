"""The Visual Linguistic Translator: a picture's map to a few tokens in the space of texts, and what a caption teaches.

A caption says of an image what nobody says of its pairs: it may name what is done, in its own words. The tokens learn
to be near the caption's sentences and far from those of other images.

Letters: B images, C channels, H, V cells of the map, T = H · V, W width, Z tokens, S sentences, D the joint width,
n sentences of the batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hoi.students.clhoi_attention import Attention, FeedForward
from hoi.students.clhoi_geometry import sine_positions

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
