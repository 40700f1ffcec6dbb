"""Scores of anybody's predictions: reference figures, a frozen case, formats of others, bad input."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import UNSEEN_SHA256, hicodet_vocabulary, unseen
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.evaluation.predictions import TRIPLET_KEYS, read_vsrl
from hoi.evaluation.score import score
from hoi.labels import load_labels
from tests.fakes import pipelines
from tests.fakes.pipelines import small_pipeline, write_pipeline
from tests.fakes.vcoco import instances, label_file

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
    names, rows = GOLDEN["filenames"], copy.deepcopy(GOLDEN["predictions"])
    return [dict(zip(TRIPLET_KEYS, (names[image], *values), strict=True)) for image, *values in rows]


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A folder with the frozen case in HICO-DET's formats; its figures depend on the order of tied lines and images."""
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


def scored(folder: Path, predictions: str = "predictions.jsonl.gz", dataset: str = "hicodet", **options: Any) -> Any:
    """What is written for a file of predictions in the folder."""
    score(dataset, folder / "annotations.json", folder / predictions, json=folder / "out.json", **options)
    return json.loads((folder / "out.json").read_text())


refused = partial(pipelines.refused, scored)


@pytest.mark.parametrize("protocol", ["official", "qpic", "pocket"])
@pytest.mark.parametrize("setting", ["default", "known_object"])
def test_the_frozen_case_scores_as_ever_by_every_rule(golden: Path, protocol: str, setting: str) -> None:
    known = golden / "anno.mat" if setting == "known_object" else None
    out = scored(golden, protocol=protocol, known_object=known)
    expected = GOLDEN["expected"][f"{protocol} {setting}"]
    ap = np.zeros(600)
    ap[[int(k) for k in expected["ap"]]] = list(expected["ap"].values())
    np.testing.assert_allclose(out["ap"], ap, rtol=0, atol=1e-12)
    for mean in ("full", "rare", "non_rare"):
        assert out[mean] == pytest.approx(expected[mean], abs=1e-12)
    assert (out["protocol"], out["setting"], out["num_images"], out["num_predictions"]) == (protocol, setting, 24, 260)
    assert len({round(found["full"], 4) for found in GOLDEN["expected"].values()}) == 6
    if known:
        assert out["default"]["full"] == pytest.approx(GOLDEN["expected"][f"{protocol} default"]["full"], abs=1e-12)


def test_only_named_images_and_their_classes_count(golden: Path) -> None:
    named = GOLDEN["filenames"][3:9]
    (golden / "images.txt").write_text("\n".join(reversed(named)) + "\n")
    out = scored(golden, images=golden / "images.txt")
    present = {k for image in range(3, 9) for k in GOLDEN["annotation"][image]["hoi"]}
    assert {k for k in range(600) if out["num_positives"][k]} == present
    assert all(out["ap"][k] == 0 for k in set(range(600)) - present)
    assert out["full"] == pytest.approx(np.mean([out["ap"][k] for k in present]))
    assert (out["num_images"], out["num_interactions_with_truth"]) == (6, len(present))
    assert out["num_predictions"] == sum(row["file_name"] in named for row in golden_rows())
    assert out["num_predictions"] + out["num_predictions_elsewhere"] == 260

    write_lines(golden / "fewer.jsonl", [row for row in golden_rows() if row["file_name"] in named])
    fewer = scored(golden, "fewer.jsonl", images=golden / "images.txt")
    assert (fewer["ap"], fewer["num_predictions_elsewhere"]) == (out["ap"], 0)


def test_zero_shot_means_and_provenance_are_written(golden: Path) -> None:
    out = scored(golden)
    assert set(out["zero_shot"]) == set(UNSEEN_SHA256)
    ap, num_positives = np.array(out["ap"]), np.array(out["num_positives"])
    for split, means in out["zero_shot"].items():
        is_unseen, present = np.isin(np.arange(600), unseen(split)), num_positives > 0
        assert (means["full"], means["seen"]) == pytest.approx((out["full"], np.mean(ap[present & ~is_unseen])))
        assert means["num_unseen"] == (present & is_unseen).sum()
        assert means["num_unseen_instances"] == num_positives[is_unseen].sum()
        assert means["unseen"] == (pytest.approx(np.mean(ap[present & is_unseen])) if means["num_unseen"] else None)
    assert out["zero_shot"]["rare_first"]["num_unseen"] > 0
    assert len(out["inputs"]["predictions"]["sha256"]) == 64
    assert out["versions"]["hoi-distill"]


def broken(change: Callable[[dict[str, Any]], object]) -> list[Any]:
    rows = golden_rows()
    change(rows[7])
    return rows


BAD = {
    "file_name is no image": lambda row: row.update(file_name="HICO_test2015_00000099.jpg"),
    "interaction is out of range": lambda row: row.update(interaction=600),
    "interaction is out of range, below": lambda row: row.update(interaction=-1),
    "interaction is out of range, huge": lambda row: row.update(interaction=10**30),
    "interaction is mistyped": lambda row: row.update(interaction=3.0),
    "interaction is mistyped, bool": lambda row: row.update(interaction=True),
    "score is not finite": lambda row: row.update(score=float("nan")),
    "score is not finite, infinite": lambda row: row.update(score=float("inf")),
    "score is mistyped": lambda row: row.update(score="0.5"),
    "human_xyxy is not finite": lambda row: row["human_xyxy"].__setitem__(1, float("nan")),
    "human_xyxy is reversed": lambda row: row.update(human_xyxy=[50, 10, 40, 60]),
    "object_xyxy lies outside": lambda row: row.update(object_xyxy=[5000, 10, 5100, 60]),
    "object_xyxy is no box": lambda row: row["object_xyxy"].pop(),
    "object_xyxy is no box, text": lambda row: row["object_xyxy"].__setitem__(0, "1"),
    "object_xyxy is mistyped": lambda row: row.update(object_xyxy=None),
    "score lacks": lambda row: row.pop("score"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_prediction_is_named_by_its_line(golden: Path, name: str) -> None:
    write_lines(golden / "bad.jsonl", broken(BAD[name]))
    error = refused(golden, "bad.jsonl")
    key, _, what = name.split(",")[0].partition(" ")
    assert f"'{key}'" in error.what
    assert what in error.what
    assert error.where == f"{golden / 'bad.jsonl'}, line 8"
    assert not (golden / "out.json").exists()


def test_damaged_files_and_lines_are_named(golden: Path) -> None:
    whole = (golden / "predictions.jsonl.gz").read_bytes()
    rows = [json.dumps(row).encode() for row in golden_rows()[:4]]
    for content, what, line in (
        (whole[: len(whole) // 2], "this gzip file is truncated or damaged", ""),
        (whole[:200] + b"\x00" * 20 + whole[220:], "this gzip file is truncated or damaged", ""),
        (b"\xff\xfe\x00", "this is not a text file", ""),
        (b"\n".join([*rows[:3], b"", rows[3][:-9], rows[0]]), "a line is no JSON", ", line 5"),
        (b"\n".join([*rows[:3], b"[1, 2]"]), "a line holds no JSON object", ", line 4"),
    ):
        (golden / "bad").write_bytes(content)
        error = refused(golden, "bad")
        assert (error.what, str(error.where)) == (what, f"{golden / 'bad'}{line}")
    assert refused(golden, "absent.jsonl").what == "there is no such file"


def test_wrong_options_and_side_files_are_named(golden: Path) -> None:
    images = golden / "images.txt"
    images.write_text(f"{GOLDEN['filenames'][0]}\nHICO_test.jpg\n")
    error = refused(golden, images=images)
    assert (error.what, error.where) == ("an image is not in the annotations", f"{images}, line 2")
    images.write_text("\n")
    assert "no image name" in refused(golden, images=images).what
    assert refused(golden, format="vsrl").where == "--format"
    assert refused(golden, protocol="mine").where == "--protocol"
    assert "--images is no option of world" in refused(golden, images=images, dataset="world").what
    assert refused(golden, known_object=golden / "absent.mat").what == "there is no such file"


def test_boxes_over_the_border_and_no_boxes_are_noticed(golden: Path) -> None:
    write_lines(golden / "over.jsonl", broken(lambda row: row.update(human_xyxy=[*row["human_xyxy"][:2], 170, 100])))
    assert "reach over the border" in scored(golden, "over.jsonl")["notices"][0]
    write_lines(golden / "far.jsonl", broken(lambda row: row.update(human_xyxy=[900, 900, 990, 990])))
    assert scored(golden, "far.jsonl", clip=True)["notices"] == []
    # Without sizes of the images no box is outside.
    annotations = {key: GOLDEN[key] for key in ("filenames", "annotation")}
    (golden / "annotations.json").write_text(json.dumps(annotations))
    assert "no image sizes" in scored(golden, "far.jsonl")["notices"][0]
    assert "unknown size" in refused(golden, "far.jsonl", clip=True).what
    (golden / "none.jsonl").write_text("")
    out = scored(golden, "none.jsonl")
    assert (out["full"], out["num_predictions"], "holds no prediction" in out["notices"][0]) == (0, 0, True)


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
    images[0]["hoi_prediction"][0]["score"] = "SCORE"
    printed = str({"preds": images, "gts": []}).replace("'SCORE'", "np.float32(0.5)")  # as numpy 2 prints it
    (golden / "gen.json").write_text(json.dumps(printed))
    images[0]["hoi_prediction"][0]["score"] = 0.5
    (golden / "plain.json").write_text(json.dumps(images))
    saved = golden / "saved.jsonl"
    out = scored(golden, "gen.json", format="gen-vlkt", save_lines=saved)
    assert out["num_predictions"] == 260
    assert scored(golden, "plain.json", format="gen-vlkt")["ap"] == out["ap"]
    assert scored(golden, "saved.jsonl")["ap"] == out["ap"]
    images[3]["hoi_prediction"][0]["object_id"] = 999
    (golden / "plain.json").write_text(json.dumps(images))
    error = refused(golden, "plain.json", format="gen-vlkt")
    assert (error.what, error.where) == ("a result is not understood", f"{golden / 'plain.json'}, image 4")


def test_printed_python_is_read_with_its_apostrophes(golden: Path) -> None:
    images = by_image()
    old, odd = images[0]["filename"], 'a\'b "é" (np.float32(1) nan).jpg'
    annotations = json.loads((golden / "annotations.json").read_text())
    annotations["filenames"][annotations["filenames"].index(old)] = odd
    (golden / "annotations.json").write_text(json.dumps(annotations))
    images[0]["filename"] = odd
    (golden / "plain.json").write_text(json.dumps({"preds": images}))
    printed = str({"preds": images, "gts": [], "none": None, "true": True})
    (golden / "text.json").write_text(json.dumps(printed))
    (golden / "printed.txt").write_text(printed)
    plain = scored(golden, "plain.json", format="gen-vlkt")
    for name in ("text.json", "printed.txt"):
        assert scored(golden, name, format="gen-vlkt")["ap"] == plain["ap"]


@pytest.mark.parametrize(
    ("score", "what"),
    [
        ("inf", "the printed text holds inf"),
        ("array([0.5, ...])", "the printed text holds array(...), which may have been cut"),
        ("__import__('os').system('true')", "the printed text holds __import__(...), which may have been cut"),
        ("1 + 1", "this result file is neither JSON nor printed Python"),
        ("'open", "the printed text holds open"),
    ],
)
def test_what_printed_python_cannot_hold_is_named(golden: Path, score: str, what: str) -> None:
    (golden / "gen.json").write_text(json.dumps("{'preds': [{'score': " + score + "}]}"))
    error = refused(golden, "gen.json", format="gen-vlkt")
    assert error.what == what
    assert str(error.where).startswith(str(golden / "gen.json"))


@pytest.mark.parametrize("key", ["subject_id", "object_id", "category_id"])
def test_infinity_is_no_id(golden: Path, key: str) -> None:
    images = by_image()
    images[2]["hoi_prediction"][0][key] = float("inf")
    (golden / "plain.json").write_text(json.dumps(images))
    error = refused(golden, "plain.json", format="gen-vlkt")
    assert (error.what, error.where) == ("a result is not understood", f"{golden / 'plain.json'}, image 3")


def test_names_with_other_folders_join_with_a_notice(golden: Path) -> None:
    rows = [{**row, "file_name": f"C:\\hico\\{row['file_name']}"} for row in golden_rows()]
    write_lines(golden / "paths.jsonl", rows)
    out = scored(golden, "paths.jsonl")
    assert out["ap"] == scored(golden)["ap"]
    assert "were joined by their bare names, as 'C:\\hico" in out["notices"][0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda box: [edge / 10_000 for edge in box], "'human_xyxy': boxes are fractions of the image, not pixels"),
        (lambda box: [4 * edge for edge in box], "they look like those of a larger copy of the images"),
        (lambda box: [box[2], box[3], box[2] - box[0], box[3] - box[1]], "is reversed"),
    ],
)
def test_predictions_of_another_frame_are_refused(golden: Path, change: Callable[[list], list], what: str) -> None:
    keys = ("human_xyxy", "object_xyxy")
    write_lines(golden / "bad.jsonl", [{**row, **{key: change(row[key]) for key in keys}} for row in golden_rows()])
    error = refused(golden, "bad.jsonl")
    assert what in error.what
    assert str(error.where).startswith(f"{golden / 'bad.jsonl'}, line ")


FOLDER_LINE = {"human_xyxy": [10, 10, 60, 110], "object_xyxy": [50, 60, 100, 120], "verb": "ride", "object": "bicycle"}


def of_folder(folder: Path, true: list[dict], predicted: list[dict]) -> Any:
    write_lines(folder / "annotations.json", [FOLDER_LINE | line for line in true])
    write_lines(folder / "p.jsonl", [FOLDER_LINE | {"score": 0.9} | line for line in predicted])
    return scored(folder, "p.jsonl", "folder")


def test_what_does_not_join_is_counted_on_both_sides(tmp_path: Path) -> None:
    both = {"file_name": "s/a.jpg"}, {"file_name": "/x/b.jpg"}
    out = of_folder(tmp_path, [*both, {"file_name": "C.jpg"}], [{"file_name": "s\\a.jpg"}, {"file_name": "b.jpg"}])
    assert out["num_images"] == 3
    bare, missed, *_ = out["notices"]
    assert bare.startswith("1 images of the predictions were joined by their bare names, as 'b.jpg'")
    assert missed == "1 annotated images have no prediction, as 'C.jpg'"
    line = {"file_name": "a.jpg"}
    out = of_folder(tmp_path, [line], [line, line | {"verb": "Ride"}])
    assert out["notices"][0] == "1 predicted interactions have no annotation, as 'Ride bicycle'"


@pytest.mark.parametrize("change", [{"file_name": "A.jpg"}, {"verb": "riding"}])
def test_files_with_nothing_in_common_are_an_error(tmp_path: Path, change: dict) -> None:
    line = {"file_name": "a.jpg"}
    error = pipelines.refused(of_folder, tmp_path, [line], [line | change])
    assert "in common" in error.what
    assert error.where == tmp_path / "p.jsonl"


def test_repeated_annotation_lines_are_noticed_with_their_number(tmp_path: Path) -> None:
    line = {"file_name": "a.jpg"}
    out = of_folder(tmp_path, [line, {"file_name": "b.jpg"}, line, line], [line])
    assert out["notices"][0].startswith("2 annotation lines repeat an earlier one")
    assert "annotations.json, line 3, as 1" in out["notices"][0]


def test_qpics_verbs_and_coco_classes_become_interactions(golden: Path) -> None:
    vocabulary = hicodet_vocabulary()
    images = by_image()
    for image in images:
        for pair in image["hoi_prediction"]:
            verb, obj = vocabulary.interactions[pair["category_id"]]
            pair["category_id"] = vocabulary.verbs.index(verb)
            image["predictions"][pair["object_id"]]["category_id"] = COCO_OBJECTS.index(obj)
    # Nobody rides an airplane's neighbour in COCO's order, a bus, by blowing it: no such interaction.
    images[0]["predictions"].append({"bbox": [1, 1, 9, 9], "category_id": COCO_OBJECTS.index("bus")})
    impossible = {"subject_id": 0, "object_id": len(images[0]["predictions"]) - 1, "score": 0.9}
    images[0]["hoi_prediction"].append({**impossible, "category_id": vocabulary.verbs.index("blow")})
    (golden / "qpic.json").write_text(json.dumps(images))
    out = scored(golden, "qpic.json", format="qpic")
    assert out["num_predictions"] == 260
    assert out["notices"][0] == "1 pairs of a verb and an object make no interaction and were left out"
    (golden / "plain.json").write_text(json.dumps(by_image()))
    assert out["ap"] == scored(golden, "plain.json", format="gen-vlkt")["ap"]


def test_pvics_matlab_files_score_like_the_lines(golden: Path) -> None:
    vocabulary = hicodet_vocabulary()
    (golden / "matlab").mkdir()
    for obj in range(80):
        interactions = np.flatnonzero(vocabulary.object_of == obj)
        cells = np.empty((len(interactions), 24), object)
        for at in np.ndindex(cells.shape):
            cells[at] = np.zeros((0, 0))
        for row in golden_rows():
            if row["interaction"] in interactions:
                k = int(np.searchsorted(interactions, row["interaction"]))
                image = GOLDEN["filenames"].index(row["file_name"])
                new = np.array([[*row["human_xyxy"], *row["object_xyxy"], row["score"]]])
                cells[k, image] = np.concatenate([cells[k, image].reshape(-1, 9), new])
        savemat(golden / f"matlab/detections_{obj + 1:02d}.mat", {"all_boxes": cells})
    assert scored(golden, "matlab", format="pvic")["ap"] == scored(golden)["ap"]
    (golden / "matlab/detections_80.mat").unlink()
    last = golden / "matlab/detections_80.mat"
    assert refused(golden, "matlab", format="pvic").where == last
    for content in (b"", (golden / "matlab/detections_01.mat").read_bytes()[:100]):
        last.write_bytes(content)
        error = refused(golden, "matlab", format="pvic")
        assert (error.what, error.where) == ("this MATLAB file cannot be read", last)


# V-COCO


def vcoco_files(folder: Path) -> None:
    (folder / "annotations.json").write_text(json.dumps(label_file([7])))
    (folder / "instances_boxes.json").write_text(json.dumps(instances([7])))


def vcoco_row(**changes: Any) -> dict[str, Any]:
    """Anna with the ball, which she kicks and hits; she also stands."""
    row = {"image_id": 7, "human_xyxy": [10, 10, 49, 99], "object_xyxy": [40, 90, 59, 109]}
    return {**row, "scores": {key: 0.9 if key in ("kick_obj", "stand_agent") else 0.1 for key in KEYS}, **changes}


def test_a_perfect_vcoco_row_scores_one_where_there_is_truth(tmp_path: Path) -> None:
    vcoco_files(tmp_path)
    write_lines(tmp_path / "p.jsonl", [vcoco_row()])
    out = scored(tmp_path, "p.jsonl", "vcoco")
    assert out["per_role"]["kick_obj"] == {"s1": 1, "s2": 1}
    assert {action for action, ap in out["per_agent"].items() if ap} == {"kick", "hit", "stand"}
    assert out["agent_ap"] == pytest.approx(3 / 26)
    assert (out["role_ap_s1"], out["role_ap_s1_24"]) == (pytest.approx(2 / 25), pytest.approx(2 / 24))
    assert len(out["per_role"]) == len(ACTION_ROLES) == 25
    assert len(out["per_agent"]) == len(ACTIONS)
    write_lines(tmp_path / "p.jsonl", [vcoco_row(object_xyxy=None)])
    out = scored(tmp_path, "p.jsonl", "vcoco")
    assert (out["per_role"]["kick_obj"]["s2"], out["per_agent"]["kick"]) == (0, 1)
    assert out["notices"] == []
    write_lines(tmp_path / "p.jsonl", [vcoco_row(object_xyxy=[0, 0, 0, 0]), vcoco_row(object_xyxy=[0, 0, 0.1, 0.1])])
    assert scored(tmp_path, "p.jsonl", "vcoco")["notices"][0].startswith("2 rows have an object box")


def test_vsrl_evals_pickle_scores_like_the_lines(tmp_path: Path) -> None:
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
    options: dict[str, Any] = {"format": "vsrl", "save_lines": saved}
    of_pickle = scored(tmp_path, "p.pkl", "vcoco", **options)
    assert of_pickle["per_role"] == scored(tmp_path, "p.jsonl", "vcoco")["per_role"]
    assert saved.read_text() == (tmp_path / "p.jsonl").read_text()

    unscored = {k: [*value[:4], 0.0] if k in KEYS and isinstance(value, list) else value for k, value in given.items()}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([unscored], protocol=2))
    scored(tmp_path, "p.pkl", "vcoco", **options)
    assert json.loads(saved.read_text())["object_xyxy"] == row["object_xyxy"]
    for box, got in (([float("nan")] * 4, "an object for some roles and none for others"), ([1, 1, 9, 9], "2 objects")):
        (tmp_path / "p.pkl").write_bytes(pickle.dumps([given, {**given, "hold_obj": [*box, 0.2]}], protocol=2))
        error = refused(tmp_path, "p.pkl", "vcoco", **options)
        assert (error.what, error.got) == ("a row has several objects", got)
        assert error.where == f"{tmp_path / 'p.pkl'}, row 2"


HOSTILE = {
    "beyond the end": b"X\xff\xff\xff\x7fabc.",
    "beyond the end, of 8 bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00abc.",
    "truncated": b"\x80\x04\x95" + b"\xff" * 7 + b"\x00]\x94.",
    "larger than the file": b"\x80\x02]r\xff\xff\xff\x7f.",
    "larger than the file, in text": b"(lp99999999999\n.",
    "which plain data does not need": b"\x80\x02}" + b")\x85" * 9 + b"K\x01s.",
    "which plain data does not need, by memo": b"\x80\x02}(K\x01tq\x00(h\x00tK\x01s.",
    "asks for os.system": b"cos\nsystem\n)R.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_before_it_takes_memory(tmp_path: Path, name: str) -> None:
    vcoco_files(tmp_path)
    (tmp_path / "p.pkl").write_bytes(HOSTILE[name])
    error = refused(tmp_path, "p.pkl", "vcoco", format="vsrl")
    assert error.what == "this pickle is refused"
    assert name.split(",")[0] in str(error.got)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    rows = [{"image_id": 2**40 + k, "person_box": (k, 0.5, -3, 300), "é": "a'b\n", "none": None} for k in range(2000)]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([*rows, rows[0]], protocol))
    assert [row["image_id"] for row in read_vsrl(tmp_path / "p.pkl").rows[:2000]] == [row["image_id"] for row in rows]


VCOCO_BAD: dict[str, dict[str, Any]] = {
    "'image_id' of a prediction is no image": {"image_id": 294},
    "'image_id' of a prediction is mistyped": {"image_id": "7"},
    "other keys": {"scores": dict.fromkeys(KEYS[1:], 0.1)},
    "other keys, too": {"scores": dict.fromkeys((*KEYS, "fly"), 0.1)},
    "'hold_obj' of a prediction is not finite": {"scores": {k: float("nan") for k in KEYS}},
    "'object_xyxy' of a prediction is reversed": {"object_xyxy": [9, 9, 1, 1]},
    "'human_xyxy' of a prediction lies outside": {"human_xyxy": [500, 9, 600, 20]},
}


@pytest.mark.parametrize("what", VCOCO_BAD)
def test_a_bad_vcoco_row_is_named_by_its_line(tmp_path: Path, what: str) -> None:
    vcoco_files(tmp_path)
    write_lines(tmp_path / "p.jsonl", [vcoco_row(object_xyxy=None), vcoco_row(**VCOCO_BAD[what])])
    error = refused(tmp_path, "p.jsonl", "vcoco")
    assert what.split(",")[0] in error.what
    assert error.where == f"{tmp_path / 'p.jsonl'}, line 2"


def test_vcoco_without_the_right_boxes_says_what_to_give(tmp_path: Path) -> None:
    vcoco_files(tmp_path)
    write_lines(tmp_path / "p.jsonl", [vcoco_row()])
    elsewhere = (tmp_path / "instances_boxes.json").rename(tmp_path / "elsewhere.json")
    error = refused(tmp_path, "p.jsonl", "vcoco")
    assert ("holds no boxes" in error.what, error.fix) == (True, "--instances FILE")
    out = scored(tmp_path, "p.jsonl", "vcoco", instances=elsewhere)
    assert out["per_role"]["kick_obj"] == {"s1": 1, "s2": 1}
    assert out["inputs"]["instances"]["path"] == str(elsewhere)
    elsewhere.write_text(json.dumps({"images": [], "annotations": []}))
    error = refused(tmp_path, "p.jsonl", "vcoco", instances=elsewhere)
    assert ("do not fit the labels" in error.what, error.got) == (True, "no image 7")
    (tmp_path / "annotations.json").write_text("{}")
    assert "no V-COCO label file" in refused(tmp_path, "p.jsonl", "vcoco").what


def test_damaged_vcoco_files_are_one_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", [vcoco_row()])
    for key, column in (("images", "width"), ("annotations", "bbox")):
        vcoco_files(tmp_path)
        instances = json.loads((tmp_path / "instances_boxes.json").read_text())
        del instances[key][0][column]
        (tmp_path / "instances_boxes.json").write_text(json.dumps(instances))
        error = refused(tmp_path, "p.jsonl", "vcoco")
        assert (error.where, error.got) == (tmp_path / "instances_boxes.json", f"no '{column}'")
    for column, value in (("role_name", []), ("label", [1]), ("ann_id", None)):
        vcoco_files(tmp_path)
        actions = json.loads((tmp_path / "annotations.json").read_text())
        actions[3][column] = value
        (tmp_path / "annotations.json").write_text(json.dumps(actions))
        error = refused(tmp_path, "p.jsonl", "vcoco")
        assert "differ in length" in error.what
        assert str(error.where).endswith("action ride")


# The embedded world


def test_the_worlds_own_annotations_score_one(tmp_path: Path) -> None:
    config = small_pipeline(tmp_path)
    write_pipeline(config, tmp_path / "annotations.json")
    labels, vocabulary = load_labels(config.dataset, "test"), load_vocabulary(config.dataset)
    names = open_images(config.dataset, "test").image_ids
    columns = zip(*(column.tolist() for column in vars(labels).values()), strict=True)
    rows = [dict(zip(TRIPLET_KEYS, (names[image], *values, 0.5), strict=True)) for image, *values in columns]
    write_lines(tmp_path / "numbers.jsonl", rows)
    out = scored(tmp_path, "numbers.jsonl", "world")
    assert (out["full"], out["num_images"], out["num_predictions"], out["split"]) == (1, 6, len(rows), "test")
    for row in rows:
        row["verb"], row["object"] = vocabulary.interactions[row.pop("interaction")]
    write_lines(tmp_path / "names.jsonl", rows)
    assert scored(tmp_path, "names.jsonl", "world")["ap"] == out["ap"]
    rows[1]["object"] = "cloud"
    write_lines(tmp_path / "names.jsonl", rows)
    error = refused(tmp_path, "names.jsonl", "world")
    assert "unknown interaction" in error.what
    assert error.where == f"{tmp_path / 'names.jsonl'}, line 2"
    other = small_pipeline(tmp_path, dataset={"name": "hicodet", "root": "h"})
    write_pipeline(other, tmp_path / "annotations.json")
    assert "another frame" in refused(tmp_path, "numbers.jsonl", "world").what


# Real annotations and the figures of the public evaluators


@pytest.fixture(scope="module")
def reference_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference predictions as JSON lines in 0-based inclusive pixels, and the names of their images."""
    folder = tmp_path_factory.mktemp("reference")
    npz = np.load(CHECK_DATA / "reference/hicodet_1k_predictions.npz")
    names = json.loads((CHECK_DATA / "annotations/hicodet_instances_test2015.json").read_text())["filenames"]
    names = [names[i] for i in npz["images"]]
    (folder / "images.txt").write_text("\n".join(names))
    columns = ((npz["bh"] - 1).tolist(), (npz["bo"] - 1).tolist(), npz["hoi"].tolist(), npz["score"].tolist())
    rows = zip([names[i] for i in npz["img"]], *columns, strict=True)
    write_lines(folder / "predictions.jsonl.gz", [dict(zip(TRIPLET_KEYS, row, strict=True)) for row in rows])
    return folder


@needs_references
@pytest.mark.parametrize("name", ["official_default", "official_known_object", "qpic_default", "pocket_11P_default"])
def test_hicodet_scores_equal_the_reference_evaluators(reference_lines: Path, name: str) -> None:
    expected = json.loads((CHECK_DATA / "reference/hicodet_1k_expected.json").read_text())[name]
    mat = CHECK_DATA / "annotations/hico_anno.mat" if name.endswith("known_object") else None
    out = score(
        "hicodet",
        CHECK_DATA / "annotations/hicodet_instances_test2015.json",
        reference_lines / "predictions.jsonl.gz",
        protocol=name.split("_")[0],
        images=reference_lines / "images.txt",
        known_object=mat,
    ).content
    for mean in ("full", "rare", "non_rare"):
        assert out[mean] == pytest.approx(expected[mean], abs=1e-9)
    if "ap" in expected:
        np.testing.assert_allclose(out["ap"], expected["ap"], rtol=0, atol=1e-9)
    assert (out["num_images"], out["num_predictions"], out["num_interactions_with_truth"]) == (1000, 28_110, 425)


@needs_references
def test_vcoco_scores_equal_vsrl_eval_in_every_role(tmp_path: Path) -> None:
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
    out = score("vcoco", files / "vcoco_test_rebuilt.json.gz", tmp_path / "p.jsonl").content
    for key, name in (("s1", "S1"), ("s2", "S2")):
        for role, (ap, _) in expected[name].items():
            assert 100 * out["per_role"][role.replace("-", "_")][key] == pytest.approx(ap, abs=0.0051)
    for action, (ap, num) in expected["agent"].items():
        assert 100 * out["per_agent"][action] == pytest.approx(ap, abs=0.0051)
        assert out["num_positives"][action] == num
    figures = [100 * out[key] for key in ("agent_ap", "role_ap_s1", "role_ap_s2")]
    assert np.round(figures, 2).tolist() == [42.21, 30.89, 36.63]
    error = pipelines.refused(score, "vcoco", files / "vcoco_val.json.gz", tmp_path / "p.jsonl")
    assert "'image_id' of a prediction is no image of the annotations" in error.what
