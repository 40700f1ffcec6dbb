"""The whole main job on a few drawn scenes, with the world's own detector and CLIP: cache, students, result table."""

from __future__ import annotations

import json
from pathlib import Path

from hoi.cache.build import run as teacher_cache
from hoi.config import load_config
from hoi.config.section import reserved_rows
from hoi.evaluation.evaluate import evaluate
from hoi.training import train

ROOT = Path(__file__).parents[2]
CLIP_ROWS = {"detector_prior", "direct_clip", "direct_clip_tuned"}
ROWS = CLIP_ROWS | {"global", "union", "human_object", "student", "supervised"}
FEW = [
    "dataset.splits={train: 16, validation: 12, test: 12}",
    "cache.scheduler=synchronous",
    "cache.images_per_shard=6",
    "train.seeds=[0]",
    "train.epochs=2",
    "evaluation.bootstrap=20",
]


def test_the_table_has_every_promised_row(tmp_path: Path) -> None:
    config = load_config(ROOT / "pipeline.yaml", [*FEW, f"output={tmp_path}", f"cache.folder={tmp_path / 'cache'}"])
    teacher_cache.build_cache(config)
    train.train_students(config)
    evaluate(config)
    rows = json.loads((tmp_path / "results.json").read_text())
    by_name = {row["name"]: row for row in rows}
    assert len(by_name) == len(rows)
    assert set(by_name) >= ROWS
    # No student of the pipeline file may take the name of another row.
    assert {name for name in by_name if "/" not in name} <= reserved_rows() | set(config.students)
    for name in ROWS:
        row = by_name[name]
        assert row["seed"] == (None if name in CLIP_ROWS else 0)
        for mean in ("full", "rare", "non_rare"):
            assert row[mean] is None or 0 <= row[mean] <= 100
        assert row["full"] is not None
    # What a vocabulary of 70 interactions leaves to chance lies far below what the teacher sees.
    assert by_name["direct_clip"]["full"] > by_name["detector_prior"]["full"] + 10
    assert by_name["student"]["full"] > by_name["detector_prior"]["full"]
