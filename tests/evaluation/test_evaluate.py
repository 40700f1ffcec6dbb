"""Stage three on a small real run of the embedded world: cache, students, table; and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import open_split
from hoi.config import PipelineConfig, VlmConfig, parse_config
from hoi.config.section import BASELINE_ROWS
from hoi.datasets import load_vocabulary
from hoi.evaluation import hico
from hoi.evaluation.audit import run_audit
from hoi.evaluation.baselines import GATE_EXPONENTS, baseline_names
from hoi.evaluation.evaluate import EvaluationReport, evaluate, short_table
from hoi.evaluation.score import score
from hoi.files import sole_writer
from hoi.labels import load_labels, rare_mask
from hoi.matching import CEILING
from hoi.scoring import score_split
from hoi.training import train
from tests.fakes.pipelines import refused, small_world

TUNED = ["direct_clip_tuned", "direct_clip_gated"]
BASELINES = ["detector_prior", "direct_clip", "direct_clip_image", "direct_clip_product", *TUNED]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """A pipeline whose cache and students are there."""
    students = {
        "student": {"width": 16, "score_exponent": 0.7, "targets": {"image": "pairs"}, "gate": {"exponent": 0.5}},
        "supervised": {"width": 16, "supervision": "labels"},
        "other": {"width": 16, "aggregation": "logsumexp"},
    }
    dataset = {"name": "world", "splits": {"train": 8, "validation": 6, "test": 8}}
    seeds = {"seeds": [0, 3], "epochs": 1}
    config = small_world(tmp_path_factory.mktemp("world"), dataset=dataset, students=students, train=seeds)
    teacher_cache.build_cache(config)
    train.train_students(config)
    return config


@pytest.fixture
def plain(config: PipelineConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


@pytest.fixture(scope="module")
def report(config: PipelineConfig) -> EvaluationReport:
    return evaluate(config)


def written(config: PipelineConfig, name: str) -> Any:
    return json.loads((Path(config.output) / name).read_text())


def test_every_method_has_its_rows(config: PipelineConfig, report: EvaluationReport) -> None:
    rows = written(config, "results.json")
    found = [(row["name"], row["seed"]) for row in rows]
    branches = ["global", "union", "human_object"]
    expected: list[tuple[str, int | None]] = [(name, None) for name in BASELINES]
    expected += [(name, seed) for seed in (0, 3) for name in [*branches, "ungated", "student"]]
    expected += [("supervised", seed) for seed in (0, 3)]
    expected += [(name, seed) for seed in (0, 3) for name in [*(f"other/{branch}" for branch in branches), "other"]]
    assert found == expected
    for row in rows:
        assert 0 <= row["full"] <= 100
        assert (row["num_images"], row["num_positives"]) == (8, len(load_labels(config.dataset, "test")))
    knobs = {row["name"]: row["knobs"] for row in rows}
    assert knobs["student"]["score_exponent"] == knobs["ungated"]["score_exponent"] == 0.7
    assert knobs["direct_clip"] == {"form": "softmax", "temperature": 1.0, "margin": 1.15, "score_exponent": 1.0}
    assert {name for name in knobs if "tuned_on" in knobs[name]} == {*TUNED, "supervised"}
    assert {knobs[name]["tuned_on"] for name in (*TUNED, "supervised")} == {"validation"}
    assert knobs["direct_clip_gated"]["gate_exponent"] in GATE_EXPONENTS
    # It starts from the tuned row, so all that was tried for that one was tried for it.
    assert knobs["direct_clip_gated"]["num_tried"] > knobs["direct_clip_tuned"]["num_tried"]


def test_a_students_row_is_its_triplets_evaluated(config: PipelineConfig, report: EvaluationReport) -> None:
    split, vocabulary = open_split(config, "test"), load_vocabulary(config.dataset)
    folder = train.run_folder(config, "student", 3, split.fingerprint)
    student = folder.load_student(split.text_bank, vocabulary, split.axes)
    triplets = score_split(student, split.batches(64), vocabulary, 0.7, "cpu")
    labels, rare = load_labels(config.dataset, "test"), rare_mask(config.dataset, "train")
    per_class = written(config, "per_class.json")
    assert [entry["interaction"] for entry in per_class] == vocabulary.names
    for part in ("student", "ungated", "union"):
        result = hico.evaluate(triplets[part], labels, len(vocabulary), rare, vocabulary.is_no_interaction)
        row = next(r for r in written(config, "results.json") if (r["name"], r["seed"]) == (part, 3))
        assert (row["full"] / 100, row["rare"] / 100) == pytest.approx((result.full, result.rare), abs=1e-6)
        shown = [next(a["percent"] for a in e["ap"] if (a["name"], a["seed"]) == (part, 3)) for e in per_class]
        assert shown == pytest.approx(list(100 * result.ap), abs=1e-4)


def test_the_summary_says_how_sure_and_what_made_it(config: PipelineConfig, report: EvaluationReport) -> None:
    summary = written(config, "summary.json")
    assert summary["config"]["evaluation"]["bootstrap"] == 20
    assert summary["fingerprint"] == open_split(config, "test").fingerprint
    *baselines, branch = [found for found in summary["comparisons"] if found["better"] == "student"]
    assert {found["better"] for found in summary["comparisons"]} == {"student", "other"}
    mean = {entry["name"]: entry["full"]["mean"] for entry in summary["means"]}
    assert [found["than"] for found in baselines] == TUNED
    for found in baselines:
        assert (found["better"], found["num_seeds"]) == ("student", [2, 1])
        assert found["low"] <= found["mean"] <= found["high"]
        assert found["observed"] == pytest.approx(mean["student"] - mean[found["than"]], abs=1e-3)
    assert branch["than"] == max(("global", "union", "human_object"), key=mean.__getitem__)
    assert set(summary["agreement"]) == {"student", "other"}
    assert set(summary["agreement"]["student"]) == {"global", "union", "human_object"}


def test_the_printed_report_holds_table_and_files(config: PipelineConfig, report: EvaluationReport) -> None:
    text = str(report)
    assert "8 images" in text.splitlines()[0]
    assert "student − direct_clip_tuned: " in text
    assert f"wrote {config.output}/results.json" in text
    counts = re.findall(r"^(detector_prior|student|supervised) +(–|2) ", text, re.MULTILINE)
    assert counts == [("detector_prior", "–"), ("student", "2"), ("supervised", "2")]


def test_the_short_table_has_students_and_strong_baselines(report: EvaluationReport) -> None:
    names = [line.split()[0] for line in short_table(report).splitlines()[3:]]
    assert len(names) == 8
    assert {"student", "supervised", "other"} < set(names)
    assert "global" not in names
    full = {row.name: row.means["full"] or 0.0 for row in report.rows if row.seed is None}
    shown = [full[name] for name in names if name in full]
    assert min(shown) >= max(value for name, value in full.items() if name not in names)


def test_no_student_may_take_the_name_of_a_baseline() -> None:
    vlm = VlmConfig(backend="coca", model="m", image_scores=True, pair_scores=True)
    assert {*baseline_names({"a": vlm}), CEILING} == BASELINE_ROWS


def test_a_second_evaluation_writes_the_same_bytes(config: PipelineConfig, report: EvaluationReport) -> None:
    before = {path: path.read_bytes() for path in report.files}
    assert [path.name for path in before] == ["per_class.json", "summary.json", "audit.json", "results.json"]
    evaluate(config)
    assert {path: path.read_bytes() for path in report.files} == before


def test_two_evaluations_of_one_folder_do_not_meet(config: PipelineConfig, report: EvaluationReport) -> None:
    folder = Path(config.output)
    with sole_writer(folder):
        error = refused(evaluate, config)
    assert (error.what, error.where) == ("another run writes into this folder", folder)
    (folder / ".results.json.0123.part").write_bytes(b"half")
    evaluate(config)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("section", "change", "what"),
    [
        ("train", {"seeds": [0, 3, 9]}, "no finished training run"),
        ("train", {"epochs": 2}, "training run of other settings"),
        ("cache", {"folder": "nowhere"}, "there is no teacher cache"),
        ("teacher", {"image_size_px": 64}, "cache was made with other settings"),
        ("evaluation", {"tune_split": "test"}, "tuning on the evaluated split"),
        ("evaluation", {"split": "exam"}, "no split 'exam'"),
        ("evaluation", {"zero_shot": ["rare_first", "uc0"]}, "no zero-shot split 'uc0' of world"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    plain: dict[str, Any], section: str, change: dict[str, Any], what: str
) -> None:
    changed = {**plain, section: {**plain[section], **change}}
    changed["students"] = {"student": plain["students"]["student"]}
    assert what in refused(evaluate, parse_config(changed, "test")).what


def test_without_annotations_only_agreement_is_reported(
    tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").symlink_to(Path(plain["output"]) / "runs")
    monkeypatch.setattr("hoi.evaluation.evaluate.has_labels", lambda *_: False)
    report = evaluate(parse_config({**plain, "output": str(tmp_path)}, "test"))
    assert report.rows == []
    assert [path.name for path in report.files] == ["summary.json"]
    assert "no average precision" in str(report)
    assert "student/human_object" in str(report)


def test_a_supervised_student_has_no_branch_rows(tmp_path: Path, plain: dict[str, Any]) -> None:
    changed = {**plain, "output": str(tmp_path), "students": {"student": plain["students"]["supervised"]}}
    config = parse_config(changed, "test")
    train.train_students(config)
    report = evaluate(config)
    assert [row.name for row in report.rows] == [*BASELINES, "student", "student"]
    assert [found.than for found in report.comparisons] == TUNED


def test_rows_and_audit_say_which_labels_were_read(config: PipelineConfig, report: EvaluationReport) -> None:
    read = {row["name"]: row["audit"]["labels_read"] for row in written(config, "results.json")}
    assert {name for name in read if read[name]["training"]} == {"supervised"}
    assert {name for name in read if read[name]["tuning"]} == {*TUNED, "supervised"}
    by_stage_three = written(config, "audit.json")
    assert run_audit(config).content == by_stage_three == written(config, "audit.json")
    assert "split `detector`" in by_stage_three["detector"]["trained_on"]
    assert "split `clip`" in by_stage_three["teacher"]["trained_on"]


def test_saved_predictions_score_what_stage_three_says(tmp_path: Path, plain: dict[str, Any]) -> None:
    changed = {**plain, "evaluation": {"bootstrap": 5, "save_predictions": True}}
    config = parse_config(changed, "test")
    report = evaluate(config)
    saved = [path for path in report.files if path.parent.name == "predictions"]
    names = [f"{name}-seed-{seed}.jsonl.gz" for name in ("student", "other") for seed in (0, 3)]
    assert [path.name for path in saved] == names
    (tmp_path / "pipeline.yaml").write_text(json.dumps(changed))
    scored = score("world", tmp_path / "pipeline.yaml", saved[-1]).content
    row = next(row for row in report.rows if (row.name, row.seed) == ("other", 3))
    assert scored["ap"] == pytest.approx(list(row.result.ap), abs=1e-9)
