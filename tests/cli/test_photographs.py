"""Real photographs: the example, a folder of one's own with phrases, and full-size architectures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import CacheSplit
from hoi.cli import run_verb
from hoi.config import PipelineConfig, load_config
from hoi.datasets import load_vocabulary
from hoi.evaluation.evaluate import evaluate
from hoi.quality.run import measure_quality
from hoi.records import PairBatch
from hoi.training import train

pytestmark = pytest.mark.skipif(
    "HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no folder of photographs and weights"
)
ROOT = Path(__file__).parents[2]
NUM_PHOTOGRAPHS, NUM_OWN = 20, 16
HOICLIPS: dict[str, Any] = {
    "hoiclip_teacher": {"method": "hoiclip"},
    "hoiclip_labels": {"method": "hoiclip", "supervision": "labels"},
}
PHRASES = """
riding a motorbike
sitting on a chair | seated on a chair
holding a cup
talking on the phone
wearing a tie
hugging a person
"""
SMALL = ["pairs.max_humans=2", "pairs.max_objects=2", "cache.scheduler=synchronous", "cache.device=cpu"]


def example(folder: Path, monkeypatch: pytest.MonkeyPatch, num: int, *overrides: str) -> PipelineConfig:
    """The example's pipeline on its first annotated photographs, with all that it writes below a folder."""
    data = Path(os.environ["HOI_CHECK_DATA"])
    photos = folder / "photos"
    (photos / "images").mkdir(parents=True)
    for name in ("instances.json", "detections_yolox_nano.json"):
        shutil.copy(data / "photos" / name, photos)
    annotated = json.loads((data / "photos" / "vcoco_pairs.json").read_text())["images"][:num]
    (photos / "vcoco_pairs.json").write_text(json.dumps({"images": annotated}))
    for image in annotated:
        shutil.copy(data / "photos" / "images" / image["file_name"], photos / "images")
    command = [sys.executable, str(ROOT / "examples/photographs.py"), str(photos), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{sum(len(image['pairs']) for image in annotated)} annotated interactions" in done.stdout
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PHOTOS", str(photos))
    monkeypatch.setenv("CLIP", str(data / "clip_standin"))
    places = [
        f"output={folder / 'out'}",
        f"cache.folder={folder / 'cache'}",
        f"dataset.annotations={folder / 'annotations.jsonl'}",
        f"dataset.vocabulary={ROOT / 'examples/photographs_vocabulary.yaml'}",
    ]
    return load_config(ROOT / "examples/photographs.yaml", [*places, *SMALL, *overrides])


def checked_batch(split: CacheSplit, *extra: str) -> PairBatch:
    """Return the whole split as one batch, whose features are of length one."""
    batch = split.batch(np.arange(split.num_images), extra)
    for features in (batch.union_feature, batch.human_feature, batch.object_feature, batch.image_embedding):
        assert features.shape[-1] == split.axes["D"]
        assert abs(features.norm(dim=-1) - 1).max() < 2e-3
    return batch


@pytest.mark.slow
def test_the_example_runs_through_all_three_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = example(tmp_path, monkeypatch, NUM_PHOTOGRAPHS, "train.epochs=2", "evaluation.bootstrap=20")
    splits = teacher_cache.build_cache(config).splits
    assert sum(split.num_images for split in splits) == NUM_PHOTOGRAPHS
    for report in splits:
        assert report.num_failed == 0
        assert report.num_pairs > report.num_images / 2
        split = CacheSplit.open(config.cache.folder, report.split, config=config)
        assert split.is_readable.all()
        assert (split.axes["D"], split.axes["K"]) == (256, len(load_vocabulary(config.dataset)))
        checked_batch(split)
    train.train_students(config)
    evaluate(config)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    names = {row["name"]: row for row in rows}
    assert {"detector_prior", "direct_clip", "direct_clip_tuned", "global", "union", "human_object"} < set(names)
    assert names["student"]["seed"] == 0
    assert all(0 <= row["full"] <= 100 and row["num_positives"] > 5 for row in rows)
    assert len({row["full"] for row in rows}) > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axes"),
    [
        ("RN50-quickgelu", {"D": 1024, "C": 2048, "H": 7, "W": 7, "L": 3}),
        ("ViT-B-16-quickgelu", {"D": 512, "C": 768, "H": 14, "W": 14, "L": 2}),
    ],
)
def test_full_size_architectures_give_maps_to_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, axes: dict[str, int]
) -> None:
    teacher = {"model": model, "pretrained": "random", "spatial_map": True, "batch_size": 4, "regions": ["map", "crop"]}
    few = ["pairs.max_humans=1", "pairs.max_objects=1", "dataset.splits={train: 0.5, validation: 0.2, test: 0.3}"]
    names = ["evaluation.split=test", "evaluation.tune_split=validation"]
    settings = ["train.epochs=1", "train.seeds=[0]", "evaluation.bootstrap=5", f"students={json.dumps(HOICLIPS)}"]
    config = example(tmp_path, monkeypatch, 6, f"teacher={json.dumps(teacher)}", *few, *names, *settings)
    assert all(report.num_failed == 0 for report in teacher_cache.build_cache(config).splits)
    split = CacheSplit.open(config.cache.folder, config.train.split, config=config)
    assert {letter: split.axes[letter] for letter in axes} == axes
    batch = checked_batch(split, "spatial_map")
    assert batch.union_feature.shape == (split.num_pairs, axes["L"], axes["D"])
    spatial_map = batch.extra["spatial_map"]
    assert spatial_map.shape == (split.num_images, axes["C"], axes["H"], axes["W"])
    assert spatial_map.isfinite().all()
    assert spatial_map.std() > 0
    train.train_students(config)
    evaluate(config)
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert all(0 <= rows[name]["full"] <= 100 for name in HOICLIPS)


@pytest.mark.slow
def test_a_folder_and_phrases_become_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(os.environ["HOI_CHECK_DATA"])
    photos, phrases = tmp_path / "photos", tmp_path / "phrases.txt"
    photos.mkdir()
    for path in sorted((data / "photos" / "images").iterdir())[:NUM_OWN]:
        shutil.copy(path, photos)
    phrases.write_text(PHRASES)
    monkeypatch.chdir(tmp_path)
    options = {
        "name": "mine",
        "images": photos,
        "phrases": phrases,
        "detector": data / "photos" / "detections_yolox_nano.json",
        "instances": data / "photos" / "instances.json",
        "clip": f"local-dir:{data / 'clip_standin'}",
        "out": tmp_path,
    }
    assert run_verb(["new", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]) == 0
    places = [f"output={tmp_path / 'out'}", f"cache.folder={tmp_path / 'cache'}"]
    config = load_config(tmp_path / "mine.yaml", [*SMALL, "teacher.batch_size=8", "train.epochs=2", *places])
    splits = teacher_cache.build_cache(config).splits
    assert sum(split.num_images for split in splits) == NUM_OWN
    train.train_students(config)
    assert "no average precision" in str(evaluate(config))
    said = str(measure_quality(config, sample=1))
    assert "hug person" in said
    content = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert content["scorers"]["student"]["phrases"][-1]["num_pairs"] > 0
