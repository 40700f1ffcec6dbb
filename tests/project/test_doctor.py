"""The doctor: a right tree passes, and each thing that can be wrong is named with the line that mends it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoi.config import HicodetDataset, load_config
from hoi.datasets import load_vocabulary
from hoi.project.dataset_checks import Finding
from hoi.project.doctor import Report, examine
from tests.fakes.hicodet import NAMES, instances_json, write_json, write_tree

FILES = ("train2015", "test2015")
PIPELINE = Path(__file__).parents[2] / "pipeline.yaml"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small right tree: 12 and 3 images, listed, annotated, and detected beforehand."""
    root = tmp_path / "hico"
    write_tree(root)
    train = [f"HICO_train2015_{k:08d}.jpg" for k in range(1, 13)]
    for half, names in zip(FILES, (train, NAMES), strict=True):
        (root / f"{half}.txt").write_text("\n".join(names))
    pair = {"boxes_h": [[1, 1, 9, 9]], "boxes_o": [[2, 2, 8, 8]], "hoi": [245]}
    annotated = {"filenames": train, "annotation": [pair] * 12, "size": [[64, 48]] * 12}
    write_json(root / "instances_train2015.json", annotated)
    write_json(root / "instances_test2015.json", instances_json())
    write_detections(root, [*train, *NAMES])
    return root


def write_detections(root: Path, names: list[str]) -> None:
    objects = load_vocabulary(load_config(PIPELINE, overrides(root)).dataset).objects
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    categories = [{"id": k, "name": name} for k, name in enumerate(objects)]
    write_json(root / "boxes.json", {"images": images, "categories": categories})
    write_json(root / "found.json", [])


def overrides(at: Path, **dataset: Any) -> list[str]:
    lists = {half: str(at / f"{half}.txt") for half in FILES}
    section = {"name": "hicodet", "root": str(at), "image_lists": lists} | dataset
    detector = {"name": "precomputed", "results": str(at / "found.json"), "instances": str(at / "boxes.json")}
    return [f"dataset={json.dumps(section)}", f"detector={json.dumps(detector)}", f"cache.folder={at / 'cache'}"]


def visit(at: Path, every: bool = False, **dataset: Any) -> tuple[Report, list[str]]:
    """Return the doctor's report, and its lines."""
    report = examine(load_config(PIPELINE, overrides(at, **dataset)), every)
    return report, str(report).splitlines()


def test_a_right_tree_passes_and_says_what_it_holds(tree: Path) -> None:
    report, lines = visit(tree, every=True)
    text = str(report)
    for expected in (
        "600 interactions of 80 objects and 117 verbs",
        "train2015: 12 of 38118 images by its list",
        "test2015: 3 pairs, 3 images, 1 without a pair; a part of the published 33405 pairs",
        "3 of 3 image files opened: all are images and have the annotated size",
        "precomputed detections list all 15 images",
        "0 errors, 0 warnings",
    ):
        assert expected in text
    assert (report.to_dict()["num_errors"], len(report.to_dict()["findings"])) == (0, len(lines) - 1)


def shrink(path: Path, size: tuple[int, int] = (64, 48), orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path, exif=exif)


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


FIRST = f"images/test2015/{NAMES[0]}"
ANNOTATIONS = "instances_test2015.json"


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda r: (r / FIRST).unlink(), f"error .*files are missing.*got: 1: {NAMES[0]} · next: put these"),
        (lambda r: (r / FIRST).write_bytes(b""), f"error .*empty.*0 bytes · got: 1: {NAMES[0]} · next: unpack"),
        (lambda r: (r / FIRST).write_bytes(b"<html>"), f"error .*no images.*{NAMES[0]} · next: unpack"),
        (lambda r: shrink(r / FIRST, (32, 24)), r"error .*another size.*annotated 64 x 48, file 32 x 24\).*next: use"),
        (lambda r: shrink(r / FIRST, orientation=6), f"error .*as stored.*exiftool .*-Orientation= .*{NAMES[0]}"),
        (lambda r: shrink(r / FIRST, orientation=3), "warning .*180 degrees.*next: look"),
        (lambda r: (r / ANNOTATIONS).unlink(), "warning .*test2015 has no annotations: stage three.*next: put"),
        (lambda r: (r / ANNOTATIONS).write_text("{}"), "error .*no HICO-DET annotation file"),
        (
            lambda r: rewrite(r / ANNOTATIONS, lambda p: p["annotation"][0]["boxes_h"][0].__setitem__(2, 99)),
            rf"warning .*outside their image.*{NAMES[0]} \(pair 0\)",
        ),
        (lambda r: (r / "test2015.txt").write_text(NAMES[0] + "\nx.jpg"), r"error .*files are missing.*got: 1: x\.jpg"),
        (
            lambda r: write_detections(r, NAMES),
            "error .*not in the precomputed detections.*all 15 · got: 12: HICO_train2015_.*next: run the detector",
        ),
        (
            lambda r: rewrite(r / "boxes.json", lambda p: p["categories"].pop()),
            "error .*does not know 1 of the vocabulary's 80 objects.*expected: zebra",
        ),
        (lambda r: (r / "found.json").unlink(), r"error .*no such file .*COCO results \(detector\.results\)"),
    ],
)
def test_each_harm_is_found_with_what_mends_it(tree: Path, harm: Callable[[Path], Any], line: str) -> None:
    harm(tree)
    report, lines = visit(tree)
    found = [text for text in lines if re.match(line, text)]
    assert len(found) == 1, "\n".join(lines)
    assert (report.num_errors > 0) == line.startswith("error")


def test_without_a_list_published_counts_and_names_are_met(tree: Path) -> None:
    (tree / FIRST).rename(tree / "images" / "test2015" / "x.jpg")
    text = str(visit(tree, image_lists=None)[0])
    assert re.search(r"error .*train2015 has fewer images.*expected: 38118 · got: 12 · next: unpack", text)
    assert re.search(r"error .*test2015 has fewer images.*expected: 9658 · got: 3", text)
    assert re.search(rf"error .*annotated images of test2015 are not there.*got: 1: {NAMES[0]}", text)
    assert re.search(r"warning .*test2015 has images of other names.*got: 1: x\.jpg · next: take them out", text)
    assert re.search(r"warning .*annotated otherwise than published.*33405 pairs.*3 pairs, 3 images", text)


def test_a_missing_tree_is_one_error_for_each_half(tree: Path) -> None:
    _, lines = visit(tree, root=str(tree / "nowhere"))
    assert len([text for text in lines if "there is no folder of HICO-DET's" in text]) == 2
    assert any(text.startswith("ok      teacher") for text in lines)


def test_the_world_and_a_folder_of_images_have_a_doctor_too(tmp_path: Path) -> None:
    few = load_config(PIPELINE, ["dataset.splits={train: 3, test: 2}", f"cache.folder={tmp_path}"])
    assert examine(few).num_errors == 0
    assert "split test: 2 images" in str(examine(few))
    (tmp_path / "images").mkdir()
    for k in range(9):
        shrink(tmp_path / "images" / f"{k}.jpg")
    (tmp_path / "images" / "3.jpg").write_bytes(b"")
    (tmp_path / "words.yaml").write_text("- {verb: ride, object: violin}\n")
    folder = {"name": "folder", "images": str(tmp_path / "images"), "vocabulary": str(tmp_path / "words.yaml")}
    text = str(examine(load_config(PIPELINE, [f"dataset={json.dumps(folder)}", f"cache.folder={tmp_path}"])))
    assert re.search(r"error .*image files are empty.*1: 3\.jpg", text)
    assert re.search(r"error .*the detector does not know 1 of the vocabulary's 2 objects.*violin", text)


def test_absent_weights_are_a_warning_and_a_full_disk_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("hoi.project.doctor.BYTES_PER_IMAGE", 10**15)
    models = ['detector={"name": "torchvision"}', 'teacher={"model": "RN50-quickgelu", "pretrained": "openai"}']
    text = str(examine(load_config(PIPELINE, [*models, f"cache.folder={tmp_path / 'deep' / 'cache'}"])))
    assert re.search(r"warning the detector's weights DEFAULT are not here.*download https://\S+\.pth, or put it", text)
    assert re.search(r"warning the teacher RN50-quickgelu \(openai\) was not loaded", text)
    assert re.search(rf"error .*will not fit on the disk · where: {tmp_path}.* to come.*next: free space", text)
    text = str(examine(load_config(PIPELINE, ['teacher={"model": "local-dir:nowhere"}', f"cache.folder={tmp_path}"])))
    assert re.search(r"error .*no folder of an open_clip model.*nowhere.*next: check teacher", text)


def test_a_dataset_without_a_check_has_its_images_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HicodetDataset, "CHECK", None)
    (tree / FIRST).unlink()
    _, lines = visit(tree)
    assert any(re.match(rf"error .*split test: images.*got: 1: {NAMES[0]} \(the file is missing\)", t) for t in lines)


def test_a_finding_is_one_line() -> None:
    found = Finding("error", "a file is missing", "/a", "b", "c\nd", "e")
    assert str(found) == "error   a file is missing · where: /a · expected: b · got: c d · next: e"
