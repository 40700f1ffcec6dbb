"""Fitting, resuming, choosing, and what a run's folder keeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from hoi.config import TrainConfig
from hoi.machine import choose_device
from hoi.records import PairBatch
from hoi.students.base import Student, build_student
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.training.loop import fit
from hoi.training.runs import RunFolder, TensorBoardLogger
from tests.fakes.pipelines import cut, refused
from tests.fakes.splits import AXES, VOCABULARY, Split, make_split

CPU = torch.device("cpu")
SPLIT = make_split((3, 1, 0, 4, 2, 5, 1))
TRAIN = TrainConfig(epochs=6, batch_images=3, checkpoint_every=2)


def fresh(**settings: Any) -> Student:
    return build_student(MultiLevelConfig(dropout=0.3, **settings), SPLIT.bank, VOCABULARY, AXES, seed=5)


def run_folder(path: Path, **changes: Any) -> RunFolder:
    student = MultiLevelConfig(dropout=0.3)
    settings = {"student": student.model_dump(mode="json"), "seed": 5, "cache": "abc", **changes}
    return RunFolder(path, student, settings)


class Interrupted(Split):
    """A split that fails in its fourth epoch, as a kill would."""

    def batches(self, *arguments: Any) -> Iterator[PairBatch]:
        vars(self)["epochs_begun"] = vars(self).get("epochs_begun", 0) + 1
        if vars(self)["epochs_begun"] == 4:
            raise KeyboardInterrupt
        return super().batches(*arguments)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_equal(one: Student, other: Student) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("with_quality", [False, True])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, with_quality: bool) -> None:
    def quality(student: Student) -> float:
        assert not student.training
        # Best at the first checkpoint, so that it has to survive the interruption.
        return -float(student.adapt_union.last.weight.detach().abs().sum())

    asked = quality if with_quality else None
    undisturbed, progress = fit(fresh(), SPLIT, TRAIN, seed=5, device=CPU, quality=asked)
    assert progress.best_epoch == (2 if with_quality else None)

    run = run_folder(tmp_path / "run")
    broken = Interrupted(SPLIT.whole, SPLIT.bank, SPLIT.vocabulary, SPLIT.labels)
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), broken, TRAIN, seed=5, device=CPU, quality=asked, run=run)
    assert run.status() == "started"
    torch.manual_seed(99)
    resumed, again = fit(fresh(), SPLIT, TRAIN, seed=5, device=CPU, quality=asked, run=run)
    assert weights_equal(undisturbed, resumed)
    assert (again.epoch, again.best_epoch) == (6, progress.best_epoch)
    assert [line["epoch"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_metrics_have_losses_agreement_and_throughput(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    fit(fresh(), SPLIT, TRAIN, seed=5, device=CPU, run=run)
    first, *_, last = metrics(tmp_path)
    branches = ("global", "union", "human_object")
    assert set(first) == {
        *("epoch", "loss", "gradient_norm", "learning_rate", "images_per_s", "eta_s"),
        *(f"{kind}_{branch}" for kind in ("loss", "agreement") for branch in branches),
    }
    assert first["loss"] == pytest.approx(sum(first[f"loss_{branch}"] for branch in branches), rel=1e-5)
    assert first["agreement_global"] == 1
    assert last["learning_rate"] < 0.1 * TRAIN.learning_rate
    assert last["eta_s"] == 0


def test_a_finished_run_gives_its_student_back(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    student, _ = fit(fresh(), SPLIT, TRAIN, seed=5, device=CPU, run=run)
    run.finish(student, {"seconds": 1.0})
    assert run.status() == "finished"
    assert run.record()["seconds"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "model.safetensors", "run.json"]
    again = run.load_student(SPLIT.bank, VOCABULARY, AXES)
    assert weights_equal(again, student)
    assert not again.training


def test_another_runs_folder_is_refused_by_naming_the_keys(tmp_path: Path) -> None:
    student, _ = fit(fresh(), SPLIT, TRAIN, seed=5, device=CPU, run=run_folder(tmp_path))
    other = run_folder(tmp_path, cache="def", student=MultiLevelConfig(dropout=0.5).model_dump(mode="json"))
    error = refused(other.status)
    assert "other settings" in error.what
    assert error.expected == "cache = def, student.dropout = 0.5"
    assert error.got == "cache = abc, student.dropout = 0.3"
    run_folder(tmp_path).finish(student, {})
    assert refused(other.load_student, SPLIT.bank, VOCABULARY, AXES).what == error.what


def test_missing_and_damaged_runs_are_named(tmp_path: Path) -> None:
    missing = refused(run_folder(tmp_path / "none").load_student, SPLIT.bank, VOCABULARY, AXES)
    assert missing.what == "there is no finished training run"
    run = run_folder(tmp_path)
    run.finish(fresh(), {})
    cut(tmp_path / "model.safetensors")
    error = refused(run.load_student, SPLIT.bank, VOCABULARY, AXES)
    assert ("missing or damaged" in error.what, error.where) == (True, tmp_path / "model.safetensors")
    (tmp_path / "run.json").write_text("{")
    assert refused(run.status).where == tmp_path / "run.json"
    (tmp_path / "run.json").unlink()
    (tmp_path / "state.safetensors").write_bytes(b"not much")
    error = refused(run.status)
    assert (error.what, error.fix) == ("a checkpoint is damaged", f"rm -r {tmp_path}")


def test_a_loss_that_is_not_finite_ends_the_run_by_name() -> None:
    broken = SPLIT.with_pairs(union_feature=SPLIT.whole.union_feature * float("inf"))
    error = refused(fit, fresh(), broken, TRAIN, seed=5, device=CPU)
    assert (error.what, error.where) == ("the loss is no longer finite", "seed 5, epoch 1")


def test_devices_are_checked_by_name() -> None:
    assert choose_device("cpu") == CPU
    assert refused(choose_device, "tpu").got == "tpu"
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        assert "no GPU can be used here" in refused(choose_device, "cuda").what


needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra tensorboard is not there")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoi.training.runs.find_spec", lambda name: None)
    error = refused(TensorBoardLogger, tmp_path / "tensorboard", 0)
    assert "pip install 'hoi-distill[tensorboard]'" in str(error.fix)
    assert not list(tmp_path.iterdir())


@needs_tensorboard
def test_it_shows_every_figure_of_metrics_jsonl(tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_images=3, tensorboard=True)
    fit(fresh(), SPLIT, config, seed=5, device=CPU, run=run_folder(tmp_path))
    lines, shown = metrics(tmp_path), scalars(tmp_path / "tensorboard")
    assert {"loss", "loss/human_object", "agreement/union", "gradient_norm", "images_per_s", "eta_s"} < set(shown)
    assert len(shown) == len(lines[0]) - 1
    assert [shown["loss/union"][epoch] for epoch in (1, 2)] == pytest.approx([line["loss_union"] for line in lines])


@needs_tensorboard
def test_epochs_that_are_done_again_are_shown_once(tmp_path: Path) -> None:
    interrupted = TensorBoardLogger(tmp_path, 0)
    for epoch in (1, 2, 3):
        interrupted.log(epoch, {"loss": 10.0 * epoch})
    interrupted.close()
    resumed = TensorBoardLogger(tmp_path, 1)
    resumed.log(2, {"loss": 7.0})
    resumed.close()
    assert scalars(tmp_path)["loss"] == {1: 10.0, 2: 7.0}
