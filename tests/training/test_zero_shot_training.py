"""Zero-shot and fractional training end to end on a real cache: what is hidden touches nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi import labels as label_reader
from hoi.cache.build.run import build_cache
from hoi.cache.read.split import open_split
from hoi.config import PipelineConfig
from hoi.datasets import load_vocabulary
from hoi.evaluation import evaluate as stage_three
from hoi.evaluation.evaluate import evaluate
from hoi.labels.zero_shot import unseen_ids
from hoi.records import HoiLabels, ImageSignals, VisualHead
from hoi.students.hoiclip.model import HoiclipStudent
from hoi.training.loop import Trainer
from hoi.training.train import train_students, training_of
from tests.fakes.extractors import DRAWN_WIDTH, DrawnSignals
from tests.fakes.pipelines import refused, small_pipeline
from tests.fakes.splits import SMALL_HOICLIP

CHANNELS, CELLS = 12, 2
ZERO_SHOT = {
    "method": "hoiclip",
    "supervision": "labels",
    "zero_shot": "unseen_verb",
    "score": {"fusion": "product"},
    **SMALL_HOICLIP,
}
STUDENTS = {"hidden": ZERO_SHOT}
Cache = dict[str, Any]
Patch = pytest.MonkeyPatch
READ = label_reader.load_labels


class DrawnMaps(DrawnSignals):
    """Drawn signals with a map and frozen last layers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        rng = np.random.default_rng(2)
        projection = rng.normal(size=(CHANNELS + 1, DRAWN_WIDTH)).astype(np.float32)
        value = rng.normal(size=(CHANNELS + 1, CHANNELS)).astype(np.float32)
        self.text_bank = replace(self.text_bank, visual=VisualHead(projection, value=value))
        self.axes |= {"C": CHANNELS, "H": CELLS, "W": CELLS}

    def _extract(self, image_id: str, image: np.ndarray) -> ImageSignals:
        rng = np.random.default_rng(len(image_id))
        spatial = rng.normal(size=(CHANNELS, CELLS, CELLS)).astype(np.float16)
        return replace(super()._extract(image_id, image), spatial_map=spatial)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The cache section of a finished cache with maps."""
    config = small_pipeline(tmp_path_factory.mktemp("world"))
    build_cache(config, DrawnMaps)
    return config.cache.model_dump(mode="json")


def pipeline(folder: Path, cache: Cache, **sections: Any) -> PipelineConfig:
    training = {"seeds": [0], "epochs": 2, "batch_images": 8, "checkpoint_every": 1, "device": "cpu"}
    return small_pipeline(folder, cache=cache, **{"students": STUDENTS, "train": training, **sections})


def hidden_ids(config: PipelineConfig) -> np.ndarray:
    return unseen_ids(config.dataset, load_vocabulary(config.dataset), "unseen_verb", lambda: np.zeros(0, np.int64))


def otherwise(labels: HoiLabels, is_changed: np.ndarray, ids: np.ndarray) -> HoiLabels:
    """Labels with other interactions where they are to change: each becomes the next of `ids`."""
    following = np.arange(max(ids.max(), labels.interaction.max()) + 1)
    following[ids] = np.roll(ids, -1)
    return replace(labels, interaction=np.where(is_changed, following[labels.interaction], labels.interaction))


def trained(config: PipelineConfig, change: Callable[[HoiLabels], HoiLabels], monkeypatch: Patch) -> Path:
    """Trains with changed annotations, of every split; gives the run's folder."""
    monkeypatch.setattr(label_reader, "load_labels", lambda dataset, split: change(READ(dataset, split)))
    (run,) = train_students(config).runs
    return run.folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_unseen_labels_touch_no_prototype_loss_or_choice(tmp_path: Path, cache: Cache, monkeypatch: Patch) -> None:
    config = pipeline(tmp_path, cache)
    ids = hidden_ids(config)
    seen = np.setdiff1d(np.arange(len(load_vocabulary(config.dataset))), ids)
    changes: dict[str, Callable[[HoiLabels], HoiLabels]] = {
        "as they are": lambda labels: labels,
        "unseen ones changed": lambda labels: otherwise(labels, np.isin(labels.interaction, ids), ids),
        "a seen one changed": lambda labels: otherwise(
            labels, np.arange(len(labels)) == np.flatnonzero(np.isin(labels.interaction, seen))[0], seen
        ),
    }
    found: dict[str, tuple[bytes, list[dict[str, Any]], dict[str, Any]]] = {}
    for name, change in changes.items():
        folder = trained(pipeline(tmp_path / name, cache), change, monkeypatch)
        lines = [line | {"images_per_s": None, "eta_s": None} for line in metrics(folder)]
        found[name] = (folder / "model.safetensors").read_bytes(), lines, json.loads((folder / "run.json").read_text())
    as_they_are, unseen_changed, seen_changed = found.values()
    # Weights, and every figure of every epoch, the quality that chooses among them.
    assert as_they_are[:2] == unseen_changed[:2]
    assert as_they_are[0] != seen_changed[0]
    record = as_they_are[2]["zero_shot"]
    assert record["unseen"] == ids.tolist()
    assert record["dropped"]["num_unseen"] == int(np.isin(READ(config.dataset, "train").interaction, ids).sum()) > 0
    assert record == unseen_changed[2]["zero_shot"]


def test_the_priors_exponent_is_chosen_without_unseen_labels(tmp_path: Path, cache: Cache, monkeypatch: Patch) -> None:
    students = {"hidden": ZERO_SHOT, "sees_all": {**ZERO_SHOT, "zero_shot": None}}
    config = pipeline(tmp_path, cache, students=students, evaluation={"bootstrap": 5})
    ids = hidden_ids(config)
    train_students(config)

    def changed(dataset: Any, split: str) -> HoiLabels:
        labels = READ(dataset, split)
        return otherwise(labels, np.isin(labels.interaction, ids) & (split == "validation"), ids)

    found = []
    for read in (READ, changed):
        monkeypatch.setattr(stage_three, "load_labels", read)
        found.append({row.name: row.settings for row in evaluate(config).rows})
    as_they_are, unseen_changed = found
    for name, reads_unseen in (("hidden", False), ("sees_all", True), ("direct_clip_tuned", True)):
        before, after = as_they_are[name], unseen_changed[name]
        assert (before["tuned_full"] != after["tuned_full"]) == reads_unseen, name
        assert reads_unseen or before["score_exponent"] == after["score_exponent"]


def test_a_fraction_learns_from_the_first_images_of_one_order(tmp_path: Path, cache: Cache, monkeypatch: Patch) -> None:
    student = {"quarter": {**ZERO_SHOT, "zero_shot": None, "label_fraction": 0.25}}
    config = pipeline(tmp_path, cache, students=student)
    split = open_split(config, "train")
    assert training_of(config, config.students["quarter"], split).max_images == 6
    ids = np.arange(len(load_vocabulary(config.dataset)))
    order = np.random.default_rng(0).permutation(24)
    used = np.sort(order[:6])

    def others_changed(labels: HoiLabels) -> HoiLabels:
        is_train = len(labels) == len(READ(config.dataset, "train"))
        return otherwise(labels, ~np.isin(labels.image, used) & is_train, ids)

    plain = trained(config, lambda labels: labels, monkeypatch)
    changed = trained(pipeline(tmp_path / "other", cache, students=student), others_changed, monkeypatch)
    assert (plain / "model.safetensors").read_bytes() == (changed / "model.safetensors").read_bytes()


def test_a_student_may_have_its_own_learning_rate_and_epochs(tmp_path: Path, cache: Cache) -> None:
    students = {"slow": {**ZERO_SHOT, "learning_rate": 1e-5, "epochs": 3, "supervision": "teacher", "zero_shot": None}}
    (run,) = train_students(pipeline(tmp_path, cache, students=students)).runs
    rates = [line["learning_rate"] for line in metrics(run.folder)]
    assert (len(rates), rates[0] <= 1e-5) == (3, True)


def test_a_resumed_run_does_not_prepare_again(tmp_path: Path, cache: Cache, monkeypatch: Patch) -> None:
    undisturbed, interrupted = (pipeline(tmp_path / name, cache) for name in ("undisturbed", "interrupted"))
    (whole,) = train_students(undisturbed).runs
    epoch_of = Trainer.run_epoch

    def stopped(trainer: Trainer, epoch: int, bar: Any) -> dict[str, float]:
        if epoch == 1:
            raise KeyboardInterrupt
        return epoch_of(trainer, epoch, bar)

    def never(*_: object) -> None:
        raise AssertionError("it looked again")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_students(interrupted)
    monkeypatch.setattr(HoiclipStudent, "prepare", never)
    (resumed,) = train_students(interrupted).runs
    assert (resumed.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()


def test_the_teachers_head_comes_back_from_the_cache(tmp_path: Path, cache: Cache) -> None:
    config = pipeline(tmp_path, cache)
    split = open_split(config, "train")
    kept, made = split.text_bank.visual, DrawnMaps(config, split.vocabulary, "cpu").text_bank.visual
    assert kept.norm is None
    np.testing.assert_array_equal(kept.projection, made.projection)
    np.testing.assert_array_equal(kept.value, made.value)
    with pytest.raises(ValueError, match="value has shape"):
        VisualHead(made.projection, value=made.value[:-1])


def test_evaluation_reports_unseen_and_seen_of_a_split(tmp_path: Path, cache: Cache) -> None:
    students = {"hidden": ZERO_SHOT, "sees_all": {**ZERO_SHOT, "zero_shot": None}}
    config = pipeline(tmp_path, cache, students=students, evaluation={"bootstrap": 5, "zero_shot": ["unseen_object"]})
    train_students(config)
    report = evaluate(config)
    assert list(report.zero_shot) == ["unseen_object", "unseen_verb"]
    lines = str(report).splitlines()
    of_hidden = [line.split()[1] for line in lines if line.startswith("hidden ") and "unseen_" in line]
    assert of_hidden == ["unseen_verb"]
    assert len([line for line in lines if line.startswith("sees_all *")]) == 2
    rows = {row["name"]: row for row in json.loads((tmp_path / "outputs/results.json").read_text())}
    assert set(rows["hidden"]["zero_shot"]) == {"unseen_verb"}
    assert set(rows["detector_prior"]["zero_shot"]) == {"unseen_verb", "unseen_object"}
    assert rows["hidden"]["audit"]["zero_shot"] == "unseen_verb"
    summary = json.loads((tmp_path / "outputs/summary.json").read_text())
    assert summary["zero_shot_unseen"]["unseen_verb"] == hidden_ids(config).tolist()
    warning = next(w for w in json.loads((tmp_path / "outputs/audit.json").read_text())["warnings"] if "unseen" in w)
    assert "(sees_all)" in warning


def test_an_unknown_split_is_refused_before_anything_is_trained(tmp_path: Path, cache: Cache) -> None:
    students = {"hidden": {**ZERO_SHOT, "zero_shot": "uc0"}}
    error = refused(train_students, pipeline(tmp_path, cache, students=students))
    assert "no zero-shot split 'uc0' of world" in error.what
    assert "students.hidden.zero_shot" in str(error.where)
    assert not (tmp_path / "outputs").exists()
