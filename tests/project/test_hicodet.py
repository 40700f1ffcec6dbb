"""From files on disk to the report on a small HICO-DET: killed and resumed, stopped by its gates, with few labels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hoi.cache.build.run import build_cache
from hoi.cache.read.split import open_split
from hoi.cache.tools import estimate as cache_estimates
from hoi.config import PipelineConfig, load_config
from hoi.datasets import load_vocabulary
from hoi.project.published import run_published
from hoi.training.train import train_students
from tests.fakes.hicodet import SMALL, made_up, write_rehearsal
from tests.fakes.pipelines import refused
from tests.fakes.vcoco import COUNTS, write_annotations, write_detections, write_images

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/hicodet.yaml"
FEW = [*SMALL, "train.epochs=2"]


def places(folder: Path) -> list[str]:
    return [f"output={folder}", f"cache.folder={folder / 'cache'}"]


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PipelineConfig]:
    """Return the example's pipeline on a small tree, with more overrides."""
    monkeypatch.setenv("DATA", str(tmp_path / "tree"))
    read = write_rehearsal(tmp_path / "tree", made_up(14), 8, 6)

    def configured(*overrides: str) -> PipelineConfig:
        return load_config(EXAMPLE, [*read, *FEW, *places(tmp_path / "out"), *overrides])

    return configured


def kill_when(folder: Path, data: Path, overrides: list[str], reached: Callable[[], bool]) -> None:
    """Start the program and end it by SIGKILL as soon as something is there."""
    command = [sys.executable, "-m", "hoi", "hicodet", *overrides, *places(folder)]
    environment = {**os.environ, "DATA": str(data), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=data, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not reached():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_twice_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path / "tree"))
    overrides = [*write_rehearsal(tmp_path / "tree", made_up(14), 8, 6), *SMALL]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_published(load_config(EXAMPLE, [*overrides, *places(whole)]))

    kill_when(killed, tmp_path / "tree", overrides, lambda: any(killed.glob("cache/*/shard-*.h5")))
    assert not list(killed.glob("cache/*/manifest.json"))
    first = {path: path.stat().st_ino for path in killed.glob("cache/*/shard-*.h5")}
    state = killed / "runs" / "best" / "seed-0" / "state.safetensors"
    kill_when(killed, tmp_path / "tree", overrides, state.exists)
    assert {path: path.stat().st_ino for path in first} == first
    assert not (state.parent / "run.json").exists()
    trained = killed / "runs" / "faithful" / "seed-0" / "run.json"
    written = trained.stat().st_mtime_ns

    capsys.readouterr()
    resumed = load_config(EXAMPLE, [*overrides, *places(killed)])
    run_published(resumed)
    said = capsys.readouterr().out
    for expected in ("passed before", "0 built now", "measured before", "faithful seed 0: finished before", "wrote"):
        assert expected in said
    assert trained.stat().st_mtime_ns == written
    same = [path.relative_to(whole) for path in (*whole.glob("cache/*/shard-*.h5"), *whole.glob("runs/*/*/model.*"))]
    assert len(same) == 5 + 2
    for name in (*same, "results.json", "per_class.json", "audit.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name

    results = (killed / "results.json").stat().st_mtime_ns
    run_published(resumed)
    assert (killed / "results.json").stat().st_mtime_ns == results
    assert "mean average precision in percent" in capsys.readouterr().out


def test_each_step_keeps_what_it_found(
    tmp_path: Path, pipeline: Callable[..., PipelineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    run_published(pipeline())
    said, out = capsys.readouterr().out, tmp_path / "out"
    headings = [line.split(":")[0] for line in said.splitlines() if line.startswith("== ")]
    steps = ["doctor", "plan", "teacher cache", "sanity gates", "train", "evaluate", "audit", "report"]
    assert headings == [f"== {step}" for step in steps]
    gates = {gate["name"]: gate for gate in json.loads((out / "sanity.json").read_text())["gates"]}
    assert gates["teacher"]["figures"]["published"]["value"] == 0.355
    # A tenth of the boxes was left out, the others jittered by a twenty-fifth of their sides.
    assert 0.6 < gates["detector"]["figures"]["recall"]["human"]["value"] <= 1
    rows = json.loads((out / "results.json").read_text())
    assert {row["num_positives"] for row in rows} == {gates["detector"]["figures"]["num_annotated"]["pair"]}
    assert json.loads((out / "audit.json").read_text())["sanity_gates"]["labels_read"] == "test"
    assert "sanity gates read the labels of split test to judge detector and teacher" in said
    assert json.loads((out / "doctor.json").read_text())["num_errors"] == 0
    for student in ("best", "faithful"):
        assert f"\n{student} − direct_clip_tuned: " in said


def test_boxes_in_another_frame_end_the_run_before_training(
    tmp_path: Path, pipeline: Callable[..., PipelineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((tmp_path / "tree" / "detections.json").read_text())
    for record in found:
        record["bbox"] = [edge / 4 for edge in record["bbox"]]
    (tmp_path / "tree" / "detections.json").write_text(json.dumps(found))
    error = refused(run_published, pipeline())
    assert "no better than chance" in error.what
    assert error.got == "detector"
    assert "--no-gates" in str(error.fix)
    assert "stop    detector: " in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()
    run_published(pipeline(), heeds_gates=False)
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["sanity_gates"]["levels"]["detector"] == "stop"


def test_the_doctors_errors_and_a_small_disk_end_the_run(
    tmp_path: Path, pipeline: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = next((tmp_path / "tree" / "images" / "test2015").iterdir())
    image.rename(tmp_path / "gone.png")
    error = refused(run_published, pipeline())
    assert (error.what, Path(str(error.where)).name) == ("the doctor found 1 errors", "doctor.json")
    (tmp_path / "gone.png").rename(image)
    monkeypatch.setattr(cache_estimates, "free_bytes", lambda folder: 1000)
    error = refused(run_published, pipeline())
    assert ("disk is too small" in error.what, error.got) == (True, "1.000 kB")
    assert "free space" in str(error.fix)
    assert not (tmp_path / "out" / "cache").exists()


def test_labels_of_test_alone_tune_nothing(
    tmp_path: Path, pipeline: Callable[..., PipelineConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree" / "instances_train2015.json").unlink()
    run_published(pipeline())
    said = capsys.readouterr().out
    assert "split validation has no annotations: no direct_clip_tuned, no direct_clip_gated" in said
    assert "best − direct_clip: " in said
    names = {row["name"] for row in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert {"detector_prior", "direct_clip", "faithful", "best"} <= names
    assert not names & {"direct_clip_tuned", "direct_clip_gated"}

    (tmp_path / "tree" / "instances_test2015.json").unlink()
    run_published(pipeline(f"output={tmp_path / 'unlabelled'}"))
    said = capsys.readouterr().out
    assert "no annotations: detector and teacher are not judged" in said
    assert "agreement with the teacher" in said
    assert "no annotations, so there is no average precision to audit" in said


def test_stages_one_and_two_ask_for_no_reader_of_annotations(
    tmp_path: Path, pipeline: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (tmp_path / "tree").glob("instances_*.json"):
        file.unlink()
    # Modules that are loaded already cannot import it at their top either: tests/test_imports.py.
    monkeypatch.setitem(sys.modules, "hoi.labels", None)
    build_cache(pipeline())
    assert train_students(pipeline()).runs


def test_vcoco_takes_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    listed, (results, instances) = write_images(tmp_path / "images"), write_detections(tmp_path)
    write_annotations(tmp_path / "annotations")
    detector = {"name": "precomputed", "results": str(results), "instances": str(instances)}
    read = [f"dataset.image_list={listed}", f"detector={json.dumps(detector)}"]
    config = load_config(ROOT / "examples/vcoco.yaml", [*read, *FEW, *places(tmp_path / "out")])
    run_published(config)
    said = capsys.readouterr().out
    assert "V-COCO's evaluation in percent" in said
    # The page takes apart the role AP that stage three wrote.
    html = (tmp_path / "out" / "report.html").read_text()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    [role_ap] = {row["vcoco"]["role_ap_s1_24"] for row in rows if row["name"] == "best" and row["seed"] == 0}
    assert "By V-COCO’s own rule" in html
    assert f"<code>best</code>: role AP in scenario 1 over 24 roles {100 * role_ap:.2f}." in html
    gates = {gate["name"]: gate for gate in json.loads((tmp_path / "out" / "sanity.json").read_text())["gates"]}
    assert gates["images"]["figures"]["test"]["num_images"] == COUNTS["test"]
    # Two people, a ball and a racket in each image; those who stand have no object, which is no box to find.
    found = gates["detector"]["figures"]
    assert {name: found["num_annotated"][name] for name in ("human", "object")} == {"human": 8, "object": 8}
    assert found["recall"]["human"]["value"] == 1

    # ANNA and BEN pair with each other, the ball, the racket and themselves.
    assert [open_split(config, name).num_pairs for name in COUNTS] == [8 * num for num in COUNTS.values()]
    vocabulary, batch = load_vocabulary(config.dataset), open_split(config, "test").batch(np.arange(4))
    is_itself = (batch.rows_h == batch.rows_o).numpy()
    assert is_itself.sum() == 2 * 4
    assert (batch.labels_o.numpy()[is_itself] == vocabulary.no_object_idx).all()
    objects = {vocabulary.objects.index(name) for name in ("person", "sports ball", "tennis racket")}
    assert set(batch.labels_o.numpy()[~is_itself]) == objects
    # What a human does alone is asked of the human's own crop.
    np.testing.assert_array_equal(batch.union_feature[is_itself], batch.human_feature[is_itself])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"direct_clip", "best", "union"} <= {row["name"].split("/")[-1] for row in rows}
    for figures in (row["vcoco"] for row in rows):
        assert 0 < figures["agent_ap"] < 1
        # Three roles are boxed, and `look` is not: rows without object score no role.
        assert 0 < figures["role_ap_s1"] <= figures["role_ap_s2"] <= 4 / 25
        assert figures["num_positives"]["stand"] == figures["num_positives"]["look"] == figures["num_images"] == 4
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [record["name"] for record in summary["vcoco"]] == [row["name"] for row in rows]
