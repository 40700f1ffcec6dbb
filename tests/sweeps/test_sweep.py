"""A sweep over a real cache of a handful of scenes: what is shared, what is kept, what fails, and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hoi.cli import run_verb
from hoi.evaluation.baselines import baseline_names
from hoi.evaluation.evaluate import evaluate
from hoi.files import sole_writer
from hoi.sweeps.plan import Sweep, load_sweep
from hoi.sweeps.run import run_sweep
from hoi.training.train import run_settings, train_students
from tests.fakes.pipelines import refused, small_pipeline, write_pipeline

ROWS: list[dict[str, Any]] = [
    {"name": "plain", "student": {"width": 16}},
    {"name": "alone", "from": "plain", "student": {"score": {"weights": {"union": 0.0}}}},
    {"name": "few", "from": "alone", "train": {"max_images": 6}},
]


def sweep_file(folder: Path, cache: dict[str, Any], **changes: Any) -> Path:
    """A sweep file, and the pipeline that it is based on, in a folder."""
    config = small_pipeline(folder, cache=cache, evaluation={"bootstrap": 20})
    base = write_pipeline(config, folder / "pipeline.yaml")
    plain = {"name": "tried", "base": str(base), "against": "plain", "seeds": [0, 1], "rows": ROWS, **changes}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def load(folder: Path, cache: dict[str, Any], *overrides: str, **changes: Any) -> Sweep:
    return load_sweep(sweep_file(folder, cache, **changes), ["train.epochs=1", *overrides])


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outputs/sweeps/tried/table.json").read_text())


def weights(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "outputs/sweeps/runs").glob("*/*/model.safetensors")}


def test_rows_share_runs_and_have_the_stages_figures(tmp_path: Path, cache: dict[str, Any]) -> None:
    table = run_sweep(load(tmp_path, cache))
    assert len(weights(tmp_path)) == 4
    assert table.runs["plain", 1] == table.runs["alone", 1] != table.runs["few", 1]
    assert table.graded["plain", 1].result.ap.tolist() != table.graded["alone", 1].result.ap.tolist()

    students = {row["name"]: row["student"] for row in written(tmp_path)["rows"] if row["name"] != "few"}
    config = small_pipeline(tmp_path / "by_stages", cache=cache, students=students, evaluation={"bootstrap": 20})
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1})})
    train_students(config)
    report = evaluate(config)
    for row in report.rows:
        if row.name in students:
            assert table.graded[row.name, row.seed].to_dict(6) == row.to_dict(6)
    for row, by_stages in zip(table.baselines, report.rows, strict=False):
        assert row.to_dict(6) == by_stages.to_dict(6)


def test_what_is_finished_is_kept_whatever_it_is_called(tmp_path: Path, cache: dict[str, Any]) -> None:
    first = run_sweep(load(tmp_path, cache))
    before, table = weights(tmp_path), (tmp_path / "outputs/sweeps/tried/table.csv").read_bytes()
    left = next(iter(before)).with_name(".grade-0.json.0123.part")
    left.write_bytes(b"half")
    with sole_writer(tmp_path / "outputs/sweeps"):
        assert refused(run_sweep, load(tmp_path, cache)).what == "another run writes into this folder"
    again = run_sweep(load(tmp_path, cache))
    assert not left.exists()
    assert (first.num_trained, again.num_trained) == (4, 0)
    assert (tmp_path / "outputs/sweeps/tried/table.csv").read_bytes() == table
    resampled = run_sweep(load(tmp_path, cache, "evaluation.bootstrap=10"))
    assert resampled.num_trained == 0
    assert len(resampled.graded["plain", 0].resampled.resampled) == 10
    assert resampled.graded["plain", 0].means == first.graded["plain", 0].means

    renamed = [{"name": "simple", "student": {"width": 16}}, {**ROWS[2], "from": "simple", "name": "fewer"}]
    renamed[1]["train"] = {"max_images": 3}
    other = run_sweep(load(tmp_path, cache, rows=renamed, against="simple"))
    assert other.num_trained == 2
    assert other.runs["simple", 0] == first.runs["plain", 0]
    assert other.graded["simple", 0].means == first.graded["plain", 0].means
    assert {path: time for path, time in weights(tmp_path).items() if path in before} == before


def test_a_failed_run_is_listed_and_stops_nothing(
    tmp_path: Path, cache: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "broken", "train": {"learning_rate": 1e30, "batch_images": 2}}, *ROWS]
    path = sweep_file(tmp_path, cache, rows=rows)
    assert run_verb(["sweep", "--config", str(path), "train.epochs=2", "train.seeds=[0]"]) == 1
    assert "failed: broken seed 0: the loss is no longer finite" in capsys.readouterr().out
    rows_written = {row["name"]: row for row in written(tmp_path)["rows"]}
    assert rows_written["broken"]["means"]["full"] is None
    assert all(rows_written[name]["means"]["full"]["mean"] > 0 for name in ("plain", "alone", "few"))


def test_the_tables_hold_means_spread_and_paired_differences(tmp_path: Path, cache: dict[str, Any]) -> None:
    rows = [*ROWS, {"name": "supervised", "student": {"width": 16, "supervision": "labels"}}]
    table = run_sweep(load(tmp_path, cache, rows=rows))
    names = [*baseline_names({}), "plain", "alone", "few", "supervised"]
    folder = tmp_path / "outputs/sweeps/tried"
    with (folder / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == names
    full = [table.graded["alone", seed].means["full"] for seed in (0, 1)]
    by_name = {line["name"]: line for line in lines}
    assert float(by_name["alone"]["full_mean"]) == pytest.approx(sum(full) / 2, abs=1e-3)
    assert float(by_name["alone"]["full_sd"]) == pytest.approx(abs(full[0] - full[1]) / 2**0.5, abs=1e-3)
    against = [table.graded["plain", seed].means["full"] for seed in (0, 1)]
    assert float(by_name["alone"]["difference"]) == pytest.approx((sum(full) - sum(against)) / 2, abs=1e-3)
    assert by_name["plain"]["difference"] == ""
    assert by_name["few"]["changes"] == "from alone; train.max_images=6"
    assert [line.split(" | ")[0].strip("| ") for line in (folder / "table.md").read_text().splitlines()[4:]] == names
    record = next(row for row in written(tmp_path)["rows"] if row["name"] == "alone")
    assert record["difference"]["num_seeds"] == [2, 2]
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    tuned = next(row for row in written(tmp_path)["rows"] if row["name"] == "supervised")
    assert {run["knobs"]["tuned_on"] for run in tuned["runs"]} == {"validation"}


def test_a_grid_is_every_combination_named_after_its_values(tmp_path: Path, cache: dict[str, Any]) -> None:
    grid = {"from": "alone", "student": {"aggregation": ["max", "noisy_or"]}, "train": {"learning_rate": [1e-3, 2e-3]}}
    rows = load(tmp_path, cache, rows=ROWS[:2], grid=grid).rows
    assert [row.name for row in rows[2:]] == [
        "alone_aggregation-max_learning_rate-0.001",
        "alone_aggregation-max_learning_rate-0.002",
        "alone_aggregation-noisy_or_learning_rate-0.001",
        "alone_aggregation-noisy_or_learning_rate-0.002",
    ]
    student: Any = rows[-1].student
    assert (student.score.weights.union, student.aggregation) == (0.0, "noisy_or")
    assert (rows[-1].train.learning_rate, rows[-1].train.epochs) == (2e-3, 1)


@pytest.mark.parametrize(
    ("changes", "what", "where"),
    [
        ({"rowz": []}, "unknown key", "key 'rowz'"),
        ({"rows": [{"name": "a", "student": {"widht": 3}}]}, "unknown key", "key 'rows.0.student.widht'"),
        ({"rows": [{"name": "a", "train": {"epochs": "3"}}]}, "valid integer", "key 'rows.0.train.epochs'"),
        ({"rows": [{"name": "a", "train": {"seeds": [3]}}]}, "same seeds", "key 'rows.0.train.seeds'"),
        ({"rows": [{"name": "a", "from": "plian"}]}, "a row is named that is not there", "key 'rows.0.from'"),
        ({"rows": [ROWS[0], ROWS[0]]}, "two rows are called 'plain'", "sweep.yaml"),
        ({"rows": [{"name": "direct_clip"}]}, "another row of this name", "key 'rows.0.name'"),
        ({"against": "alon"}, "a row is named that is not there", "key 'against'"),
        ({"rows": [], "against": "direct_clip"}, "no row", "sweep.yaml"),
    ],
)
def test_a_wrong_sweep_file_is_one_line_that_names_the_key(
    tmp_path: Path, cache: dict[str, Any], changes: dict[str, Any], what: str, where: str
) -> None:
    error = refused(load, tmp_path, cache, **changes)
    assert what in error.what
    assert where in str(error.where)


def test_the_shipped_sweep_is_valid_and_about_sixty_runs() -> None:
    shipped = load_sweep(Path(__file__).parents[2] / "examples/ablation.yaml")
    trained = {
        json.dumps(run_settings(shipped.config_of(row), row.name, seed, ""), sort_keys=True)
        for row in shipped.rows
        for seed in shipped.config.train.seeds
    }
    assert 50 <= len(trained) <= 75
    assert len(shipped.rows) > 40


def test_a_sweep_needs_a_cache_and_annotations(tmp_path: Path, cache: dict[str, Any]) -> None:
    nowhere = {**cache, "folder": str(tmp_path / "nowhere")}
    assert refused(run_sweep, load(tmp_path, nowhere)).what == "there is no teacher cache"
    folder = {"name": "folder", "images": str(tmp_path), "vocabulary": "none.yaml"}
    config = small_pipeline(tmp_path / "photos", dataset=folder, cache=cache)
    plain = load(tmp_path, cache)
    assert "no annotations" in refused(run_sweep, Sweep(plain.name, config, plain.against, plain.rows)).what


@pytest.mark.slow
def test_workers_train_the_same_weights_as_this_process(tmp_path: Path, cache: dict[str, Any]) -> None:
    (tmp_path / "apart").mkdir()
    here = run_sweep(load(tmp_path, cache, rows=ROWS[:1], seeds=[0]))
    on_workers = {**cache, "scheduler": "local", "workers": 2}
    apart = run_sweep(load(tmp_path / "apart", on_workers, rows=ROWS[:1], seeds=[0]))
    assert here.to_csv() == apart.to_csv()
    files = [table.runs["plain", 0] / "model.safetensors" for table in (here, apart)]
    assert files[0].read_bytes() == files[1].read_bytes()
