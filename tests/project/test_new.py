"""A new project: what is written, what is said of it, and what is refused before anything is written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoi.config import load_config
from hoi.project.new import Project, Report, next_commands, write_project
from tests.fakes.pipelines import WEIGHTS, refused

CLIP = f"local-dir:{WEIGHTS / 'clip'}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty pictures with one person and one bicycle each, as anybody's detector found them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    rng = np.random.default_rng(0)
    images, results = [], []
    for k in range(30):
        name = f"{k:02d}.png"
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "my photos" / name)
        images.append({"id": k, "file_name": name})
        for category, box in ((1, [5, 5, 20, 30]), (2, [20, 10, 30, 25])):
            results.append({"image_id": k, "category_id": category, "bbox": box, "score": 0.9})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "categories": categories}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "phrases.txt").write_text("riding a bike | cycling\nfixing a bicycle\n")
    return tmp_path


def run(place: Path, **changes: str) -> Report:
    options = {
        "name": "mine",
        "images": str(place / "my photos"),
        "phrases": str(place / "phrases.txt"),
        "detector": str(place / "results.json"),
        "instances": str(place / "instances.json"),
        "clip": CLIP,
    } | changes
    return write_project(Project(**options), place)


def test_the_file_loads_and_everything_is_said_beforehand(place: Path) -> None:
    report = run(place)
    config = load_config(place / "mine.yaml")
    assert config == report.config
    dataset: Any = config.dataset
    assert (dataset.name, dataset.images) == ("folder", str(place / "my photos"))
    assert (config.detector.name, config.cache.folder) == ("precomputed", "cache/mine")
    assert [student.supervision for student in config.students.values()] == ["teacher"]
    assert report.num_errors == 0
    for said in (
        "a photo of a person riding a bike. | a photo of a person cycling.",
        "30 images (30 .png), 30 of them decoded",
        "precomputed detections list all 30 images",
        "30 images, about 30 pairs",
        "minutes with",
        f"hoi teacher-cache --config {place / 'mine.yaml'}",
    ):
        assert said in str(report)
    assert {path.name for path in place.iterdir()} & {"outputs", "cache"} == set()


@pytest.mark.parametrize(
    "folder", ['it\'s $my "photos", one', "null", ".inf", "a: b # c", "schöne Fotos\u00a0🚲\u0085"]
)
def test_any_name_of_a_folder_comes_back_from_the_file(place: Path, folder: str) -> None:
    (place / "my photos").rename(place / folder)
    assert run(place, images=folder, name="no").num_errors == 0
    config = load_config(place / "no.yaml")
    dataset: Any = config.dataset
    assert (config.name, dataset.name, dataset.images) == ("no", "folder", folder)
    *_, predict = next_commands(config, Path("no.yaml"))
    assert folder in shlex.split(predict)


def test_an_older_file_is_never_replaced(place: Path) -> None:
    (place / "mine.yaml").write_text("mine")
    assert "there already" in refused(run, place).what
    assert (place / "mine.yaml").read_text() == "mine"


def test_unreadable_images_are_named_with_the_reason(place: Path) -> None:
    (place / "my photos" / "07.png").write_bytes(b"")
    report = run(place)
    assert report.num_errors == 0
    assert "warning 30 images (30 .png), 30 of them decoded: some cannot be read" in str(report)
    assert "07.png (the file is empty)" in str(report)
    for k in range(10):
        (place / "my photos" / f"{k:02d}.png").write_text("hello")
    (place / "mine.yaml").unlink()
    assert "mend 1 error" in str(run(place))


def test_absent_weights_are_not_downloaded_and_time_is_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(place / "hub"))
    report = run(place, detector="ssdlite320_mobilenet_v3_large")
    assert report.num_errors == 0
    for said in (
        "warning the detector's weights DEFAULT are not here yet",
        "knows all 2 objects",
        "time measured here with random weights",
    ):
        assert said in str(report)
    assert not (place / "hub").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "../mine"}, "a file and a folder will have this name"),
        ({"images": "/nowhere"}, "no such folder of images"),
        ({"phrases": "/nowhere"}, "there is no such file"),
        ({"clip": "ViT-B-16"}, "the CLIP is not understood"),
        ({"clip": "local-dir:a${HOME}"}, "a pipeline file cannot name this"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_written(place: Path, changes: dict[str, str], what: str) -> None:
    assert what in refused(run, place, **changes).what
    assert not list(place.glob("*.yaml"))
