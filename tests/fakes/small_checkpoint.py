"""A few scenes of the embedded world through cache, training and checkpoint, once for the tests of a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoi.cache.build import run as teacher_cache
from hoi.config import PipelineConfig, parse_config
from hoi.prediction.export import write_checkpoint
from hoi.training import train

WEIGHTS = Path(__file__).parents[2] / "hoi/world/weights"


def small_world(folder: Path, **sections: Any) -> PipelineConfig:
    """A pipeline on a handful of scenes, with students that read one crop of a union, and all of them."""
    student = {"width": 16, "gate_exponent": 0.5, "score_exponent": 0.7}
    plain: dict[str, Any] = {
        "name": "small world",
        "output": str(folder / "out"),
        "dataset": {"name": "world", "splits": {"train": 6, "validation": 1, "test": 10}},
        "detector": {"name": "world", "weights": str(WEIGHTS / "detector.safetensors")},
        "teacher": {
            "model": f"local-dir:{WEIGHTS / 'clip'}",
            "image_size_px": 128,
            "crop": {"margins": [1.15, 1.4]},
            "batch_size": 32,
        },
        "cache": {"folder": str(folder / "cache"), "scheduler": "synchronous", "device": "cpu"},
        "students": {
            "first": student,
            "best": {**student, "union_views": "all", "score_spatial_weight": 0.5, "image_target": "pairs"},
        },
        "train": {"seeds": [3], "epochs": 2, "batch_images": 4, "device": "cpu"},
        "evaluation": {"bootstrap": 20},
    }
    return parse_config({**plain, **sections}, "small world")


def trained_world(folder: Path, **sections: Any) -> PipelineConfig:
    """The same with its cache built, its students trained, and the checkpoint of `best` in `folder/checkpoint`."""
    config = small_world(folder, **sections)
    teacher_cache.main(config)
    train.main(config)
    write_checkpoint(config, out=folder / "checkpoint")
    return config
