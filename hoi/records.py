"""The whole flow as a handful of types: read this file first.

image → Detections → pairs_ho → ImageSignals → shard → PairBatch → BranchScores → Triplets → average precision

Boxes are float32 `xyxy` in pixels of the upright image (EXIF orientation applied): pixel-edge coordinates, so a box
that covers one pixel at the origin is (0, 0, 1, 1) and width is x2 - x1.

Shapes: N detections, P pairs, K interactions, D the teacher's joint image-text width, M crop margins, L levels of
region features, B images of a batch, R scored triplets.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, by descending score.

    Args:
        boxes_xyxy: float32 [N, 4], clipped to the image.
        scores: float32 [N] in [0, 1].
        labels: int64 [N], rows of `Vocabulary.objects`.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        num = len(self.scores)
        if self.boxes_xyxy.shape != (num, 4) or self.labels.shape != (num,) or self.scores.shape != (num,):
            got = (self.boxes_xyxy.shape, self.scores.shape, self.labels.shape)
            raise ValueError(f"Detections: expected shapes [N, 4], [N], [N], got {got}")
        if num and (self.boxes_xyxy[:, 2:] < self.boxes_xyxy[:, :2]).any():
            raise ValueError("Detections: a box has x2 < x1 or y2 < y1")

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: np.ndarray) -> Detections:
        """Return the given rows (indices or mask), in that order."""
        return Detections(self.boxes_xyxy[rows], self.scores[rows], self.labels[rows])

    @classmethod
    def empty(cls) -> Detections:
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True)
class ImageSignals:
    """Everything stage one knows about one image: one record of a shard. Features are float16, as on disk.

    Args:
        image_id: The stable key that joins records of one image.
        size_hw: int32 [2], pixels.
        detections: All detections above the storing threshold.
        pairs_ho: int32 [P, 2], rows of `detections`: the human, the object. Both are the same for interactions without
            object, which only some vocabularies have.
        image_embedding: [D] unit-norm teacher embedding of the whole image.
        image_similarity: [K] cosine of it to the interaction texts.
        union_embedding: [P, M, D] unit-norm teacher embeddings of the union crop, one per crop margin.
        union_similarity: [P, M, K] cosine of them to the interaction texts.
        detection_feature: [N, L, D] unit-norm region features of every detection, in the joint space; a level made of
            crops is zero for detections in no pair.
        union_feature: [P, L, D] unit-norm region features of every pair's union box.
        spatial_map: [C, H, W], the teacher's last spatial map; None if the config asks for none.
    """

    image_id: str
    size_hw: np.ndarray
    detections: Detections
    pairs_ho: np.ndarray
    image_embedding: np.ndarray
    image_similarity: np.ndarray
    union_embedding: np.ndarray
    union_similarity: np.ndarray
    detection_feature: np.ndarray
    union_feature: np.ndarray
    spatial_map: np.ndarray | None = None

    def __post_init__(self) -> None:
        num_pairs, num = len(self.pairs_ho), len(self.detections)
        for name in ("union_embedding", "union_similarity", "union_feature", "detection_feature"):
            rows, expected = len(getattr(self, name)), num if name == "detection_feature" else num_pairs
            if rows != expected:
                raise ValueError(f"ImageSignals of {self.image_id}: {name} has {rows} rows, expected {expected}")
        if num_pairs and (self.pairs_ho.min() < 0 or self.pairs_ho.max() >= num):
            raise ValueError(f"ImageSignals of {self.image_id}: a pair names a detection outside 0..{num - 1}")


@dataclass(frozen=True)
class VisualHead:
    """The teacher's frozen last layers, from one cell of its spatial map to the joint space.

    A cell x becomes the token y (ResNet: x · value, with the attention pool's value; ViT: its final norm; else x), and
    y · projection is the joint vector. The last row of every matrix is its bias.

    Args:
        projection: float32 [C + 1, D].
        value: float32 [C + 1, C] of a ResNet's attention pool, or None.
        norm: float32 [2, C], weight and bias of a ViT's final LayerNorm (ε = 1e-5), or None.
    """

    projection: np.ndarray
    value: np.ndarray | None = None
    norm: np.ndarray | None = None

    def __post_init__(self) -> None:
        width = len(self.projection) - 1
        for name, shape in (("value", (width + 1, width)), ("norm", (2, width))):
            matrix = getattr(self, name)
            if matrix is not None and matrix.shape != shape:
                raise ValueError(f"VisualHead: {name} has shape {matrix.shape}, expected {shape}")


MAX_LOGIT = 1e4
"""CLIP's scale ends at 100, SigLIP's near 120 with a bias of -17."""


@dataclass(frozen=True)
class TextBank:
    """The interaction texts in the teacher's joint space, and how the teacher turns cosine into a score.

    Args:
        text_embedding: float32 [K, D], unit norm: the knowledge bank W.
        logit_scale: Factor on cosine (already exponentiated).
        logit_bias: Added after the factor for sigmoid-trained teachers (SigLIP); None for softmax-trained ones (CLIP).
        prompts: K lists of the texts whose mean each row is.
        visual: Takes a cell of `spatial_map` to the joint space; None without a cached map or such layers.
    """

    text_embedding: np.ndarray
    logit_scale: float
    logit_bias: float | None
    prompts: tuple[tuple[str, ...], ...]
    visual: VisualHead | None = None

    def check(self, num_interactions: int) -> None:
        """Raise a ValueError unless all of it is finite float32 of one width, for this number of interactions."""
        scale, bias = self.logit_scale, self.logit_bias or 0.0
        if not all(isinstance(value, float) and abs(value) <= MAX_LOGIT for value in (scale, bias)):
            raise ValueError(f"logit_scale {scale} and logit_bias {bias} are no numbers up to {MAX_LOGIT:g}")
        embedding = self.text_embedding
        if embedding.ndim != 2 or len(embedding) != num_interactions or len(self.prompts) != num_interactions:
            got = f"texts of shape {embedding.shape} and {len(self.prompts)} prompts"
            raise ValueError(f"{got} for {num_interactions} interactions")
        tables = [embedding, *(vars(self.visual).values() if self.visual else ())]
        if any(table is not None and table.dtype != np.float32 for table in tables):
            raise ValueError("a table of texts is not of float32")
        if not all(np.isfinite(table).all() for table in tables if table is not None):
            raise ValueError("a table of texts is not finite")


@dataclass(frozen=True)
class PairBatch:
    """A batch of B images with their P pairs in flat arrays, on one device: the input of a student.

    Args:
        image_rows: int64 [B], rows of the split.
        size_hw: float32 [B, 2].
        image_embedding: [B, D].
        image_similarity: [B, K].
        pair_image: int64 [P], ascending, 0..B-1: the image of each pair.
        boxes_h, boxes_o: float32 [P, 4].
        scores_h, scores_o: float32 [P].
        labels_o: int64 [P], rows of `Vocabulary.objects`; `no_object` for a human paired with itself.
        pair_rows: int64 [P], rows of the split's pair table.
        rows_h, rows_o: int64 [P], rows of the split's detection table; equal for pairs that share a human or object.
        human_feature, object_feature, union_feature: [P, L, D].
        union_similarity: [P, M, K].
        extra: Other cached fields that a student or teacher asked for, by name; rows are images or pairs.
    """

    image_rows: Tensor
    size_hw: Tensor
    image_embedding: Tensor
    image_similarity: Tensor
    pair_image: Tensor
    boxes_h: Tensor
    boxes_o: Tensor
    scores_h: Tensor
    scores_o: Tensor
    labels_o: Tensor
    pair_rows: Tensor
    rows_h: Tensor
    rows_o: Tensor
    human_feature: Tensor
    object_feature: Tensor
    union_feature: Tensor
    union_similarity: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return len(self.image_rows)

    @property
    def num_pairs(self) -> int:
        return len(self.pair_image)

    def to(self, device: torch.device | str) -> PairBatch:
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self) if f.name != "extra"}
        return replace(self, **moved, extra={name: value.to(device) for name, value in self.extra.items()})


BranchScores = dict[str, Tensor]
"""[P, K] scores in [0, 1] of a batch's pairs by row name: each branch alone and, as `student`, their fusion."""


@dataclass(frozen=True)
class HoiLabels:
    """Annotated interactions of a split in flat arrays, for evaluation and supervised runs alone.

    Args:
        image: int64 [R], row of the split.
        boxes_h, boxes_o: float32 [R, 4], pixel-edge xyxy.
        interaction: int64 [R], 0..K-1; a pair with several interactions has several rows. Interactions without object
            have the human's box twice.
    """

    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    interaction: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Triplets:
    """Scored ⟨human, verb, object⟩ predictions of a split in flat arrays.

    Args:
        image: int64 [R], row of the split.
        boxes_h, boxes_o: float32 [R, 4], pixel-edge xyxy.
        interaction: int64 [R].
        score: float32 or float64 [R]; only its order within an interaction matters.
    """

    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    interaction: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        num = len(self.image)
        for f in fields(self):
            if len(getattr(self, f.name)) != num:
                raise ValueError(f"Triplets: {f.name} has {len(getattr(self, f.name))} rows, expected {num}")
        if not np.isfinite(self.score).all():
            raise ValueError("Triplets: a score is NaN or infinite")

    def __len__(self) -> int:
        return len(self.image)
