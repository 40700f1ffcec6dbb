"""The self-contained checkpoint: it loads with nothing else at hand, and refuses what it was not made with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hoi.config import PipelineConfig
from hoi.config.detectors import Detectron2DetectorConfig
from hoi.datasets import open_images
from hoi.errors import UserError
from hoi.files import file_sha256
from hoi.prediction import Checkpoint, Predictor
from hoi.prediction.export import make_checkpoint
from hoi.prediction.onnx import check_exportable
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.training.train import choose_student
from tests.fakes.pipelines import WEIGHTS, contents, refused, whole_row, whole_summary, write_pipeline


@pytest.fixture
def folder(trained: PipelineConfig, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to damage."""
    return Path(shutil.copytree(Path(trained.output).parent / "checkpoint", tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, **changes}))


def test_a_copy_runs_elsewhere_without_pipeline_file_or_cache(
    trained: PipelineConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_images(trained.dataset, "test").read(1)
    before = Predictor.from_checkpoint(Path(trained.output).parent / "checkpoint", "cpu")(image)
    record = json.loads((folder / "checkpoint.json").read_text())
    for place in record["places"].values():
        place["was"] = place["was"].replace("/", "/nowhere/")
    edit(folder, places=record["places"])
    monkeypatch.chdir(folder.parent)
    after = Predictor.from_checkpoint("copy", "cpu")(image)
    assert after.triplets == before.triplets != []


def test_it_is_made_of_json_and_safetensors_and_says_what_it_is(folder: Path) -> None:
    ours = {"checkpoint.json", "student.safetensors", "text.safetensors", "MODEL_CARD.md"}
    clip = {f"models/teacher/clip/{path.name}" for path in (WEIGHTS / "clip").iterdir()}
    assert set(contents(folder)) == ours | clip | {"models/detector/detector.safetensors"}
    card = (folder / "MODEL_CARD.md").read_text()
    record = json.loads((folder / "checkpoint.json").read_text())
    for part in ("detector", "teacher"):
        assert record["models"][part]["weights_sha256"][:16] in card
    for text in ("6 of the split `train`", "HOI labels: None", "Limits", "split `clip`", "best, seed 3"):
        assert text in card


def test_written_again_it_is_the_same_and_damage_is_mended(trained: PipelineConfig, folder: Path) -> None:
    make_checkpoint(trained, out=folder)
    before = contents(folder)
    (folder / "checkpoint.json").unlink()
    (folder / "student.safetensors").write_bytes(b"damaged")
    make_checkpoint(trained, out=folder)
    assert contents(folder) == before


def test_metrics_of_this_very_student_go_into_the_card(trained: PipelineConfig, tmp_path: Path) -> None:
    knobs = {**trained.students["best"].model_dump(mode="json"), "score_exponent": 0.1}
    row = whole_row(name="best", seed=3, knobs=knobs, full=12.5)
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "summary.json").write_text(json.dumps(whole_summary(num_images=10)))
    config = trained.model_copy(update={"output": str(tmp_path / "output")})
    (tmp_path / "output" / "runs").symlink_to(Path(trained.output) / "runs")
    other = {**row, "knobs": {**knobs, "width": 99}}
    for rows, said in (([other], "It has not been evaluated"), ([other, row], "10 images, .* mAP 12.50\\.")):
        (tmp_path / "output" / "results.json").write_text(json.dumps(rows))
        report = make_checkpoint(config, out=tmp_path / "made")
        assert re.search(said, (report.folder / "MODEL_CARD.md").read_text())


@pytest.mark.parametrize(
    ("part", "key", "word"), [("detector", "detector.weights", "detector"), ("teacher", "teacher.model", "CLIP")]
)
def test_another_detector_or_clip_is_refused(folder: Path, tmp_path: Path, part: str, key: str, word: str) -> None:
    other = tmp_path / "other"
    [file] = (folder / "models" / part).rglob("*.safetensors")
    shutil.copytree(file.parent, other)
    tensors = load_file(other / file.name)
    name = next(name for name, value in sorted(tensors.items()) if value.is_floating_point() and value.ndim > 1)
    tensors[name].view(-1)[0] += 1
    with safe_open(file, "pt") as opened:
        save_file(tensors, other / file.name, opened.metadata())
    place = f"local-dir:{other}" if part == "teacher" else str(other / file.name)
    error = refused(Predictor.from_checkpoint, folder, "cpu", [f"{key}={place}"])
    assert error.what == f"this is not the {word} that the checkpoint was made with"
    assert re.fullmatch(r"weights_sha256 \w{16}\.\.\.", str(error.expected))


def test_thresholds_may_change_and_other_settings_may_not(folder: Path) -> None:
    predictor = Predictor.from_checkpoint(folder, "cpu", ["pairs.max_humans=1", "detector.min_score=0.3"])
    assert (predictor.config.pairs.max_humans, predictor.config.detector.min_score) == (1, 0.3)
    error = refused(Predictor.from_checkpoint, folder, "cpu", ["teacher.crop.margins=[1.0, 1.4]"])
    assert "not the CLIP" in error.what
    assert "crop_margins" in str(error.got)
    for override, what in (
        ("students.best.width=3", "does not take this override"),
        ("pairs.max_humans", "does not take this override"),
        ("detector.name.x=1", "a key goes below one that holds no section"),
    ):
        error = refused(Checkpoint.open, folder, [override])
        assert what in error.what
        assert override.partition("=")[0] in f"{error.where} {error.got}"


def test_what_is_no_whole_checkpoint_of_this_version_is_refused(folder: Path, tmp_path: Path) -> None:
    def told(folder: Path = folder) -> tuple[str, object]:
        error = refused(Checkpoint.open, folder)
        return error.what, error.expected

    assert told(tmp_path / "nothing") == ("this is no checkpoint", "checkpoint.json")
    edit(folder, version=2)
    assert told() == ("this checkpoint is of another format", "hoi-distill checkpoint, version 1")
    edit(folder, version=1)
    damaged = bytearray((folder / "student.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "student.safetensors").write_bytes(damaged)
    error = refused(Checkpoint.open, folder)
    assert error.what == "a file of the checkpoint is not the one that was written"
    assert error.where == folder / "student.safetensors"
    (folder / "student.safetensors").unlink()
    assert told()[0] == "a file of the checkpoint is missing"
    whole = json.loads((folder / "checkpoint.json").read_text())
    for cut, expected in (
        ({key: value for key, value in whole.items() if key != "places"}, None),
        (whole | {"files": {}}, "student.safetensors, text.safetensors"),
    ):
        (folder / "checkpoint.json").write_text(json.dumps(cut))
        assert told() == ("the record of a checkpoint is damaged", expected)
    (folder / "checkpoint.json").write_text("{")
    assert told()[0] == "the record of a checkpoint is damaged"


def test_weights_that_do_not_fit_the_settings_are_refused(folder: Path) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    record["config"]["students"]["best"]["width"] = 32
    edit(folder, config=record["config"])
    error = refused(Checkpoint.open(folder).student)
    assert (error.what, error.where) == (
        "the weights do not fit the student's settings",
        folder / "student.safetensors",
    )


def test_a_permission_in_the_folder_is_dropped(folder: Path) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    detectron2 = {"name": "detectron2", "config_file": "a.yaml", "weights": "a.pkl", "trust_pickle": True}
    edit(folder, config={**record["config"], "detector": detectron2}, places={})
    for overrides, is_trusted in (((), False), (("detector.trust_pickle=true",), True)):
        detector = Checkpoint.open(folder, overrides).config.detector
        assert isinstance(detector, Detectron2DetectorConfig)
        assert detector.trust_pickle == is_trusted


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "pipe", "folder", "linked folder"])
def test_only_regular_files_below_the_folder_are_read(folder: Path, tmp_path: Path, kind: str) -> None:
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    path = folder / "student.safetensors"
    if kind == "above":
        edit(folder, files={**files, "../x": "0" * 64})
    elif kind == "absolute":
        edit(folder, files={**files, "/dev/zero": "0" * 64})
    elif kind == "linked folder":
        (folder / "models").rename(tmp_path / "models")
        (folder / "models").symlink_to(tmp_path / "models")
    else:
        path.rename(tmp_path / "elsewhere")
        {
            "link": lambda: path.symlink_to(tmp_path / "elsewhere"),
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
        }[kind]()
    expected = "a file of the checkpoint is " + (
        "outside its folder" if kind in ("above", "absolute") else "no regular file"
    )
    assert refused(Checkpoint.open, folder).what == expected


@pytest.mark.parametrize("axes", [{"M": 10**9}, {"D": 3}, {"K": 1}, {"C": 1 << 20}, {"M": -1}, {"m": 2}])
def test_sizes_are_checked_before_anything_is_built(folder: Path, axes: dict[str, int]) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    edit(folder, axes={**record["axes"], **axes})
    assert refused(Checkpoint.open, folder).what == "the record of a checkpoint is damaged"


def test_weights_and_texts_that_are_not_finite_are_refused(folder: Path) -> None:
    def spoil(name: str, **changes: Any) -> UserError:
        before = (folder / name).read_bytes(), (folder / "checkpoint.json").read_bytes()
        state = load_file(folder / name)
        first = min(state)
        state[first] = torch.full_like(state[first], torch.nan)
        save_file(state, folder / name)
        record = json.loads((folder / "checkpoint.json").read_text())
        edit(folder, files={**record["files"], name: file_sha256(folder / name)}, **changes)
        error = refused(lambda: Checkpoint.open(folder).student())
        (folder / name).write_bytes(before[0]), (folder / "checkpoint.json").write_bytes(before[1])
        return error

    assert spoil("student.safetensors").what == "the weights of a student are not finite"
    assert spoil("text.safetensors").what == "the texts of the checkpoint are damaged"
    text = json.loads((folder / "checkpoint.json").read_text())["text"]
    edit(folder, text={**text, "logit_scale": 1e308})
    assert refused(Checkpoint.open, folder).what == "the record of a checkpoint is damaged"


def test_student_seed_and_copying_of_models_are_chosen(trained: PipelineConfig, tmp_path: Path) -> None:
    report = make_checkpoint(trained, "first", out=tmp_path / "out", models="refer")
    assert (report.name, report.seed) == ("first", 3)
    assert not (tmp_path / "out" / "models").exists()
    assert "CLIP is not in the folder, but named with its hash" in str(report)
    assert Predictor.from_checkpoint(tmp_path / "out", "cpu").checkpoint.name == "first"
    assert choose_student(trained) == "best"
    error = refused(make_checkpoint, trained, "frist")
    assert (error.got, "first" in str(error.expected)) == ("frist", True)
    assert "no finished training run" in refused(make_checkpoint, trained, seed=4).what
    assert "holds something else" in refused(make_checkpoint, trained, out=WEIGHTS).what


@pytest.mark.slow
def test_an_onnx_file_scores_as_torch_does_at_any_size(trained: PipelineConfig, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[onnx]'")
    config, out = write_pipeline(trained, tmp_path / "pipeline.yaml"), tmp_path / "out"
    # In a process of its own: torch's exporter does not understand the shape checks that the tests add.
    command = [sys.executable, "-m", "hoi", "checkpoint", "--config", str(config), "--out", str(out), "--onnx"]
    done = subprocess.run(command, cwd=WEIGHTS.parents[2], capture_output=True, text=True, check=True)
    pattern = r"student\.onnx: .* at most (\S+) from torch, (\S+) of the largest score, in 5 batches"
    match = re.search(pattern, done.stdout)
    assert match is not None, done.stdout
    assert max(float(match[1]), float(match[2])) <= 1e-4
    assert (out / "student.onnx").stat().st_size > 10_000


def test_a_student_with_attention_over_pairs_has_no_onnx_form() -> None:
    error = refused(check_exportable, "mine", HoiclipConfig(method="hoiclip"))
    assert error.what == "a student of the method 'hoiclip' has no ONNX form"
    assert error.where == "student 'mine'"
