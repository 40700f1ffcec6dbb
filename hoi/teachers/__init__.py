"""Frozen image-text models: embeddings of crops, whole images and regions in one space with texts.

Another kind is one more module and a line in `hoi.registry.TEACHERS`.

Shapes: B images or crops, S side of a crop in pixels, D joint width, L levels of region features, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from hoi.config import TeacherConfig
from hoi.crops import CropStyle
from hoi.records import TextBank
from hoi.registry import load_target
from hoi.vocabulary import Vocabulary


@dataclass(frozen=True)
class WholeImages:
    """What one pass over whole images gives, before any region is asked for."""

    embedding: Tensor
    """float32 [B, D], unit norm."""
    maps: tuple[Tensor, ...]
    """Spatial maps [B, C, H, W], earlier ones first; the last one is what a cache may store."""


@runtime_checkable
class Teacher(Protocol):
    """A frozen image-text model."""

    crop_style: CropStyle
    """How crops are to be cut."""
    image_size_px: int
    """Side of the padded square that whole images are resized to."""
    levels: tuple[str, ...]
    """L names of the region features."""

    def text_bank(self, vocabulary: Vocabulary) -> TextBank: ...

    def encode_crops(self, crops: Tensor) -> Tensor:
        """Embed uint8 [B, 3, S, S] RGB as float32 [B, D], unit norm."""

    def encode_images(self, images: Tensor) -> WholeImages:
        """Embed uint8 [B, 3, `image_size_px`, `image_size_px`] RGB."""

    def encode_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Embed regions, float32 [R, 5] (row of the maps, xyxy in input pixels), as float32 [R, L, D], unit norm."""

    def provenance(self) -> dict[str, object]:
        """Return all that changes what is encoded, in plain JSON types and free of paths."""


def build_teacher(config: TeacherConfig, device: str) -> Teacher:
    """Return the teacher of a pipeline file, ready to run on `cpu` or `cuda`.

    Raises UserError: an unknown model, weights that are missing or do not fit, or a precision that is too low.
    """
    return load_target(config.IMPLEMENTATION)(config, device)
