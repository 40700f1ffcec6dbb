"""The checking page's command line without the page, and annotations of a folder through `hoi.evaluation.score`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoi.errors import UserError
from hoi.evaluation import score
from hoi.web import check_page
from hoi.world import SIZE_PX
from tests.fakes.pipelines import small_pipeline, write_pipeline


def test_predictions_of_a_folder_are_scored_against_marks_as_worked_out_by_hand(tmp_path: Path) -> None:
    box = {"file_name": "a.png", "human_xyxy": [0, 0, 10, 10], "object_xyxy": [20, 20, 30, 30]}
    ride, hold = {"verb": "ride", "object": "horse"}, {"verb": "hold", "object": "cup"}
    far = {"object_xyxy": [200, 200, 230, 230]}
    (tmp_path / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ({**box, **ride}, {**box, **hold})))
    predictions = [
        {**box, **far, **ride, "score": 0.9},
        {**box, **ride, "score": 0.8},
        {**box, **hold, "score": 0.1},
        {**box, "file_name": "b.png", "verb": "eat", "object": "apple", "score": 1.0},
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))
    given = ["--dataset", "folder", "--annotations", str(tmp_path / "truth.jsonl")]
    given += ["--predictions", str(tmp_path / "predictions.jsonl")]
    found = score.main(given).content
    assert found["interactions"] == ["eat apple", "hold cup", "ride horse"]
    # The wrong box comes first, so riding has precision 1/2 at every recall; eating has no truth and is in no mean.
    assert found["ap"] == pytest.approx([0, 1, 0.5])
    assert found["full"] == pytest.approx(0.75)
    (tmp_path / "truth.jsonl").write_text(json.dumps({**box, **ride, "object_xyxy": [3, 3, 1, 9]}))
    with pytest.raises(UserError, match=r"an annotation has a wrong box · where: .*truth\.jsonl, line 1, object_xyxy"):
        score.main(given)


def test_predictions_that_lead_out_of_the_folder_or_to_no_image_are_refused(tmp_path: Path) -> None:
    line = {
        "file_name": "../x.png",
        "human_xyxy": [0, 0, 9, 9],
        "object_xyxy": [0, 0, 9, 9],
        "verb": "a",
        "object": "b",
        "score": 1,
    }
    path = tmp_path / "predictions.jsonl"
    given = ["--predictions", str(path), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    for name, reason in (
        ("../x.png", "names a file outside the folder of images"),
        ("/etc/passwd", "names a file outside the folder of images"),
        ("elsewhere.png", r"no image of the predictions is in this folder .* expected: elsewhere\.png"),
    ):
        path.write_text(json.dumps({**line, "file_name": name}))
        with pytest.raises(UserError, match=reason):
            check_page.main(given)
    with pytest.raises(UserError, match="nothing says where the images are"):
        check_page.main(["--predictions", str(path)])
    with pytest.raises(UserError, match=r"so few marks say nothing · where: --number"):
        check_page.main([*given, "--number", "3"])
    assert not (tmp_path / "out").exists()


def test_the_drawn_worlds_own_images_need_no_folder_and_unknown_ones_are_named(tmp_path: Path) -> None:
    config = write_pipeline(small_pipeline(tmp_path), tmp_path / "pipeline.yaml")
    box = {"human_xyxy": [0, 0, 9, 9], "object_xyxy": [0, 0, 9, 9], "interaction": 0}
    lines = [{"file_name": f"world1-0-test-00000{row}", **box, "score": row} for row in range(6)]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--predictions", str(path), "--config", str(config), "--out", str(tmp_path / "out")]
    session, read = check_page.open_session(check_page._parser().parse_args(given))
    assert read(session.candidates.image_ids[0]).shape == (SIZE_PX, SIZE_PX, 3)
    assert "0 of 6 marked" in str(check_page.main(given))
    path.write_text(json.dumps({**lines[0], "file_name": "world1-0-test-000099"}))
    with pytest.raises(UserError, match=r"a prediction names an unknown image · .* got: world1-0-test-000099"):
        check_page.main(given)
