"""Small open_clip models with random weights, written as `local-dir:` folders: every kind of image tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hoi.config import TeacherConfig

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "vit": {"image_size": 64, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2},
    "vit_average": {
        "image_size": 64,
        "patch_size": 16,
        "width": 32,
        "head_width": 16,
        "layers": 2,
        "pool_type": "avg",
    },
    "vit_attention": {
        "image_size": 64,
        "patch_size": 16,
        "width": 32,
        "head_width": 16,
        "layers": 2,
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
    },
    "timm_convolution": {
        "image_size": 64,
        "timm_model_name": "mobilenetv2_050",
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "timm_map_pool": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": "map",
        "timm_proj": "",
    },
}
"""Tower kinds of `hoi.teachers.towers`; the pooling decides how a region ends in the joint space."""


def write_model(folder: Path, kind: str = "resnet") -> str:
    """Writes a model without weights; gives the name under which `pretrained: random` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = {"embed_dim": 16, "vision_cfg": VISION[kind], "text_cfg": TEXT}
    plain = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}}
    (folder / "open_clip_config.json").write_text(json.dumps(plain))
    return f"local-dir:{folder}"


def teacher_config(folder: Path, kind: str = "resnet", **settings: Any) -> TeacherConfig:
    """A teacher section for such a model."""
    plain = {"model": write_model(folder / kind, kind), "pretrained": "random", "batch_size": 8, **settings}
    return TeacherConfig.model_validate(plain)
