"""The audit: what is known of published weights, what is not, leaks named; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hoi.config import PipelineConfig, parse_config
from hoi.config.detectors import COCO_2017
from hoi.evaluation.audit import UNKNOWN, AuditReport, audit, run_audit
from tests.fakes.pipelines import refused, whole_row, whole_summary

WORLD = {"name": "world", "splits": {"train": 4, "validation": 3, "test": 5}}
TORCHVISION = {"name": "torchvision"}
OPENAI = {"model": "ViT-B-16-quickgelu", "pretrained": "openai"}


def config_of(folder: Path = Path("out"), **changes: Any) -> PipelineConfig:
    plain = {
        "name": "audited",
        "output": str(folder),
        "dataset": WORLD,
        "detector": {"name": "world"},
        "teacher": {"model": "local-dir:hoi/world/weights/clip"},
        "cache": {"folder": str(folder / "cache")},
        "students": {"student": {}, "supervised": {"supervision": "labels"}},
    }
    return parse_config({**plain, **changes}, "test")


def row(name: str, **knobs: Any) -> dict[str, Any]:
    return whole_row(name=name, knobs=knobs)


ROWS = [
    row("detector_prior", score_exponent=1.0),
    row("direct_clip_tuned", tuned_on="validation", num_tried=660),
    row("student", supervision="teacher"),
    row("supervised", supervision="labels", tuned_on="validation", num_tried=11),
]


def printed_audit(content: dict[str, Any]) -> str:
    return str(AuditReport(content, Path("audit.json")))


def test_each_rows_labels_follow_from_what_made_it() -> None:
    found = {entry["name"]: entry for entry in audit(config_of(), ROWS, {})["rows"]}
    nothing = {"training": None, "choosing the epoch": None, "tuning": None, "grading": "test"}
    assert (found["detector_prior"]["supervision"], found["detector_prior"]["labels_read"]) == ("none", nothing)
    assert (found["student"]["supervision"], found["student"]["labels_read"]) == ("teacher", nothing)
    assert found["direct_clip_tuned"]["labels_read"] == {**nothing, "tuning": "validation"}
    assert found["direct_clip_tuned"]["num_settings_tried"] == 660
    by_labels = {"training": "train", "choosing the epoch": "validation", "tuning": "validation"}
    assert found["supervised"]["labels_read"] == {**nothing, **by_labels}


@pytest.mark.parametrize(
    ("detector", "known"),
    [
        ({"name": "world"}, "scenes of the world's split `detector`"),
        ({"name": "torchvision"}, COCO_2017),
        ({"name": "torchvision", "weights": "COCO_V1"}, COCO_2017),
        ({"name": "torchvision", "weights": "random"}, "nothing: random weights"),
        ({"name": "torchvision", "weights": "mine.pth"}, UNKNOWN),
        ({"name": "world", "weights": "mine.safetensors"}, UNKNOWN),
    ],
)
def test_a_detectors_training_data_follows_from_its_weights(detector: dict[str, Any], known: str) -> None:
    found = audit(config_of(detector=detector), ROWS, {})
    assert found["detector"]["trained_on"].startswith(known)
    assert any("detector_trained_on" in warning for warning in found["warnings"]) == (known == UNKNOWN)
    said = audit(config_of(detector=detector, evaluation={"detector_trained_on": "my boxes"}), ROWS, {})
    assert said["detector"]["trained_on"] == "my boxes"


@pytest.mark.parametrize(
    ("teacher", "known"),
    [
        (OPENAI, "OpenAI's WIT"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "LAION-2B"),
        ({"model": "coca_ViT-B-32", "pretrained": "mscoco_finetuned_laion2b_s13b_b90k"}, "a public image-text set,"),
        ({"model": "ViT-B-16-SigLIP", "pretrained": "webli"}, "WebLI"),
        ({"model": "RN50", "pretrained": "random"}, "nothing"),
        ({"model": "local-dir:/somewhere"}, UNKNOWN),
    ],
)
def test_a_teachers_training_data_follows_from_open_clips_tag(teacher: dict[str, Any], known: str) -> None:
    assert audit(config_of(teacher=teacher), ROWS, {})["teacher"]["trained_on"].startswith(known)


def test_coco_detectors_are_a_leak_on_vcoco_alone() -> None:
    vcoco = {"name": "vcoco", "images": "coco"}
    warnings = audit(config_of(dataset=vcoco, detector=TORCHVISION, teacher=OPENAI), ROWS, {})["warnings"]
    assert "train2017" in warnings[0]
    assert "boxes of test images were seen" in warnings[0]
    warnings = audit(config_of(dataset={"name": "hicodet", "root": "h"}, detector=TORCHVISION), ROWS, {})["warnings"]
    assert "not known" in warnings[0]
    warnings = audit(config_of(), ROWS, {})["warnings"]
    assert not any("COCO" in warning for warning in warnings)


def test_a_label_trained_student_is_no_zero_shot_result() -> None:
    hicodet = {"name": "hicodet", "root": "h"}
    config = config_of(dataset=hicodet, evaluation={"zero_shot": ["rare_first"]})
    drop = {"rare_first": {"num_pairs": 3, "num_unseen": 4, "num_seen": 1}}
    found = audit(config, ROWS, drop)
    assert any("no zero-shot results" in warning for warning in found["warnings"])
    assert found["rare_list"].startswith("the official 138")
    assert "loses 4 unseen and 1 seen labels" in printed_audit(found)
    alone = config_of(dataset=hicodet, evaluation={"zero_shot": ["rare_first"]}, students={"student": {}})
    assert not any("no zero-shot results" in warning for warning in audit(alone, ROWS, drop)["warnings"])


def test_the_audit_says_what_zero_shot_rows_were_spared() -> None:
    supervised = {"supervision": "labels", "zero_shot": "rare_first"}
    rows = [*ROWS, row("hidden", **supervised, tuned_on="validation", num_tried=11)]
    found = audit(config_of(students={"hidden": supervised}), rows, {})
    printed = printed_audit(found)
    (line,) = [line for line in printed.splitlines() if line.startswith("hidden")]
    assert "train without rare_first's unseen  validation (11 settings) without rare_first's unseen" in line
    (others,) = [line for line in printed.splitlines() if line.startswith("supervised")]
    assert "without" not in others
    assert found["zero_shot_counted_on"] == "train"
    assert "hide was counted on all labels of split train" in printed
    hicodet = audit(config_of(dataset={"name": "hicodet", "root": "h"}, students={"hidden": supervised}), rows, {})
    assert "zero_shot_counted_on" not in hicodet
    by_names = audit(config_of(students={"hidden": {**supervised, "zero_shot": "unseen_verb"}}), rows, {})
    assert "zero_shot_counted_on" not in by_names


@pytest.fixture
def finished(tmp_path: Path) -> PipelineConfig:
    """A run whose results are there, made with another detector than the pipeline file names now."""
    made_by = config_of(tmp_path, detector=TORCHVISION)
    (tmp_path / "results.json").write_text(json.dumps(ROWS))
    (tmp_path / "summary.json").write_text(json.dumps(whole_summary(config=made_by.model_dump(mode="json"))))
    return config_of(tmp_path)


def test_the_audit_is_of_the_config_that_made_the_results(finished: PipelineConfig) -> None:
    report = run_audit(finished)
    found = report.content
    assert found["detector"]["trained_on"] == COCO_2017
    assert json.loads((Path(finished.output) / "audit.json").read_text()) == found
    printed = str(report)
    assert "supervised         labels       train" in printed
    assert "validation (660 settings)" in printed


def test_evaluated_images_seen_in_training_are_counted(finished: PipelineConfig, tmp_path: Path) -> None:
    names = ["world1-0-test-000003.png", "COCO_val2014_000000000294.jpg", "train/world1-0-test-000001.jpg", "x y.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    seen = run_audit(finished, tmp_path / "list.txt").content["seen_in_training"]
    assert (seen["num_seen"], seen["num_listed"]) == (2, 4)
    (tmp_path / "list.json").write_text(json.dumps({"images": [{"file_name": name} for name in names[:2]]}))
    report = run_audit(finished, tmp_path / "list.json")
    counts = {"num_listed": 2, "num_evaluated": 5, "num_seen": 1}
    assert report.content["seen_in_training"] == {"list": str(tmp_path / "list.json"), **counts}
    assert "1 of 5 evaluated images" in str(report)


@pytest.mark.parametrize("text", ['{"images": [{"file_na', '{"annotations": []}', "[1, 2]", '{"images": []}', "\n"])
def test_a_misread_list_of_training_images_is_refused(finished: PipelineConfig, tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert "file_name" in str(refused(run_audit, finished, tmp_path / "list").expected)


def test_without_results_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    for what in ("there are no results", "this result file is damaged"):
        error = refused(run_audit, config_of(tmp_path))
        assert (error.what, error.where, error.fix) == (what, tmp_path / "results.json", "hoi eval")
        (tmp_path / "results.json").write_text("[")
