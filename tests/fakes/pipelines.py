"""Small pipelines: of tiny photographs, and of a handful of scenes of the embedded world."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hoi.cache.build import run as teacher_cache
from hoi.config import PipelineConfig, parse_config
from hoi.errors import UserError
from hoi.evaluation.rows import MEANS
from hoi.prediction.export import make_checkpoint
from hoi.training import train
from tests.fakes.extractors import RandomSignals, VlmSignalsOf

WEIGHTS = Path(__file__).parents[2] / "hoi/world/weights"


def refused(call: Callable[..., object], *arguments: Any, **options: Any) -> UserError:
    """Return the error, one line, with which a call tells its user's mistake."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def photo_pipeline(folder: Path, num_pairs: Sequence[int] = (2, 0, 1, 5, 3), **sections: Any) -> PipelineConfig:
    """Write tiny photographs and return a pipeline that reads them as its one split, `test`.

    Args:
        num_pairs: The number of pairs `RandomSignals` finds in each photograph (00.png, 01.png, ...).
        sections: Keys of the pipeline file that replace the small ones, section by section.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for row, pairs in enumerate(num_pairs):
        Image.fromarray(np.full((8, 9, 3), [pairs, row, 0], np.uint8)).save(images / f"{row:02d}.png")
    (folder / "vocabulary.yaml").write_text(
        "[{verb: ride, object: bicycle}, {verb: push, object: bicycle}, {verb: pet, object: dog}]"
    )
    plain: dict[str, Any] = {
        "name": "photos",
        "output": str(folder / "outputs"),
        "dataset": {
            "name": "folder",
            "images": str(images),
            "vocabulary": str(folder / "vocabulary.yaml"),
            "splits": {"test": 1.0},
        },
        "detector": {"name": "torchvision", "weights": "random"},
        "teacher": {"model": "RN50-quickgelu", "pretrained": "random"},
        "cache": {
            "folder": str(folder / "cache"),
            "scheduler": "synchronous",
            "device": "cpu",
            "images_per_shard": 2,
            "max_failed_share": 0.25,
        },
        "students": {"student": {}},
    }
    for name, section in sections.items():
        plain[name] = {**plain.get(name, {}), **section}
    return parse_config(plain, "photo pipeline")


def built_photos(
    folder: Path, num_pairs: Sequence[int] = (2, 0, 1, 5, 3), **sections: Any
) -> tuple[PipelineConfig, Path]:
    """Build the cache of a `photo_pipeline` with made-up signals; return the pipeline and its split's folder."""
    config = photo_pipeline(folder, num_pairs, **sections)
    teacher_cache.build_cache(config, RandomSignals, VlmSignalsOf(*config.vlms) if config.vlms else None)
    return config, Path(config.cache.folder) / "test"


def small_pipeline(folder: Path, **sections: Any) -> PipelineConfig:
    """Return a pipeline on a handful of scenes with cache and outputs below the folder, for `DrawnSignals`."""
    plain: dict[str, Any] = {
        "name": "small",
        "output": str(folder / "outputs"),
        "dataset": {"name": "world", "splits": {"train": 24, "validation": 10, "test": 6}},
        "detector": {"name": "world"},
        "teacher": {"model": f"local-dir:{WEIGHTS / 'clip'}"},
        "cache": {"folder": str(folder / "cache"), "scheduler": "synchronous", "device": "cpu"},
        "students": {"student": {"width": 32}, "supervised": {"width": 32, "supervision": "labels"}},
        "train": {"seeds": [0, 1], "epochs": 4, "batch_images": 8, "checkpoint_every": 2, "device": "cpu"},
    }
    return parse_config({**plain, **sections}, "small pipeline")


def write_pipeline(config: PipelineConfig, path: Path) -> Path:
    """Write the config as a pipeline file."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def small_world(folder: Path, **sections: Any) -> PipelineConfig:
    """Return a pipeline on a few scenes with the real models; `first` reads one union crop, `best` all of them."""
    student = {"width": 16, "gate": {"exponent": 0.5}, "score_exponent": 0.7}
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
            "best": {
                **student,
                "union_views": "all",
                "score": {"weights": {"spatial": 0.5}},
                "targets": {"image": "pairs"},
            },
        },
        "train": {"seeds": [3], "epochs": 2, "batch_images": 4, "device": "cpu"},
        "evaluation": {"bootstrap": 20},
    }
    return parse_config({**plain, **sections}, "small world")


def trained_world(folder: Path, **sections: Any) -> PipelineConfig:
    """Build, train and export `small_world`: the checkpoint of `best` is in `folder/checkpoint`."""
    config = small_world(folder, **sections)
    teacher_cache.build_cache(config)
    train.train_students(config)
    make_checkpoint(config, out=folder / "checkpoint")
    return config


def split_files(folder: Path) -> dict[str, bytes]:
    """Return all files of a split but its journals and what was set aside."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".jsonl"}


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by their relative paths."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole_row(**given: Any) -> dict[str, Any]:
    """Return a row of results.json in which only what is given says anything."""
    nothing = {"num_positives": 1, "knobs": {}, "audit": {"labels_read": {}}}
    return {"seed": None, **dict.fromkeys(MEANS), **nothing, **given}


def whole_summary(**given: Any) -> dict[str, Any]:
    """Return a summary.json in which only what is given says anything."""
    numbers = dict.fromkeys(("num_images", "num_pairs"), 1)
    lists: dict[str, Any] = {key: [] for key in ("means", "comparisons", "against_direct")}
    maps: dict[str, Any] = {key: {} for key in ("agreement", "config", "zero_shot_dropped", "versions")}
    of_run = {"split": "test", "fingerprint": "", "commit": None, "device": "cpu"}
    return {**numbers, **lists, **maps, **of_run, **given}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


def swap(path: Path) -> None:
    """Replace a shard by the first one of its pass."""
    shutil.copy(path.with_name(path.name.replace("00001", "00000")), path)


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond this, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
