"""The pipeline files in examples/: each loads, names what exists, and can be planned before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torchvision

from hoi.cache.tools.estimate import plan
from hoi.config import PipelineConfig, load_config
from hoi.config.loading import read_yaml
from hoi.datasets.vcoco import split_ids
from tests.fakes.hicodet import made_up, write_rehearsal

EXAMPLES = Path(__file__).parents[1] / "examples"
PIPELINES = sorted(
    path for path in EXAMPLES.glob("*.yaml") if isinstance(plain := read_yaml(path), dict) and "dataset" in plain
)
HEADINGS = ("# Data  ", "# Weights  ", "# Disk  ", "# Time  ", "# Score  ")
REAL = ("hicodet", "hicodet-best", "vcoco")
BY_LABELS = {
    "hicodet-hoiclip": {"hoiclip_labels", "hoiclip_rare_first"},
    "methods": {"hoiclip_labels", "supervised"},
}
"""Students that learn from labels; no other example has one."""
CACHE_OF = {"scoring": "methods"}
"""Whose cache an example without one of its own reads."""


def load(path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, *overrides: str) -> PipelineConfig:
    for name in ("DATA", "PHOTOS", "CLIP"):
        monkeypatch.setenv(name, str(data))
    return load_config(path, overrides)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_an_example_loads_and_keeps_its_outputs_apart(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = load(path, monkeypatch, tmp_path)
    assert (config.name, config.output) == (path.stem, f"outputs/{path.stem}")
    assert config.cache.folder == f"cache/{CACHE_OF.get(path.stem, path.stem)}"
    by_labels = {name for name, student in config.students.items() if student.supervision == "labels"}
    assert by_labels == BY_LABELS.get(path.stem, set())


@pytest.mark.parametrize("name", [*REAL, "hicodet-hoiclip"])
def test_an_example_on_real_data_says_what_it_takes(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = EXAMPLES / f"{name}.yaml"
    config = load(path, monkeypatch, tmp_path)
    assert config.detector.name == "torchvision"
    detector: Any = config.detector
    weights = torchvision.models.get_model_weights(detector.model)[detector.weights]
    text = path.read_text()
    assert weights.url.rsplit("/", 1)[1] in text or "As in examples/hicodet.yaml" in text
    assert (config.teacher.model, config.teacher.pretrained) in open_clip.list_pretrained()
    # OpenAI's weights want QuickGELU, and stage one refuses them without.
    assert config.teacher.pretrained != "openai" or config.teacher.model.endswith("-quickgelu")
    header = text[: text.index("\nname:")]
    for heading in (*(HEADINGS if name != "hicodet-best" else HEADINGS[1:]), "Estimated", "ublished"):
        assert heading in header, heading
    # Best and faithful are the same students everywhere.
    shipped = load_config(EXAMPLES.parent / "pipeline.yaml").students
    if name in REAL:
        assert config.students == {kept: shipped[kept] for kept in ("faithful", "best")}


@pytest.mark.parametrize("name", ["hicodet", "hicodet-best", "hicodet-hoiclip"])
def test_hicodet_can_be_planned_without_weights(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_rehearsal(tmp_path / "tree", made_up(5), 3, 2)
    config = load(EXAMPLES / f"{name}.yaml", monkeypatch, tmp_path / "tree", f"cache.folder={tmp_path / 'cache'}")
    estimate = plan(config)
    assert sum(split.plan.num_images for split in estimate.splits) == 5
    assert (estimate.axes["K"], estimate.axes["D"]) == (600, 512 if name == "hicodet-hoiclip" else 1024)
    # ViT-B/32 at 224 px: 7 x 7 cells, 75 KB an image.
    assert estimate.axes.get("C") == (768 if name == "hicodet-hoiclip" else None)
    assert estimate.fits
    assert not (tmp_path / "cache").exists()


def test_vcoco_can_be_planned_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "images" / "val2014").mkdir(parents=True)
    config = load(EXAMPLES / "vcoco.yaml", monkeypatch, tmp_path, f"cache.folder={tmp_path / 'cache'}")
    estimate = plan(config)
    assert {s.plan.split: s.plan.num_images for s in estimate.splits} == {
        name: len(split_ids()[name]) for name in ("train", "validation", "test")
    }
    assert estimate.axes["K"] == 370
