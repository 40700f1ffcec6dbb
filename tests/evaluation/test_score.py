"""Anybody's predictions through the command line: reference figures, a frozen case, formats of others, bad input."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from hoi.config import load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, unseen
from hoi.datasets.vcoco import (
    ACTION_ROLES,
    ACTIONS,
    KEYS,
    ROLES,
)
from hoi.errors import UserError
from hoi.evaluation.score import main
from hoi.labels import load_labels

GOLDEN = json.loads((Path(__file__).parent / "golden_hicodet.json").read_text())
CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
needs_references = pytest.mark.skipif(
    not (CHECK_DATA / "reference").is_dir(), reason="needs HOI_CHECK_DATA: the reference predictions"
)


def write_lines(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def golden_rows() -> list[dict[str, Any]]:
    keys = ("file_name", "human_xyxy", "object_xyxy", "interaction", "score")
    return [
        dict(zip(keys, (GOLDEN["filenames"][row[0]], *row[1:]), strict=True))
        for row in copy.deepcopy(GOLDEN["predictions"])
    ]


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A folder with the frozen case in the formats of HICO-DET."""
    annotations = {key: GOLDEN[key] for key in ("filenames", "size", "annotation")}
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    write_lines(tmp_path / "predictions.jsonl.gz", golden_rows())
    labels = np.full((600, len(GOLDEN["filenames"])), -1.0)
    for image, positive in enumerate(GOLDEN["image_labels"]):
        labels[positive, image] = 1
    # Another order of the images than that of the annotations: they join by name.
    names = np.array(GOLDEN["filenames"], object)[::-1, None]
    savemat(tmp_path / "anno.mat", {"anno_test": labels[:, ::-1], "list_test": names})
    return tmp_path


def score(folder: Path, *options: str, predictions: str = "predictions.jsonl.gz", dataset: str = "hicodet") -> Any:
    given = ["--dataset", dataset, "--annotations", str(folder / "annotations.json")]
    given += ["--predictions", str(folder / predictions), "--json", str(folder / "out.json")]
    main([*given, *options])
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("protocol", ["official", "qpic", "pocket"])
@pytest.mark.parametrize("setting", ["default", "known_object"])
def test_the_frozen_case_scores_as_ever_by_every_rule(golden: Path, protocol: str, setting: str) -> None:
    known = ["--known-object", str(golden / "anno.mat")] if setting == "known_object" else []
    out = score(golden, "--protocol", protocol, *known)
    expected = GOLDEN["expected"][f"{protocol} {setting}"]
    ap = np.zeros(600)
    ap[[int(k) for k in expected["ap"]]] = list(expected["ap"].values())
    np.testing.assert_allclose(out["ap"], ap, rtol=0, atol=1e-12)
    for mean in ("full", "rare", "non_rare"):
        assert out[mean] == pytest.approx(expected[mean], abs=1e-12)
    assert (out["protocol"], out["setting"], out["num_images"], out["num_predictions"]) == (protocol, setting, 24, 260)
    if known:
        assert out["default"]["full"] == pytest.approx(GOLDEN["expected"][f"{protocol} default"]["full"], abs=1e-12)


def test_the_frozen_case_tells_the_rules_and_settings_apart() -> None:
    assert len({round(found["full"], 4) for found in GOLDEN["expected"].values()}) == 6


def test_only_the_named_images_count_and_absent_classes_leave_every_mean(golden: Path) -> None:
    named = GOLDEN["filenames"][3:9]
    (golden / "images.txt").write_text("\n".join(reversed(named)) + "\n")
    out = score(golden, "--images", str(golden / "images.txt"))
    present = {k for image in range(3, 9) for k in GOLDEN["annotation"][image]["hoi"]}
    assert {k for k in range(600) if out["num_positives"][k]} == present
    assert all(out["ap"][k] == 0 for k in set(range(600)) - present)
    assert out["full"] == pytest.approx(np.mean([out["ap"][k] for k in present]))
    assert (out["num_images"], out["num_interactions_with_truth"]) == (6, len(present))
    assert out["num_predictions"] == sum(row["file_name"] in named for row in golden_rows())
    assert out["num_predictions"] + out["num_predictions_elsewhere"] == 260

    write_lines(golden / "fewer.jsonl", [row for row in golden_rows() if row["file_name"] in named])
    fewer = score(golden, "--images", str(golden / "images.txt"), predictions="fewer.jsonl")
    assert (fewer["ap"], fewer["num_predictions_elsewhere"]) == (out["ap"], 0)


def test_equal_scores_go_by_image_of_the_annotations_and_then_by_line(tmp_path: Path) -> None:
    pair = {"boxes_h": [[1, 1, 20, 20]], "boxes_o": [[30, 30, 60, 60]], "hoi": [154]}
    nothing: dict[str, list[Any]] = {"boxes_h": [], "boxes_o": [], "hoi": []}
    content = {"filenames": ["b.jpg", "a.jpg"], "size": [[99, 99]] * 2, "annotation": [pair, nothing]}
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    right = {"file_name": "b.jpg", "human_xyxy": [0, 0, 19, 19], "object_xyxy": [29, 29, 59, 59], "interaction": 154}
    right["score"] = 0.5
    astray = {**right, "human_xyxy": [60, 60, 70, 70]}
    for rows, expected in (
        ([{**right, "file_name": "a.jpg"}, right], 1),
        ([right, astray], 1),
        ([astray, right], 0.5),
    ):
        write_lines(tmp_path / "p.jsonl", rows)
        assert score(tmp_path, predictions="p.jsonl")["ap"][154] == pytest.approx(expected)


def test_zero_shot_means_and_the_provenance_of_a_score_are_written(golden: Path) -> None:
    out = score(golden)
    assert set(out["zero_shot"]) == set(UNSEEN_SHA256)
    present = np.array(out["num_positives"]) > 0
    for split, means in out["zero_shot"].items():
        is_unseen = np.isin(np.arange(600), unseen(split))
        assert means["seen"] == pytest.approx(np.mean(np.array(out["ap"])[present & ~is_unseen]))
        assert means["num_unseen"] == (present & is_unseen).sum()
        assert (means["unseen"] is None) == (means["num_unseen"] == 0)
    assert out["zero_shot"]["rare_first"]["num_unseen"] > 0
    assert len(out["inputs"]["predictions"]["sha256"]) == 64
    assert out["versions"]["hoi-distill"]


def test_an_empty_file_of_predictions_scores_zero_and_says_so(golden: Path) -> None:
    (golden / "none.jsonl").write_text("")
    out = score(golden, predictions="none.jsonl")
    assert (out["full"], out["num_predictions"]) == (0, 0)
    assert "holds no prediction" in out["notices"][0]


def broken(change: Callable[[dict[str, Any]], None], row: int = 7) -> list[Any]:
    rows = golden_rows()
    change(rows[row])
    return rows


BAD = {
    "an unknown image": (
        lambda row: row.update(file_name="HICO_test2015_00000099.jpg"),
        r"'file_name' .* no image of the annotations .*line 8 .*HICO_test.*got: \"HICO_test2015_00000099.jpg\"",
    ),
    "an interaction out of range": (
        lambda row: row.update(interaction=600),
        r"'interaction' .*out of range .*line 8 .*0\.\.599 .*got: 600",
    ),
    "a negative interaction": (lambda row: row.update(interaction=-1), r"out of range .*line 8 .*got: -1"),
    "a huge interaction": (lambda row: row.update(interaction=10**30), r"out of range .*line 8"),
    "an interaction that is no whole number": (
        lambda row: row.update(interaction=3.0),
        r"mistyped .*line 8 .*got: 3\.0",
    ),
    "an interaction that is true": (lambda row: row.update(interaction=True), r"mistyped .*line 8 .*got: true"),
    "a NaN score": (lambda row: row.update(score=float("nan")), r"'score' .*not finite .*line 8 .*got: NaN"),
    "an infinite score": (lambda row: row.update(score=float("inf")), r"not finite .*line 8 .*got: Infinity"),
    "a score of text": (lambda row: row.update(score="0.5"), r"'score' .*mistyped .*line 8 .*got: \"0\.5\""),
    "a box with NaN": (lambda row: row["human_xyxy"].__setitem__(1, float("nan")), r"'human_xyxy' .*finite .*line 8"),
    "a reversed box": (
        lambda row: row.update(human_xyxy=[50, 10, 40, 60]),
        r"'human_xyxy' .*reversed .*line 8 .*x1 <= x2 .*got: \[50, 10, 40, 60\]",
    ),
    "a box outside": (
        lambda row: row.update(object_xyxy=[5000, 10, 5100, 60]),
        r"'object_xyxy' .*outside the image .*line 8 .* pixels of HICO_test2015.*--clip",
    ),
    "a box of three numbers": (lambda row: row["object_xyxy"].pop(), r"'object_xyxy' .*is no box .*line 8"),
    "a box of text": (lambda row: row["object_xyxy"].__setitem__(0, "1"), r"'object_xyxy' .*is no box .*line 8"),
    "a missing box": (lambda row: row.update(object_xyxy=None), r"'object_xyxy' .*mistyped .*line 8 .*got: null"),
    "a missing field": (lambda row: row.pop("score"), r"lacks 'score' .*line 8 .*got: file_name, human_xyxy"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_prediction_is_named_by_its_line(golden: Path, name: str) -> None:
    change, message = BAD[name]
    write_lines(golden / "bad.jsonl", broken(change))
    with pytest.raises(UserError, match=message):
        score(golden, predictions="bad.jsonl")
    assert not (golden / "out.json").exists()


def test_lines_that_are_no_objects_and_damaged_files_are_named(golden: Path) -> None:
    rows = [json.dumps(row) for row in golden_rows()]
    for text, message in (
        ("\n".join([*rows[:3], "", rows[3][:-9], *rows[4:]]), r"no JSON .*line 5"),
        ("\n".join([*rows[:3], "[1, 2]"]), r"no JSON object .*line 4 .*got: list"),
    ):
        (golden / "bad.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            score(golden, predictions="bad.jsonl")
    whole = (golden / "predictions.jsonl.gz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + b"\x00" * 20 + whole[220:]):
        (golden / "bad.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"gzip file is truncated or damaged .*bad\.jsonl\.gz"):
            score(golden, predictions="bad.jsonl.gz")
    (golden / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        score(golden, predictions="bad.jsonl")
    with pytest.raises(UserError, match=r"no such file of predictions .*absent\.jsonl"):
        score(golden, predictions="absent.jsonl")


def test_the_program_says_a_mistake_in_one_line_and_exits_with_two(golden: Path) -> None:
    write_lines(golden / "bad.jsonl", broken(lambda row: row.update(interaction=600)))
    command = [sys.executable, "-m", "hoi.evaluation.score", "--dataset", "hicodet", "--json", str(golden / "out.json")]
    command += ["--annotations", str(golden / "annotations.json"), "--predictions", str(golden / "bad.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "line 8" in done.stderr


def test_wrong_options_and_side_files_are_named(golden: Path) -> None:
    (golden / "images.txt").write_text(f"{GOLDEN['filenames'][0]}\nHICO_test.jpg\n")
    with pytest.raises(UserError, match=r"not in the annotations .*images\.txt, line 2 .*got: HICO_test\.jpg"):
        score(golden, "--images", str(golden / "images.txt"))
    (golden / "images.txt").write_text("\n")
    with pytest.raises(UserError, match=r"no image name"):
        score(golden, "--images", str(golden / "images.txt"))
    with pytest.raises(UserError, match=r"no such format .*lines or gen-vlkt"):
        score(golden, "--format", "vsrl")
    with pytest.raises(UserError, match=r"--images is no option of world"):
        score(golden, "--images", str(golden / "images.txt"), dataset="world")
    with pytest.raises(UserError, match=r"command line is not understood.*protocol"):
        score(golden, "--protocol", "mine")
    with pytest.raises(UserError, match="no such file"):
        score(golden, "--known-object", str(golden / "absent.mat"))


def test_boxes_over_the_border_are_scored_as_they_are_or_cut_on_request(golden: Path) -> None:
    def over(row: dict[str, Any]) -> None:
        row["human_xyxy"] = [row["human_xyxy"][0], row["human_xyxy"][1], 170, 100]

    write_lines(golden / "over.jsonl", broken(over))
    assert "reach over the border" in score(golden, predictions="over.jsonl")["notices"][0]
    write_lines(golden / "far.jsonl", broken(lambda row: row.update(human_xyxy=[900, 900, 990, 990])))
    assert score(golden, "--clip", predictions="far.jsonl")["notices"] == []


def test_without_image_sizes_boxes_outside_are_not_looked_for_and_none_can_be_cut(golden: Path) -> None:
    annotations = {key: GOLDEN[key] for key in ("filenames", "annotation")}
    (golden / "annotations.json").write_text(json.dumps(annotations))
    write_lines(golden / "far.jsonl", broken(lambda row: row.update(human_xyxy=[900, 900, 990, 990])))
    assert "no image sizes" in score(golden, predictions="far.jsonl")["notices"][0]
    with pytest.raises(UserError, match=r"unknown size .*annotations\.json.*next: leave --clip out"):
        score(golden, "--clip", predictions="far.jsonl")


# Formats of other repositories


def by_image() -> list[dict[str, Any]]:
    """The frozen predictions as QPIC's and GEN-VLKT's code lays them, by image."""
    images: list[dict[str, Any]] = []
    for name in GOLDEN["filenames"]:
        boxes: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        for row in golden_rows():
            if row["file_name"] == name:
                pairs.append({"subject_id": len(boxes), "object_id": len(boxes) + 1, "category_id": row["interaction"]})
                pairs[-1]["score"] = row["score"]
                boxes += [{"bbox": row["human_xyxy"]}, {"bbox": row["object_xyxy"]}]
        images.append({"filename": name, "predictions": boxes, "hoi_prediction": pairs})
    return images


def test_gen_vlkts_printed_python_scores_like_the_lines(golden: Path) -> None:
    images = by_image()
    images[0]["hoi_prediction"][0]["score"] = np.float32(0.5)  # numpy 2 prints `np.float32(0.5)`
    (golden / "gen.json").write_text(json.dumps(str({"preds": images, "gts": []})))
    assert "np.float32" in (golden / "gen.json").read_text()
    images[0]["hoi_prediction"][0]["score"] = 0.5
    (golden / "plain.json").write_text(json.dumps(images))
    saved = golden / "saved.jsonl"
    out = score(golden, "--format", "gen-vlkt", "--save-lines", str(saved), predictions="gen.json")
    assert out["num_predictions"] == 260
    assert score(golden, "--format", "gen-vlkt", predictions="plain.json")["ap"] == out["ap"]
    assert score(golden, predictions="saved.jsonl")["ap"] == out["ap"]
    images[3]["hoi_prediction"][0]["object_id"] = 999
    (golden / "plain.json").write_text(json.dumps(images))
    with pytest.raises(UserError, match=r"not understood .*image 4 .*got: a pair of boxes 0 and 999"):
        score(golden, "--format", "gen-vlkt", predictions="plain.json")


def test_qpics_verbs_and_coco_classes_become_interactions(golden: Path) -> None:
    vocabulary = hicodet_vocabulary()
    images = by_image()
    for image in images:
        for pair in image["hoi_prediction"]:
            verb, thing = vocabulary.interactions[pair["category_id"]]
            pair["category_id"] = vocabulary.verbs.index(verb)
            image["predictions"][pair["object_id"]]["category_id"] = COCO_OBJECTS.index(thing)
    # Nobody rides an airplane's neighbour in COCO's order, a bus, by blowing it: no such interaction.
    images[0]["predictions"].append({"bbox": [1, 1, 9, 9], "category_id": COCO_OBJECTS.index("bus")})
    impossible = {"subject_id": 0, "object_id": len(images[0]["predictions"]) - 1, "score": 0.9}
    images[0]["hoi_prediction"].append({**impossible, "category_id": vocabulary.verbs.index("blow")})
    (golden / "qpic.json").write_text(json.dumps(images))
    out = score(golden, "--format", "qpic", predictions="qpic.json")
    assert out["num_predictions"] == 260
    assert out["notices"][0] == "1 pairs of a verb and an object make no interaction and were left out"
    (golden / "plain.json").write_text(json.dumps(by_image()))
    assert out["ap"] == score(golden, "--format", "gen-vlkt", predictions="plain.json")["ap"]


def test_pvics_matlab_files_score_like_the_lines(golden: Path) -> None:
    vocabulary = hicodet_vocabulary()
    (golden / "matlab").mkdir()
    for thing in range(80):
        interactions = np.flatnonzero(vocabulary.object_of == thing)
        cells = np.empty((len(interactions), 24), object)
        for at in np.ndindex(cells.shape):
            cells[at] = np.zeros((0, 0))
        for row in golden_rows():
            if row["interaction"] in interactions:
                at = (
                    int(np.searchsorted(interactions, row["interaction"])),
                    GOLDEN["filenames"].index(row["file_name"]),
                )
                new = np.array([[*row["human_xyxy"], *row["object_xyxy"], row["score"]]])
                cells[at] = np.concatenate([cells[at].reshape(-1, 9), new])
        savemat(golden / f"matlab/detections_{thing + 1:02d}.mat", {"all_boxes": cells})
    assert score(golden, "--format", "pvic", predictions="matlab")["ap"] == score(golden)["ap"]
    (golden / "matlab/detections_80.mat").unlink()
    with pytest.raises(UserError, match=r"no such file .*detections_80\.mat"):
        score(golden, "--format", "pvic", predictions="matlab")
    for content in (b"", (golden / "matlab/detections_01.mat").read_bytes()[:100]):
        (golden / "matlab/detections_80.mat").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read .*detections_80\.mat"):
            score(golden, "--format", "pvic", predictions="matlab")


# V-COCO

PERSON, BALL = [10, 10, 40, 90], [50, 50, 20, 20]  # xywh


def vcoco_files(folder: Path, image_id: int = 7) -> None:
    """One image with a person who kicks a ball and runs, and a person without annotation."""
    actions = []
    for name, roles in ROLES:
        does = int(name in ("kick", "run"))
        role_ids = [1, *(2 if name == "kick" else 0 for _ in roles)]
        record = {"action_name": name, "role_name": ["agent", *roles], "image_id": [image_id], "ann_id": [1]}
        actions.append({**record, "label": [does], "role_object_id": role_ids})
    (folder / "annotations.json").write_text(json.dumps(actions))
    boxes = [(1, 1, PERSON), (2, 37, BALL), (3, 1, [60, 10, 20, 80])]
    instances = {
        "images": [{"id": image_id, "width": 100, "height": 120}],
        "annotations": [
            {"id": i, "image_id": image_id, "category_id": c, "bbox": box, "area": 9.0} for i, c, box in boxes
        ],
    }
    (folder / "instances_boxes.json").write_text(json.dumps(instances))


def vcoco_row(**changes: Any) -> dict[str, Any]:
    row = {"image_id": 7, "human_xyxy": [10, 10, 49, 99], "object_xyxy": [50, 50, 69, 69]}
    return {**row, "scores": {key: 0.9 if key in ("kick_obj", "run_agent") else 0.1 for key in KEYS}, **changes}


def test_a_perfect_vcoco_row_scores_one_where_there_is_truth(tmp_path: Path) -> None:
    vcoco_files(tmp_path)
    write_lines(tmp_path / "p.jsonl", [vcoco_row()])
    out = score(tmp_path, predictions="p.jsonl", dataset="vcoco")
    assert out["per_role"]["kick_obj"] == {"s1": 1, "s2": 1}
    assert (out["per_agent"]["kick"], out["per_agent"]["run"], out["per_agent"]["hold"]) == (1, 1, 0)
    assert out["agent_ap"] == pytest.approx(2 / 26)
    assert (out["role_ap_s1"], out["role_ap_s1_24"]) == (pytest.approx(1 / 25), pytest.approx(1 / 24))
    assert len(out["per_role"]) == len(ACTION_ROLES) == 25
    assert len(out["per_agent"]) == len(ACTIONS)
    write_lines(tmp_path / "p.jsonl", [vcoco_row(object_xyxy=None)])
    out = score(tmp_path, predictions="p.jsonl", dataset="vcoco")
    assert (out["per_role"]["kick_obj"]["s2"], out["per_agent"]["kick"]) == (0, 1)
    assert out["notices"] == []
    write_lines(tmp_path / "p.jsonl", [vcoco_row(object_xyxy=[0, 0, 0, 0]), vcoco_row(object_xyxy=[0, 0, 0.1, 0.1])])
    assert score(tmp_path, predictions="p.jsonl", dataset="vcoco")["notices"][0].startswith("2 rows have an object box")


def test_vsrl_evals_pickle_scores_like_the_lines_and_no_other_pickle_is_opened(tmp_path: Path) -> None:
    vcoco_files(tmp_path)
    row = vcoco_row()
    given: dict[str, Any] = {"image_id": 7, "person_box": row["human_xyxy"], "kick_agent": 0.9}
    for key, value in row["scores"].items():
        given[key] = value if key.endswith("_agent") else [*row["object_xyxy"], value]
    without = {**given, **{k: [float("nan")] * 4 + [0.2] for k in KEYS if not k.endswith("_agent")}}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([given, without], protocol=2))
    scores = {k: v if k.endswith("_agent") else 0.2 for k, v in row["scores"].items()}
    write_lines(tmp_path / "p.jsonl", [row, vcoco_row(object_xyxy=None, scores=scores)])
    saved = tmp_path / "saved.jsonl"
    options = ("--format", "vsrl", "--save-lines", str(saved))
    of_pickle = score(tmp_path, *options, predictions="p.pkl", dataset="vcoco")
    assert of_pickle["per_role"] == score(tmp_path, predictions="p.jsonl", dataset="vcoco")["per_role"]
    assert saved.read_text() == (tmp_path / "p.jsonl").read_text()

    unscored = {k: [*value[:4], 0.0] if k in KEYS and isinstance(value, list) else value for k, value in given.items()}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([unscored], protocol=2))
    score(tmp_path, *options, predictions="p.pkl", dataset="vcoco")
    assert json.loads(saved.read_text())["object_xyxy"] == row["object_xyxy"]
    for box, got in (([float("nan")] * 4, "an object for some roles and none for others"), ([1, 1, 9, 9], "2 objects")):
        (tmp_path / "p.pkl").write_bytes(pickle.dumps([given, {**given, "hold_obj": [*box, 0.2]}], protocol=2))
        with pytest.raises(UserError, match=f"several objects .*row 2 .*got: {got}"):
            score(tmp_path, *options, predictions="p.pkl", dataset="vcoco")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "opened"),)

    (tmp_path / "p.pkl").write_bytes(pickle.dumps([Evil()], protocol=2))
    with pytest.raises(UserError, match=r"pickle is refused .*mkdir"):
        score(tmp_path, *options, predictions="p.pkl", dataset="vcoco")
    assert not (tmp_path / "opened").exists()


VCOCO_BAD = {
    "another split": ({"image_id": 294}, r"'image_id' .*no image of the annotations .*line 2 .*got: 294"),
    "an id of text": ({"image_id": "7"}, r"'image_id' .*mistyped .*line 2"),
    "a missing score": ({"scores": dict.fromkeys(KEYS[1:], 0.1)}, r"other keys .*line 2 .*got: no hold_obj"),
    "a foreign score": ({"scores": dict.fromkeys((*KEYS, "fly"), 0.1)}, r"other keys .*line 2 .*got: also fly"),
    "a NaN score": ({"scores": {k: float("nan") for k in KEYS}}, r"'hold_obj' .*not finite .*line 2"),
    "a reversed object": ({"object_xyxy": [9, 9, 1, 1]}, r"'object_xyxy' .*reversed .*line 2"),
    "a person outside": ({"human_xyxy": [500, 9, 600, 20]}, r"outside the image .*line 2 .*100 x 120 pixels of 7"),
}


@pytest.mark.parametrize("name", VCOCO_BAD)
def test_a_bad_vcoco_row_is_named_by_its_line(tmp_path: Path, name: str) -> None:
    vcoco_files(tmp_path)
    change, message = VCOCO_BAD[name]
    write_lines(tmp_path / "p.jsonl", [vcoco_row(object_xyxy=None), vcoco_row(**change)])
    with pytest.raises(UserError, match=message):
        score(tmp_path, predictions="p.jsonl", dataset="vcoco")


def test_vcoco_without_boxes_or_with_those_of_other_images_says_what_to_give(tmp_path: Path) -> None:
    vcoco_files(tmp_path)
    write_lines(tmp_path / "p.jsonl", [vcoco_row()])
    (tmp_path / "instances_boxes.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"holds no boxes.*got: none .*--instances FILE"):
        score(tmp_path, predictions="p.jsonl", dataset="vcoco")
    assert score(tmp_path, "--instances", str(tmp_path / "elsewhere.json"), predictions="p.jsonl", dataset="vcoco")[
        "per_role"
    ]["kick_obj"] == {"s1": 1, "s2": 1}
    (tmp_path / "elsewhere.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(UserError, match=r"do not fit the labels .*got: no image 7"):
        score(tmp_path, "--instances", str(tmp_path / "elsewhere.json"), predictions="p.jsonl", dataset="vcoco")
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(UserError, match="no V-COCO label file"):
        score(tmp_path, predictions="p.jsonl", dataset="vcoco")


def test_damaged_vcoco_files_are_one_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", [vcoco_row()])
    for key, column in (("images", "width"), ("annotations", "bbox")):
        vcoco_files(tmp_path)
        instances = json.loads((tmp_path / "instances_boxes.json").read_text())
        del instances[key][0][column]
        (tmp_path / "instances_boxes.json").write_text(json.dumps(instances))
        with pytest.raises(UserError, match=rf"not understood .*instances_boxes\.json.*got: no '{column}'"):
            score(tmp_path, predictions="p.jsonl", dataset="vcoco")
    for column, value in (("role_name", []), ("label", [1, 1]), ("ann_id", None)):
        vcoco_files(tmp_path)
        actions = json.loads((tmp_path / "annotations.json").read_text())
        actions[3][column] = value
        (tmp_path / "annotations.json").write_text(json.dumps(actions))
        with pytest.raises(UserError, match=r"differ in length .*action ride"):
            score(tmp_path, predictions="p.jsonl", dataset="vcoco")


# The embedded world


def test_the_worlds_own_annotations_score_one_by_number_or_by_name(tmp_path: Path) -> None:
    plain = {
        "name": "small world",
        "output": str(tmp_path),
        "dataset": {"name": "world", "splits": {"train": 4, "validation": 2, "test": 6}},
        "detector": {"name": "world"},
        "teacher": {"model": "local-dir:somewhere"},
        "cache": {"folder": str(tmp_path)},
        "students": {},
    }
    (tmp_path / "annotations.json").write_text(json.dumps(plain))
    config = load_config(tmp_path / "annotations.json")
    labels, vocabulary = load_labels(config.dataset, "test"), load_vocabulary(config.dataset)
    names = open_images(config.dataset, "test").image_ids
    rows = [
        {"file_name": names[i], "human_xyxy": h, "object_xyxy": o, "interaction": k, "score": 0.5}
        for i, h, o, k in zip(
            *(getattr(labels, f).tolist() for f in ("image", "boxes_h", "boxes_o", "interaction")), strict=True
        )
    ]
    write_lines(tmp_path / "numbers.jsonl", rows)
    out = score(tmp_path, predictions="numbers.jsonl", dataset="world")
    assert (out["full"], out["num_images"], out["num_predictions"], out["split"]) == (1, 6, len(rows), "test")
    for row in rows:
        row["verb"], row["object"] = vocabulary.interactions[row.pop("interaction")]
    write_lines(tmp_path / "names.jsonl", rows)
    assert score(tmp_path, predictions="names.jsonl", dataset="world")["ap"] == out["ap"]
    rows[1]["object"] = "cloud"
    write_lines(tmp_path / "names.jsonl", rows)
    with pytest.raises(UserError, match=r"unknown interaction .*line 2 .*got: .* cloud"):
        score(tmp_path, predictions="names.jsonl", dataset="world")
    (tmp_path / "annotations.json").write_text(json.dumps(plain | {"dataset": {"name": "hicodet", "root": "h"}}))
    with pytest.raises(UserError, match=r"data set hicodet.*another frame.*next: --dataset hicodet"):
        score(tmp_path, predictions="numbers.jsonl", dataset="world")


# Real annotations and the figures of the public evaluators


@pytest.fixture(scope="module")
def reference_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference predictions as JSON lines in 0-based inclusive pixels, and the names of their images."""
    folder = tmp_path_factory.mktemp("reference")
    npz = np.load(CHECK_DATA / "reference/hicodet_1k_predictions.npz")
    names = json.loads((CHECK_DATA / "annotations/hicodet_instances_test2015.json").read_text())["filenames"]
    names = [names[i] for i in npz["images"]]
    (folder / "images.txt").write_text("\n".join(names))
    keys = ("file_name", "human_xyxy", "object_xyxy", "interaction", "score")
    columns = ((npz["bh"] - 1).tolist(), (npz["bo"] - 1).tolist(), npz["hoi"].tolist(), npz["score"].tolist())
    rows = zip([names[i] for i in npz["img"]], *columns, strict=True)
    write_lines(folder / "predictions.jsonl.gz", [dict(zip(keys, row, strict=True)) for row in rows])
    return folder


@needs_references
@pytest.mark.parametrize("name", ["official_default", "official_known_object", "qpic_default", "pocket_11P_default"])
def test_hicodet_through_the_command_line_equals_the_reference_evaluators(reference_lines: Path, name: str) -> None:
    expected = json.loads((CHECK_DATA / "reference/hicodet_1k_expected.json").read_text())[name]
    options = ["--dataset", "hicodet", "--annotations", str(CHECK_DATA / "annotations/hicodet_instances_test2015.json")]
    options += ["--predictions", str(reference_lines / "predictions.jsonl.gz"), "--protocol", name.split("_")[0]]
    options += ["--images", str(reference_lines / "images.txt"), "--json", str(reference_lines / f"{name}.json")]
    if name.endswith("known_object"):
        options += ["--known-object", str(CHECK_DATA / "annotations/hico_anno.mat")]
    main(options)
    out = json.loads((reference_lines / f"{name}.json").read_text())
    for mean in ("full", "rare", "non_rare"):
        assert out[mean] == pytest.approx(expected[mean], abs=1e-9)
    if "ap" in expected:
        np.testing.assert_allclose(out["ap"], expected["ap"], rtol=0, atol=1e-9)
    assert (out["num_images"], out["num_predictions"], out["num_interactions_with_truth"]) == (1000, 28_110, 425)


@needs_references
def test_vcoco_through_the_command_line_equals_vsrl_eval_in_every_role(tmp_path: Path) -> None:
    expected = json.loads((CHECK_DATA / "reference/vcoco_test_expected.json").read_text())["vsrl_eval"]
    npz = np.load(CHECK_DATA / "reference/vcoco_test_predictions.npz")
    keys = npz["keys"].tolist()
    columns = (npz[k].tolist() for k in ("image_id", "person_xyxy", "object_xyxy", "has_object", "scores"))
    rows = [
        {"image_id": i, "human_xyxy": h, "object_xyxy": o if has else None, "scores": dict(zip(keys, s, strict=True))}
        for i, h, o, has, s in zip(*columns, strict=True)
    ]
    write_lines(tmp_path / "p.jsonl", rows)
    files = CHECK_DATA / "annotations/vcoco"
    options = ["--dataset", "vcoco", "--predictions", str(tmp_path / "p.jsonl"), "--json", str(tmp_path / "out.json")]
    main([*options, "--annotations", str(files / "vcoco_test_rebuilt.json.gz")])
    out = json.loads((tmp_path / "out.json").read_text())
    for key, name in (("s1", "S1"), ("s2", "S2")):
        for role, (ap, _) in expected[name].items():
            assert 100 * out["per_role"][role.replace("-", "_")][key] == pytest.approx(ap, abs=0.0051)
    for action, (ap, num) in expected["agent"].items():
        assert 100 * out["per_agent"][action] == pytest.approx(ap, abs=0.0051)
        assert out["num_positives"][action] == num
    figures = [100 * out[key] for key in ("agent_ap", "role_ap_s1", "role_ap_s2")]
    assert np.round(figures, 2).tolist() == [42.21, 30.89, 36.63]
    with pytest.raises(UserError, match=r"'image_id' .*no image of the annotations .*line 1 .*2867 known.*got: 294"):
        main([*options, "--annotations", str(files / "vcoco_val.json.gz")])
