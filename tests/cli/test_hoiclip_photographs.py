"""HOICLIP at the paper's size on photographs: a full-size ViT's maps, both supervisions, stage three."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import CacheSplit
from hoi.evaluation.evaluate import evaluate
from hoi.training import train
from tests.cli.test_photographs import example

pytestmark = pytest.mark.skipif(
    "HOI_CHECK_DATA" not in os.environ, reason="HOI_CHECK_DATA names no folder of photographs and weights"
)
TEACHER = {"model": "ViT-B-32-quickgelu", "pretrained": "random", "spatial_map": True, "batch_size": 4}
STUDENTS: dict[str, Any] = {
    "hoiclip_teacher": {"method": "hoiclip"},
    "hoiclip_labels": {"method": "hoiclip", "supervision": "labels"},
}


def test_the_papers_student_learns_from_a_full_size_vits_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = ["pairs.max_humans=1", "pairs.max_objects=1", "dataset.splits={train: 0.5, validation: 0.2, test: 0.3}"]
    split_names = ["evaluation.split=test", "evaluation.tune_split=validation"]
    settings = ["train.epochs=1", "train.seeds=[0]", "evaluation.bootstrap=5", f"students={json.dumps(STUDENTS)}"]
    config = example(tmp_path, monkeypatch, 12, f"teacher={json.dumps(TEACHER)}", *pairs, *split_names, *settings)
    teacher_cache.build_cache(config)
    split = CacheSplit.open(config.cache.folder, config.train.split, config=config)
    assert {letter: split.axes[letter] for letter in "DCHW"} == {"D": 512, "C": 768, "H": 7, "W": 7}
    head = split.text_bank.visual
    assert (head.projection.shape, head.norm.shape, head.value) == ((769, 512), (2, 768), None)
    train.main(config)
    evaluate(config)
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())}
    for name in STUDENTS:
        assert math.isfinite(rows[name]["full"])
        assert 0 <= rows[name]["full"] <= 100
