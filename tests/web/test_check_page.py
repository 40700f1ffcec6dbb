"""The checking page's function without the page, and annotations of a folder through `hoi.evaluation.score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hoi.evaluation.score import score
from hoi.world import SIZE_PX
from tests.fakes.pipelines import refused, small_pipeline

pytest.importorskip("starlette", reason="starlette is not installed (the extra app)")

from hoi.web.check_page import check_page, open_session

BOXES = {"human_xyxy": [0, 0, 9, 9], "object_xyxy": [0, 0, 9, 9]}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_of_a_folder_score_as_worked_out_by_hand(tmp_path: Path) -> None:
    box = {"file_name": "a.png", "human_xyxy": [0, 0, 10, 10], "object_xyxy": [20, 20, 30, 30]}
    ride, hold = {"verb": "ride", "object": "horse"}, {"verb": "hold", "object": "cup"}
    truth = write(tmp_path / "truth.jsonl", [{**box, **ride}, {**box, **hold}])
    predictions = [
        {**box, **ride, "object_xyxy": [200, 200, 230, 230], "score": 0.9},
        {**box, **ride, "score": 0.8},
        {**box, **hold, "score": 0.1},
        {**box, "file_name": "b.png", "verb": "eat", "object": "apple", "score": 1.0},
    ]
    predicted = write(tmp_path / "predictions.jsonl", predictions)
    content = score("folder", truth, predicted).content
    assert content["interactions"] == ["eat apple", "hold cup", "ride horse"]
    # The wrong box comes first, so riding has precision 1/2 at every recall; eating has no truth and is in no mean.
    assert content["ap"] == pytest.approx([0, 1, 0.5])
    assert content["full"] == pytest.approx(0.75)
    write(truth, [{**box, **ride, "object_xyxy": [3, 3, 1, 9]}])
    error = refused(score, "folder", truth, predicted)
    assert (error.what, error.where) == ("'object_xyxy' of an annotation is reversed", f"{truth}, line 1")


def test_files_outside_the_folder_and_wrong_options_are_refused(tmp_path: Path) -> None:
    line = {**BOXES, "verb": "a", "object": "b", "score": 1}
    path, out = tmp_path / "predictions.jsonl", tmp_path / "out"
    outside = "a prediction names a file outside the folder of images"
    for name in ("../x.png", "/etc/passwd", "a\0.png", "elsewhere.png"):
        write(path, [{**line, "file_name": name}])
        what = outside if name != "elsewhere.png" else "no image of the predictions is in this folder"
        assert refused(check_page, path, tmp_path, out=out).what == what
    for images, number, what in (
        (None, 50, "nothing says where the images are"),
        (tmp_path, 3, "so few marks say nothing"),
        (tmp_path / "nowhere", 50, "there is no such folder of images"),
    ):
        assert refused(check_page, path, images, out=out, number=number).what == what
    assert not out.exists()


def test_images_of_a_pipelines_dataset_need_no_folder(tmp_path: Path) -> None:
    config, out = small_pipeline(tmp_path), tmp_path / "out"
    lines = [{"file_name": f"world1-0-test-00000{n}", **BOXES, "interaction": 0, "score": n} for n in range(6)]
    path = write(tmp_path / "predictions.jsonl", lines)
    session, read = open_session(path, None, config, None, out, 50, 0)
    assert read(session.candidates.image_ids[0]).shape == (SIZE_PX, SIZE_PX, 3)
    assert "0 of 6 marked" in str(check_page(path, config=config, out=out))
    (out / "marks.json").write_text("{")
    assert refused(check_page, path, config=config, out=out).what == "this is no file of marks"
    write(path, [{**lines[0], "file_name": "world1-0-test-000099"}])
    error = refused(check_page, path, config=config, out=out)
    assert (error.what, error.got) == ("a prediction names an unknown image", "world1-0-test-000099")
