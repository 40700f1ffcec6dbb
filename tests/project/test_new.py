"""A new project: what is written, what is said of it, and what is refused before anything is written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi.config import load_config
from hoi.errors import UserError
from hoi.project import new

CLIP = "local-dir:hoi/world/weights/clip"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Thirty pictures with one person and one bicycle each, as anybody's detector found them."""
    monkeypatch.chdir(Path(__file__).parents[2])
    (tmp_path / "my photos").mkdir()
    dice = np.random.default_rng(0)
    images, results = [], []
    for k in range(30):
        name = f"{k:02d}.png"
        Image.fromarray(dice.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "my photos" / name)
        images.append({"id": k, "file_name": name})
        for category, box in ((1, [5, 5, 20, 30]), (2, [20, 10, 30, 25])):
            results.append({"image_id": k, "category_id": category, "bbox": box, "score": 0.9})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "categories": categories}))
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "phrases.txt").write_text("riding a bike | cycling\nfixing a bicycle\n")
    return tmp_path


def run(place: Path, *more: str, **changes: str) -> int:
    options = {
        "name": "mine",
        "images": str(place / "my photos"),
        "phrases": str(place / "phrases.txt"),
        "detector": str(place / "results.json"),
        "instances": str(place / "instances.json"),
        "clip": CLIP,
        "out": str(place),
    } | changes
    return new._command([*(part for key, value in options.items() for part in (f"--{key}", value)), *more])


def test_the_file_loads_and_everything_is_said_beforehand(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 0
    said = capsys.readouterr().out
    config = load_config(place / "mine.yaml")
    assert config.dataset.name == "folder"
    assert config.dataset.images == str(place / "my photos")
    assert config.detector.name == "precomputed"
    assert [student.supervision for student in config.students.values()] == ["teacher"]
    assert "a photo of a person riding a bike. | a photo of a person cycling." in said
    assert "30 images (30 .png), 30 of them decoded" in said
    assert "precomputed detections list all 30 images" in said
    assert "30 images, about 30 pairs" in said
    assert "minutes with" in said
    assert f"make teacher-cache CONFIG={place / 'mine.yaml'}" in said
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    "folder", ['it\'s $my "photos", one', "null", ".inf", "a: b # c", "schöne Fotos\u00a0🚲\u0085"]
)
def test_any_name_of_a_folder_comes_back_from_the_file(
    place: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "my photos").rename(place / folder)
    (place / "hoi").symlink_to(Path("hoi").absolute())
    monkeypatch.chdir(place)
    assert run(place, images=folder, name="no") == 0
    config = load_config(place / "no.yaml")
    assert (config.name, config.dataset.name) == ("no", "folder")
    assert config.dataset.images == folder
    said = next(line for line in new.next_commands(config, Path("no.yaml")) if "predict" in line)
    assert f"IMAGES={folder}" in shlex.split(said.replace("$$", "$"))


def test_an_older_file_is_never_replaced(place: Path) -> None:
    (place / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        run(place)
    assert (place / "mine.yaml").read_text() == "mine"


def test_images_that_cannot_be_read_are_named_with_the_reason(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "my photos" / "07.png").write_bytes(b"")
    assert run(place) == 0
    assert "warning 30 images (30 .png), 30 of them decoded: some cannot be read" in (said := capsys.readouterr().out)
    assert "07.png (the file is empty)" in said
    for k in range(10):
        (place / "my photos" / f"{k:02d}.png").write_text("hello")
    (place / "mine.yaml").unlink()
    assert run(place) == 1
    assert "mend 1 error" in capsys.readouterr().out


def test_weights_that_are_not_here_are_not_downloaded_and_the_time_is_measured_all_the_same(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(place / "hub"))
    assert run(place, detector="ssdlite320_mobilenet_v3_large") == 0
    said = capsys.readouterr().out
    assert "warning the detector's weights DEFAULT are not here yet" in said
    assert "knows all 2 objects" in said
    assert "time measured here with random weights" in said
    assert not (place / "hub").exists()


def test_an_object_that_the_detector_lacks_is_an_error_with_what_to_do(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "phrases.txt").write_text("riding a bicycle\nriding a bicicle taxi\n")
    assert run(place) == 1
    said = capsys.readouterr().out
    assert "error   the detector does not know 1 of the vocabulary's 3 objects" in said
    assert "bicicle_taxi" in said
    assert "open_vocabulary" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../mine"}, "a file and a folder will have this name"),
        ({"images": "/nowhere"}, "no such folder of images"),
        ({"phrases": "/nowhere"}, "no such file of phrases"),
        ({"clip": "ViT-B-16"}, "CLIP is not understood"),
        ({"clip": "local-dir:a${HOME}"}, r"a pipeline file cannot name this .* --clip"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(place: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(place, **changes)
    assert not list(place.glob("*.yaml"))
