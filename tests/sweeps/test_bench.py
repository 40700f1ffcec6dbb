"""The bench over two worlds of a handful of scenes: what it writes, what it keeps, and what a failed run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hoi.errors import UserError
from hoi.evaluation.baselines import baseline_names
from hoi.files import sole_writer
from hoi.sweeps import run as sweep_runs
from hoi.sweeps.bench import run_bench
from hoi.sweeps.plan import Bench, load_bench
from hoi.training.train import train_run
from tests.fakes.extractors import DrawnSignals
from tests.fakes.pipelines import refused, small_pipeline, write_pipeline

ROWS: list[dict[str, Any]] = [
    {"name": "plain", "student": {"width": 16}},
    {"name": "alone", "from": "plain", "student": {"score.weights.union": 0.0}},
]
WORLDS = [{"seed": 3}, {"seed": 7}]


def bench_file(folder: Path, **changes: Any) -> Path:
    """A bench file, and the pipeline that it is based on, in a folder."""
    base = write_pipeline(small_pipeline(folder, evaluation={"bootstrap": 20}), folder / "pipeline.yaml")
    plain = {
        "name": "small",
        "base": str(base),
        "output": str(folder / "bench"),
        "worlds": WORLDS,
        "against": "direct_clip_tuned",
        "seeds": [0, 1],
        "rows": ROWS,
        "differences": [
            {"better": "alone", "than": "direct_clip_tuned", "means": ["full", "several_pairs"]},
            {"better": "alone", "than": "plain"},
        ],
        "headroom": [{"of": "alone", "start": "detector_prior"}],
        **changes,
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def load(folder: Path, **changes: Any) -> Bench:
    return load_bench(bench_file(folder, **changes), ["train.epochs=1"])


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / "bench" / name).read_text())


def times(folder: Path) -> dict[Path, int]:
    kept = [path for path in folder.rglob("*") if path.suffix in (".h5", ".safetensors") or "grade-" in path.name]
    assert len(kept) > 10
    return {path: path.stat().st_mtime_ns for path in kept}


def test_a_bench_has_every_row_and_is_kept(tmp_path: Path) -> None:
    report = run_bench(load(tmp_path), DrawnSignals)
    rows = written(tmp_path, "results.json")
    names = [*baseline_names({}), "plain", "plain", "alone", "alone", "labels_on_detections"]
    assert [(row["world"], row["name"]) for row in rows] == [(seed, name) for seed in (3, 7) for name in names]
    assert {"full", "rare", "several_pairs", "num_images", "num_positives", "knobs", "audit"} < set(rows[0])
    found = {(row["world"], row["name"], row["seed"]): row for row in rows}
    assert found[3, "alone", 0]["full"] != found[3, "alone", 1]["full"] != found[7, "alone", 1]["full"]
    for seed in (3, 7):
        best = max(row["full"] for row in rows if row["world"] == seed)
        # Every annotated box is found here.
        assert found[seed, "labels_on_detections", None]["full"] == best == 100

    for summary in written(tmp_path, "summary.json")["worlds"]:

        def mean(name: str, column: str, seed: int = summary["world"]) -> float:
            return float(np.mean([row[column] for row in rows if (row["world"], row["name"]) == (seed, name)]))

        for shown in summary["comparisons"]:
            difference = mean(shown["better"], shown["measure"]) - mean(shown["than"], shown["measure"])
            assert shown["observed"] == pytest.approx(difference, abs=1e-3)
            assert shown["low"] <= shown["high"]
        assert [shown["measure"] for shown in summary["comparisons"]] == ["full", "several_pairs", "full"]
        (way,) = summary["headroom"]
        start = mean("detector_prior", "full")
        assert way["share"] == pytest.approx(100 * (mean("alone", "full") - start) / (100 - start), abs=1e-2)

    table = (tmp_path / "bench/table.md").read_text()
    assert "## World 7\n\nworld 7, split test: 6 images" in table
    assert "- alone − direct_clip_tuned, 2+ pairs: " in table
    assert table.count("    labels_on_detections") == 2
    assert str(report).count("% of the way from detector_prior to labels_on_detections") == 2

    before, results = times(tmp_path), (tmp_path / "bench/results.json").read_bytes()
    (left := tmp_path / "bench/.table.md.0123.part").write_bytes(b"half")
    with sole_writer(tmp_path / "bench"):
        assert refused(run_bench, load(tmp_path)).where == tmp_path / "bench"
    run_bench(load(tmp_path), DrawnSignals)
    assert not left.exists()
    assert times(tmp_path) == before
    assert (tmp_path / "bench/results.json").read_bytes() == results


def test_a_run_that_fails_leaves_the_rest_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = train_run

    def fails(config: Any, name: str, seed: int, *rest: Any, **further: Any) -> float | None:
        if seed == 1:
            raise UserError("the loss is no longer finite")
        return usual(config, name, seed, *rest, **further)

    monkeypatch.setattr(sweep_runs, "train_run", fails)
    report = run_bench(load(tmp_path, worlds=[{"seed": 0}]), DrawnSignals)
    assert report.has_failed
    assert "failed: alone seed 1: the loss is no longer finite" in str(report)
    assert [failed["name"] for failed in written(tmp_path, "summary.json")["worlds"][0]["failed"]] == ["plain", "alone"]
    rows = written(tmp_path, "results.json")
    assert [row["seed"] for row in rows if row["name"] == "alone"] == [0]


def test_mistakes_in_a_bench_file_are_named(tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str, str]] = [
        ({"worlds": [{"seed": 3}, {"seed": 3}]}, "a world is there twice", "worlds"),
        ({"differences": [{"better": "along", "than": "plain"}]}, "not there", "differences.0.better"),
        ({"headroom": [{"of": "plain", "start": "alone", "goal": "labels"}]}, "not there", "headroom.0.goal"),
        ({"differences": [{"better": "alone", "than": "plain", "means": [""]}]}, "value", "differences.0.means.0"),
        ({"world": []}, "unknown key", "world"),
    ]
    for change, what, key in changes:
        error = refused(load, tmp_path, **change)
        assert what in error.what
        assert f"key '{key}'" in str(error.where)
    error = refused(load_bench, bench_file(tmp_path), ["train.epochs=1", "output=elsewhere"])
    assert (error.where, "set 'output' in" in str(error.fix)) == ("the command line", True)


def test_worlds_differ_in_seed_cache_and_output_alone(tmp_path: Path) -> None:
    loaded = load(tmp_path, worlds=[{"seed": 0, "cache": "elsewhere"}, {"seed": 7}])
    first, second = (sweep.config for sweep in loaded.sweeps.values())
    assert (first.cache.folder, second.cache.folder) == ("elsewhere", f"{tmp_path}/bench/world-7/cache")
    assert (first.output, second.output) == tuple(f"{tmp_path}/bench/world-{seed}" for seed in (0, 7))
    assert first.evaluation.intervals == ["several_pairs"]
    plain = [config.model_dump(exclude={"output", "cache"}) for config in (first, second)]
    assert plain[1].pop("dataset") == plain[0].pop("dataset") | {"seed": 7}
    assert plain[0] == plain[1]


def test_the_shipped_bench_has_the_rows_of_the_docs() -> None:
    loaded = load_bench("examples/bench.yaml")
    assert list(loaded.sweeps) == [0, 20261121]
    for sweep in loaded.sweeps.values():
        assert {"faithful", "best", "best_two_branches", "supervised"} < {row.name for row in sweep.rows}
        assert len(sweep.config.train.seeds) >= 5
        best = next(row for row in sweep.rows if row.name == "best")
        assert best.student == sweep.config.students["best"]
