"""Teachers by kind: embeddings of crops, whole images and regions in one space with texts.

A further one is a module and a line in `hoi.registry`.

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
    """What one pass over whole images gives, before any region is asked for.

    Args:
        embedding: float32 [B, D], unit norm.
        maps: Spatial maps [B, C, H, W], earlier ones first; the last one is what a cache may store.
    """

    embedding: Tensor
    maps: tuple[Tensor, ...]


@runtime_checkable
class Teacher(Protocol):
    """A frozen image-text model."""

    crop_style: CropStyle
    """How crops are to be cut."""
    image_size_px: int
    """Side of the padded square that whole images are resized to."""
    levels: tuple[str, ...]
    """L names of the region features."""

    def text_bank(self, vocabulary: Vocabulary) -> TextBank:
        """Return the embeddings of the prompts of each interaction."""
        ...

    def encode_crops(self, crops: Tensor) -> Tensor:
        """Return float32 [B, D], unit norm, of uint8 [B, 3, S, S] RGB."""
        ...

    def encode_images(self, images: Tensor) -> WholeImages:
        """Return embeddings and maps of uint8 [B, 3, `image_size_px`, `image_size_px`] RGB."""
        ...

    def encode_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Return float32 [R, L, D], unit norm, of regions, float32 [R, 5] (row of the maps, xyxy in input pixels)."""
        ...

    def provenance(self) -> dict[str, object]:
        """Return everything that changes what is encoded, in plain JSON types and free of paths."""
        ...


def build_teacher(config: TeacherConfig, device: str) -> Teacher:
    """Return the teacher of a pipeline file, ready to run on `cpu` or `cuda`.

    Raises:
        UserError: an unknown model, weights that are missing or do not fit, or a precision that is too low.
    """
    teacher: Teacher = load_target(config.IMPLEMENTATION)(config, device)
    return teacher
