"""From a folder of photographs and a list of phrases to trained student and estimate, from the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from hoi.cache.build import run as teacher_cache
from hoi.cli import run_verb
from hoi.config import load_config
from hoi.evaluation.evaluate import evaluate
from hoi.quality.run import measure_quality
from hoi.training import train

pytestmark = pytest.mark.skipif(
    "HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no folder of photographs and weights"
)
ROOT = Path(__file__).parents[2]
PHRASES = """
riding a motorbike
sitting on a chair | seated on a chair
holding a cup
talking on the phone
wearing a tie
hugging a person
"""
NUM_PHOTOGRAPHS = 16


def test_a_folder_and_phrases_come_out_as_a_student_and_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(os.environ["HOI_CHECK_DATA"])
    photos, phrases = tmp_path / "photos", tmp_path / "phrases.txt"
    photos.mkdir()
    for path in sorted((data / "photos" / "images").iterdir())[:NUM_PHOTOGRAPHS]:
        shutil.copy(path, photos)
    phrases.write_text(PHRASES)
    monkeypatch.chdir(ROOT)
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
    small = ["pairs.max_humans=2", "pairs.max_objects=2", "cache.scheduler=synchronous"]
    small += ["teacher.batch_size=8", "train.epochs=2"]
    places = [f"output={tmp_path / 'out'}", f"cache.folder={tmp_path / 'cache'}"]
    config = load_config(tmp_path / "mine.yaml", [*small, *places])
    splits = teacher_cache.build_cache(config).splits
    assert sum(split.num_images for split in splits) == NUM_PHOTOGRAPHS
    train.main(config)
    assert "no average precision" in str(evaluate(config))
    said = str(measure_quality(config, sample=1))
    assert "hug person" in said
    content = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert content["scorers"]["student"]["phrases"][-1]["num_pairs"] > 0
