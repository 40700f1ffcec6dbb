"""The self-contained checkpoint: loads with nothing else at hand, and refuses what it was not made with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hoi.config import PipelineConfig
from hoi.datasets import open_images
from hoi.errors import UserError
from hoi.prediction import Checkpoint, Predictor
from hoi.prediction import export as stage
from hoi.prediction.onnx import refuse_what_has_no_export
from hoi.students.hoiclip.settings import HoiclipConfig
from tests.fakes.pipelines import WEIGHTS, trained_world, write_pipeline


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return trained_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def folder(world: PipelineConfig, tmp_path: Path) -> Path:
    """A copy of the checkpoint, to spoil."""
    return Path(shutil.copytree(Path(world.output).parent / "checkpoint", tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**record, **changes}))


def test_a_copy_runs_elsewhere_without_pipeline_file_cache_or_the_models_own_place(
    world: PipelineConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_images(world.dataset, "test").read(1)
    before = Predictor.from_checkpoint(Path(world.output).parent / "checkpoint", "cpu")(image)
    record = json.loads((folder / "checkpoint.json").read_text())
    for place in record["places"].values():
        place["was"] = place["was"].replace("/", "/nowhere/")
    edit(folder, places=record["places"])
    monkeypatch.chdir(folder.parent)
    after = Predictor.from_checkpoint("copy", "cpu")(image)
    assert after.triplets == before.triplets != []


def test_it_is_made_of_json_and_safetensors_and_says_what_it_is(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {"checkpoint.json", "student.safetensors", "text.safetensors", "MODEL_CARD.md"}
    clip = {f"models/teacher/clip/{path.name}" for path in (WEIGHTS / "clip").iterdir()}
    assert files == own | clip | {"models/detector/detector.safetensors"}
    card = (folder / "MODEL_CARD.md").read_text()
    record = json.loads((folder / "checkpoint.json").read_text())
    for part in ("detector", "teacher"):
        assert record["models"][part]["weights_sha256"][:16] in card
    for text in ("6 of the split `train`", "HOI labels: None", "It has not been graded", "Limits", "split `clip`"):
        assert text in card


def test_written_again_it_is_the_same_to_the_byte_and_damage_is_mended(world: PipelineConfig, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "checkpoint.json").unlink()
    (folder / "student.safetensors").write_bytes(b"damaged")
    stage.write_checkpoint(world, out=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("part", "key", "word"), [("detector", "detector.weights", "detector"), ("teacher", "teacher.model", "CLIP")]
)
def test_another_detector_or_clip_is_refused_by_name(
    folder: Path, tmp_path: Path, part: str, key: str, word: str
) -> None:
    other = tmp_path / "other"
    [file] = (folder / "models" / part).rglob("*.safetensors")
    shutil.copytree(file.parent, other)
    tensors = load_file(other / file.name)
    name = next(name for name, value in sorted(tensors.items()) if value.is_floating_point() and value.ndim > 1)
    tensors[name].view(-1)[0] += 1
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        save_file(tensors, other / file.name, opened.metadata())
    place = f"local-dir:{other}" if part == "teacher" else str(other / file.name)
    expected = (
        rf"this is not the {word} that the checkpoint was made with .* expected: weights_sha256 \w{{16}}\.\.\. · got"
    )
    with pytest.raises(UserError, match=expected) as caught:
        Predictor.from_checkpoint(folder, "cpu", [f"{key}={place}"])
    assert "\n" not in str(caught.value)


def test_thresholds_may_change_and_other_settings_may_not(folder: Path) -> None:
    predictor = Predictor.from_checkpoint(folder, "cpu", ["pairs.max_humans=1", "detector.min_score=0.3"])
    assert (predictor.config.pairs.max_humans, predictor.config.detector.min_score) == (1, 0.3)
    with pytest.raises(UserError, match=r"not the CLIP .* crop_margins"):
        Predictor.from_checkpoint(folder, "cpu", ["teacher.crop.margins=[1.0, 1.4]"])
    for override in ("students.best.width=3", "pairs.max_humans"):
        with pytest.raises(UserError, match="does not take this override"):
            Checkpoint.open(folder, [override])
    with pytest.raises(UserError, match=r"below a key that holds a value · expected: name="):
        Checkpoint.open(folder, ["detector.name.x=1"])


def test_what_is_no_whole_checkpoint_of_this_version_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this is no checkpoint .* expected: checkpoint\.json"):
        Checkpoint.open(tmp_path / "nothing")
    edit(folder, version=2)
    with pytest.raises(
        UserError, match="expected: hoi-distill checkpoint, version 1 · got: hoi-distill checkpoint, version 2"
    ):
        Checkpoint.open(folder)
    edit(folder, version=1)
    damaged = bytearray((folder / "student.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "student.safetensors").write_bytes(damaged)
    with pytest.raises(UserError, match=r"not the one that was written · where: .*student\.safetensors"):
        Checkpoint.open(folder)
    (folder / "text.safetensors").unlink()
    with pytest.raises(UserError, match=r"is missing|not the one"):
        Checkpoint.open(folder)
    whole = json.loads((folder / "checkpoint.json").read_text())
    for cut in ({key: value for key, value in whole.items() if key != "places"}, whole | {"files": {}}):
        (folder / "checkpoint.json").write_text(json.dumps(cut))
        with pytest.raises(UserError, match=r"is damaged .* expected: (places|student\.safetensors, text)"):
            Checkpoint.open(folder)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(UserError, match="record of a checkpoint is damaged"):
        Checkpoint.open(folder)


def test_the_command_line_chooses_student_seed_and_whether_models_are_copied(
    world: PipelineConfig, tmp_path: Path
) -> None:
    arguments = ["--config", str(write_pipeline(world, tmp_path / "pipeline.yaml")), "--out", str(tmp_path / "out")]
    report = stage.main([*arguments, "--student", "first", "--models", "refer"])
    assert (report.name, report.seed) == ("first", 3)
    assert not (tmp_path / "out" / "models").exists()
    assert "CLIP is not in the folder, but named with its hash" in str(report)
    assert Predictor.from_checkpoint(tmp_path / "out", "cpu").checkpoint.name == "first"
    assert stage.choose_student(world) == "best"
    with pytest.raises(UserError, match=r"no such student .* nearest: first"):
        stage.main([*arguments, "--student", "frist"])
    with pytest.raises(UserError, match="there is no finished training run"):
        stage.main([*arguments, "--seed", "4"])
    with pytest.raises(UserError, match="holds something else"):
        stage.write_checkpoint(world, out=WEIGHTS)


def test_an_onnx_file_scores_as_torch_does_on_any_number_of_images_and_pairs(
    world: PipelineConfig, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[onnx]'")
    config, out = write_pipeline(world, tmp_path / "pipeline.yaml"), tmp_path / "out"
    # In a process of its own: the exporter reads code, and the tests' checks of shapes are no code that it knows.
    command = [sys.executable, "-m", "hoi.prediction.export", "--config", str(config), "--out", str(out), "--onnx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=WEIGHTS.parents[2], check=True)
    found = re.search(
        r"student\.onnx: .* at most (\S+) from torch, (\S+) of the largest score, in 5 batches", done.stdout
    )
    assert found is not None, done.stdout
    assert max(float(found[1]), float(found[2])) <= 1e-4
    assert (out / "student.onnx").stat().st_size > 10_000


def test_a_student_that_attends_over_its_images_pairs_has_no_onnx_form() -> None:
    with pytest.raises(UserError, match=r"method 'hoiclip' has no ONNX form .*student 'mine'"):
        refuse_what_has_no_export("mine", HoiclipConfig(method="hoiclip"))
