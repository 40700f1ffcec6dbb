"""The whole main job on a few drawn scenes, with the world's own detector and CLIP: cache, students, result table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoi.cache.build import run as teacher_cache
from hoi.config import PipelineConfig, load_config
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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """The shipped pipeline on few scenes, with all three stages done."""
    folder = tmp_path_factory.mktemp("pipeline")
    config = load_config(ROOT / "pipeline.yaml", [*FEW, f"output={folder}", f"cache.folder={folder / 'cache'}"])
    teacher_cache.build_cache(config)
    train.train_students(config)
    evaluate(config)
    return config


def shards(config: PipelineConfig) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(config.cache.folder).rglob("*.h5")}


def test_the_table_has_every_promised_row(config: PipelineConfig) -> None:
    rows = json.loads((Path(config.output) / "results.json").read_text())
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


def test_finished_parts_are_kept_and_a_lost_shard_is_built_alone(config: PipelineConfig) -> None:
    before = shards(config)
    assert len(before) == (3 + 2 + 2) + 2 * 3, "each split has a bank and an index beside its shards"
    assert "nothing to do" in str(teacher_cache.build_cache(config))
    assert [run.seconds for run in train.train_students(config).runs] == [None] * len(config.students)
    lost = Path(config.cache.folder) / "train" / "shard-00001.h5"
    lost.unlink()
    assert [split.num_built for split in teacher_cache.build_cache(config).splits] == [1, 0, 0]
    assert shards(config) == before
