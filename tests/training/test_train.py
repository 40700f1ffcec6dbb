"""Stage two on a real cache of a handful of scenes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hoi.cache.build.run import build_cache
from hoi.config import PipelineConfig
from hoi.files import sole_writer
from hoi.training.train import train_students
from tests.fakes.extractors import DrawnSignals
from tests.fakes.pipelines import refused, small_pipeline, write_pipeline

ROOT = Path(__file__).parents[2]
STUDENT = {"student": {"width": 32}}


def pipeline(folder: Path, cache: dict[str, Any], **sections: Any) -> PipelineConfig:
    return small_pipeline(folder, cache=cache, **sections)


def with_train(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def weights(config: PipelineConfig, name: str = "student", seed: int = 0) -> bytes:
    return (Path(config.output) / "runs" / name / f"seed-{seed}" / "model.safetensors").read_bytes()


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_every_student_is_trained_once_to_the_same_bytes(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = pipeline(tmp_path, cache)
    report = train_students(config)
    assert [(run.name, run.seed) for run in report.runs] == [(n, s) for n in ("student", "supervised") for s in (0, 1)]
    for run in report.runs:
        assert sorted(p.name for p in run.folder.iterdir()) == [
            ".lock",
            "metrics.jsonl",
            "model.safetensors",
            "run.json",
        ]
        record = record_of(run.folder)
        assert record["settings"]["seed"] == run.seed
        assert record["fingerprint"] == record["settings"]["cache"]
        assert record["config"] == config.model_dump(mode="json")
        assert record["versions"]["torch"]
    before = {run.folder: (run.folder / "model.safetensors").stat().st_mtime_ns for run in report.runs}
    again = train_students(config)
    assert [run.seconds for run in again.runs] == [None] * 4
    assert before == {run.folder: (run.folder / "model.safetensors").stat().st_mtime_ns for run in again.runs}
    elsewhere = pipeline(tmp_path / "elsewhere", cache)
    train_students(elsewhere)
    for name in ("student", "supervised"):
        assert weights(config, name) == weights(elsewhere, name) != weights(config, name, seed=1)


def test_labels_alone_choose_among_checkpoints(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = with_train(pipeline(tmp_path, cache), seeds=[0])
    student, supervised = (run.folder for run in train_students(config).runs)
    assert record_of(student)["chosen_epoch"] == 4
    assert "quality" not in (student / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in (supervised / "metrics.jsonl").read_text().splitlines()]
    judged = {line["epoch"]: line["quality"] for line in lines if "quality" in line}
    assert set(judged) == {2, 4}
    assert judged[record_of(supervised)["chosen_epoch"]] == max(judged.values()) > 0


def test_a_run_of_other_settings_is_refused_first(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = pipeline(tmp_path, cache, students=STUDENT)
    train_students(config)
    wider = pipeline(tmp_path, cache, students={"new": {"width": 8}, "student": {"width": 16}})
    error = refused(train_students, wider)
    assert error.where == tmp_path / "outputs/runs/student/seed-0"
    assert (error.expected, error.got) == ("student.width = 16", "student.width = 32")
    assert not (tmp_path / "outputs/runs/new").exists()
    assert refused(train_students, with_train(config, epochs=5)).expected == "train.epochs = 5"
    scored_otherwise = pipeline(tmp_path, cache, students={"student": {"width": 32, "score_exponent": 0.5}})
    again = train_students(with_train(scored_otherwise, checkpoint_every=1))
    assert [run.seconds for run in again.runs] == [None, None]


def test_only_a_named_precision_is_part_of_a_run(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = with_train(pipeline(tmp_path, cache, students=STUDENT), seeds=[0], epochs=1)
    (run,) = train_students(config).runs
    record = record_of(run.folder)
    assert record["precision"] == "fp32"
    assert not {"precision", "tensorboard"} & set(record["settings"]["train"])
    error = refused(train_students, with_train(config, precision="bf16"))
    assert (error.expected, error.got) == ("train.precision = bf16", "train.precision = None")


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = with_train(pipeline(tmp_path, cache, students=STUDENT), seeds=[0], epochs=1)
    path = tmp_path / "outputs" / "runs" / "student" / "seed-0"
    with sole_writer(path):
        error = refused(train_students, config)
    assert (error.what, error.where) == ("another process is training this student", path)
    assert [each.name for each in path.iterdir()] == [".lock"]
    (path / ".model.safetensors.0123.part").write_bytes(b"half")
    train_students(config)
    assert not list(path.glob("*.part"))


def test_no_cache_and_a_cache_of_other_settings_are_refused(tmp_path: Path, cache: dict[str, Any]) -> None:
    assert refused(train_students, small_pipeline(tmp_path)).what == "there is no teacher cache"
    error = refused(train_students, pipeline(tmp_path, cache, pairs={"max_humans": 3}))
    assert "pairs.max_humans (cache: 15, now: 3)" in str(error)
    assert not (tmp_path / "outputs").exists()


def test_a_split_that_cannot_train_or_tune_is_refused(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = small_pipeline(tmp_path, pairs={"min_score": 1.0})
    build_cache(config, DrawnSignals)
    error = refused(train_students, config)
    assert "no image of the training split has a pair" in error.what
    assert "pairs.min_score" in str(error.fix)
    assert not (tmp_path / "outputs").exists()
    tuned_on_test = pipeline(tmp_path, cache, evaluation={"tune_split": "test"})
    assert refused(train_students, tuned_on_test).where == "evaluation.tune_split"


BLOCKED = """
import sys
NAMES = {"hoi.labels", "hoi.teachers", "hoi.detectors", "hoi.extraction", "PIL", "torchvision", "open_clip", "dask"}
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name in NAMES:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuses())
from hoi.config import load_config
from hoi.training.runs import RunFolder
from hoi.training.train import train_students
train_students(load_config(sys.argv[1], ["students={student: {}}"]))
assert not NAMES & set(sys.modules)
train_students(load_config(sys.argv[1], ["students={supervised: {supervision: labels}}"]))
"""


def test_training_without_labels_reaches_no_label_or_image(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = with_train(pipeline(tmp_path, cache), seeds=[0], epochs=1)
    path = write_pipeline(config, tmp_path / "pipeline.yaml")
    done = subprocess.run([sys.executable, "-c", BLOCKED, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert "student seed 0: trained" in done.stdout, done.stderr
    # The block holds: what asks for labels cannot have them.
    assert "ImportError: refused: hoi.labels" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_a_whole_one(tmp_path: Path, cache: dict[str, Any]) -> None:
    def config_in(folder: Path) -> PipelineConfig:
        return with_train(pipeline(folder, cache, students=STUDENT), seeds=[0], epochs=40, checkpoint_every=1)

    killed, undisturbed = config_in(tmp_path / "killed"), config_in(tmp_path / "undisturbed")
    state = tmp_path / "killed" / "outputs" / "runs" / "student" / "seed-0" / "state.safetensors"
    path = write_pipeline(killed, tmp_path / "killed.yaml")
    command = [sys.executable, "-m", "hoi", "train", "--config", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (state.parent / "run.json").exists()
    train_students(undisturbed)
    train_students(killed)
    assert weights(killed) == weights(undisturbed)
    assert len((state.parent / "metrics.jsonl").read_text().splitlines()) == 40


def torchrun(path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "hoi", "train"]
    return subprocess.run([*command, "--config", str(path), *overrides], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_two_processes_under_torchrun_train_what_one_does(tmp_path: Path, cache: dict[str, Any]) -> None:
    students = {"student": {"width": 32, "dropout": 0.0}, "supervised": {"supervision": "labels", "dropout": 0.0}}
    alone, together = (
        with_train(pipeline(tmp_path / name, cache, students=students), seeds=[0], max_images=17, epochs=2)
        for name in ("alone", "together")
    )
    train_students(alone)
    done = torchrun(write_pipeline(together, tmp_path / "together.yaml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student seed 0: trained in") == 1
    for name in students:
        one, two = (Path(config.output) / "runs" / name / "seed-0" for config in (alone, together))
        assert sorted(p.name for p in two.iterdir()) == [".lock", "metrics.jsonl", "model.safetensors", "run.json"]
        assert [record_of(folder)["num_processes"] for folder in (one, two)] == [1, 2]
        expected = load_file(one / "model.safetensors")
        for key, found in load_file(two / "model.safetensors").items():
            # Root mean square: Adam makes much of what is lost in rounding where a gradient is next to nothing.
            assert (found - expected[key]).square().mean().sqrt() < 1e-6
    assert [run.seconds for run in train_students(together).runs] == [None, None]


@pytest.mark.slow
def test_processes_under_torchrun_say_a_mistake_once(tmp_path: Path, cache: dict[str, Any]) -> None:
    path = write_pipeline(pipeline(tmp_path, cache), tmp_path / "small.yaml")
    for override, said in (
        ("cache.folder=outputs/nowhere", "error: there is no teacher cache · where: outputs/nowhere/train"),
        ("train.epoch=2", "error: unknown key"),
        ("--epochs=2", "error: there is no option --epochs"),
    ):
        done = torchrun(path, override)
        assert done.returncode != 0
        assert [line for line in done.stderr.splitlines() if "error: " in line and said in line][1:] == []
        assert said in done.stderr
