"""Frozen image-text models: embeddings of crops, whole images and regions in one space with texts.

Another kind is one more module and a line in `hoi.registry.TEACHERS`.

Shapes: B images or crops, S side of a crop in pixels, D joint width, L levels of region features, R regions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from msgspec import Meta, Struct
from torch import Tensor

from hoi.config import TeacherConfig
from hoi.crops import CropStyle
from hoi.errors import UserError
from hoi.files import convert, find_local, parse_json, read_bytes
from hoi.records import TextBank
from hoi.registry import load_target
from hoi.vocabulary import Vocabulary

CONFIG_FILE = "open_clip_config.json"
_Size = Annotated[int, Meta(ge=1, le=1 << 20)]
_Layers = Annotated[int, Meta(ge=0, le=1000)]


class _Tower(Struct):
    width: _Size | None = None
    layers: _Layers | list[_Layers] | None = None
    image_size: _Size | list[_Size] | None = None
    patch_size: _Size | list[_Size] | None = None


class _ModelConfig(Struct):
    embed_dim: _Size
    vision_cfg: _Tower
    text_cfg: _Tower
    multimodal_cfg: _Tower | None = None


_Mean = Annotated[float, Meta(ge=0, le=1)]
_Std = Annotated[float, Meta(gt=0, le=100)]


class _Preprocessing(Struct):
    mean: tuple[_Mean, _Mean, _Mean] | None = None
    std: tuple[_Std, _Std, _Std] | None = None
    size: _Size | list[_Size] | None = None
    mode: Literal["RGB"] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class _LocalConfig(Struct):
    model_cfg: _ModelConfig
    preprocess_cfg: _Preprocessing | None = None


def read_local_config(name: str) -> dict[str, Any]:
    """Return the model config in a `local-dir:` folder; a UserError if it is missing, damaged or unreasonable."""
    file = find_local(name) / CONFIG_FILE
    if not os.path.lexists(file):
        problem = "this is no folder of an open_clip model"
        raise UserError(problem, where=file.parent, expected=CONFIG_FILE, fix="check teacher.model")
    try:
        content = parse_json(read_bytes(file, CONFIG_FILE))
        convert(content, _LocalConfig)
    except ValueError as error:
        raise UserError("this is no open_clip model config", where=file, got=str(error)[:300]) from None
    return content["model_cfg"]


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
