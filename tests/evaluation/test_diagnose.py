"""Loss by cause: each cause alone, laws on scenes by chance, the reference predictions, and the command."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.boxes import box_iou
from hoi.cli import run_verb
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.evaluation.diagnose import CAUSES, MISSES, Loss, compare, compare_vcoco, diagnose
from hoi.evaluation.hico import PROTOCOLS, evaluate
from hoi.evaluation.vcoco import VcocoPredictions
from hoi.evaluation.vcoco import evaluate as evaluate_vcoco
from hoi.labels.hicodet_files import read_annotations
from hoi.labels.vcoco_files import VcocoTruth, join_instances, read_labels
from hoi.records import HoiLabels, Triplets
from tests.fakes.pipelines import small_pipeline, write_pipeline
from tests.fakes.vcoco import instances, label_file

A, B, C, D, FAR = ([x, 0.0, x + 10, 10.0] for x in (0, 20, 40, 60, 80))
PAIRS = [("hold", "cup"), ("wash", "cup"), ("hold", "fork"), ("wash", "fork"), ("no_interaction", "cup")]
LABELS = HoiLabels(
    image=np.array([0, 0]), boxes_h=np.array([A, C]), boxes_o=np.array([B, D]), interaction=np.zeros(2, int)
)
CASES = [(A, B, 0), (A, B, 1), (A, B, 2), (A, B, 3), (A, D, 0), (FAR, B, 0), (A, FAR, 0), (FAR, FAR, 0)]
ALL = [*CAUSES, *MISSES]
CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))
needs_references = pytest.mark.skipif(
    not (CHECK_DATA / "reference").is_dir(), reason="needs HOI_CHECK_DATA: the reference predictions"
)


def triplets(*rows: tuple[list[float], list[float], int], score: list[float] | None = None) -> Triplets:
    boxes_h, boxes_o, interaction = (np.array(column) for column in zip(*rows, strict=True))
    num = len(rows)
    return Triplets(
        np.zeros(num, int), boxes_h, boxes_o, interaction, np.array(score or np.linspace(0.9, 0.1, num).tolist())
    )


def labels(*rows: tuple[list[float], list[float], int]) -> HoiLabels:
    boxes_h, boxes_o, interaction = (np.array(column) for column in zip(*rows, strict=True))
    return HoiLabels(np.zeros(len(rows), int), boxes_h, boxes_o, interaction)


@pytest.mark.parametrize("case", range(8))
def test_each_cause_alone(case: int) -> None:
    result = diagnose(compare(triplets((A, B, 0), CASES[case]), LABELS, PAIRS))
    assert {name: result.counts[name] for name in CAUSES} == {name: int(i == case) for i, name in enumerate(CAUSES)}
    assert result.num_missed == 1
    assert result.num_true == 1
    assert min(result.gains.values()) >= 0


MISSED = {
    "missed_person": [(FAR, D, 0)],
    "missed_object": [(C, FAR, 0), (C, D, 2)],
    "missed_pair": [(C, B, 0), (A, D, 0)],
    "missed_verb": [(C, D, 1)],
}


@pytest.mark.parametrize("name", MISSED)
def test_each_miss_alone(name: str) -> None:
    counts = diagnose(compare(triplets((A, B, 0), *MISSED[name]), LABELS, PAIRS)).counts
    assert {miss: counts[miss] for miss in MISSES} == {miss: int(miss == name) for miss in MISSES}


def test_a_miss_whose_prediction_fits_another_truth_better() -> None:
    close = [1.0, 0.0, 11.0, 10.0]
    counts = diagnose(compare(triplets((A, B, 0)), labels((A, B, 0), (close, B, 0)), PAIRS)).counts
    assert counts["missed_taken"] == 1


def test_a_wrong_verb_is_mended_to_the_free_truth() -> None:
    # The only truth is predicted as another verb: mended, it is found, and the mean over its class is perfect.
    loss = Loss(compare(triplets((A, B, 1)), labels((A, B, 0)), PAIRS))
    assert loss.mean() == 0
    assert loss.mean(["verb"]) == 1
    assert loss.mean(["background"]) == 0


def test_of_two_that_are_mended_to_one_truth_one_stays() -> None:
    # The second wrong verb is dropped: a false positive in the truth's class would cost it nothing, here.
    found = compare(triplets((A, B, 1), (A, B, 4), (FAR, FAR, 0), (C, D, 0)), labels((A, B, 0), (C, D, 0)), PAIRS)
    loss = Loss(found)
    assert sorted(loss.target.tolist()) == [-1, -1, 0, 0]
    # Precision at both truths: 1 of 1, then 2 of 3.
    assert loss.ap(["verb"])[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_a_wrong_verb_of_a_found_truth_is_dropped() -> None:
    found = compare(triplets((A, B, 1), (C, D, 1), (A, B, 0)), labels((A, B, 0), (C, D, 1)), PAIRS)
    loss = Loss(found)
    assert loss.ap()[1] == 0.5
    assert loss.ap(["verb"])[1] == 1
    assert (loss.target == -1).all()


def test_a_misplaced_person_is_mended_to_the_free_truth() -> None:
    loss = Loss(compare(triplets((FAR, B, 0)), labels((A, B, 0)), PAIRS))
    assert loss.mean(["person"]) == 1
    assert loss.mean(["object"]) == 0


def test_no_interaction_stands_apart_and_pairs_are_counted_once() -> None:
    result = diagnose(compare(triplets((A, B, 4)), labels((A, B, 0), (A, B, 4), (C, D, 0)), PAIRS))
    assert (result.full, result.interacting, result.no_interaction) == (0.5, 0, 1)
    assert (result.pair_recall, result.num_pairs) == (0.5, 2)


def many(seed: int, num: int = 400) -> tuple[Triplets, HoiLabels]:
    """Return truth in 12 images, and predictions that are mostly of its boxes, mixed up."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (12, 6, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 25, (12, 6, 2))], axis=2)

    def draw(num: int, moved: float) -> tuple[np.ndarray, ...]:
        image = rng.integers(12, size=num)
        h, o = (boxes[image, rng.integers(part, part + 3, num)] + rng.normal(0, moved, (num, 4)) for part in (0, 3))
        ordered = [np.concatenate([np.minimum(b[:, :2], b[:, 2:]), np.maximum(b[:, :2], b[:, 2:])], 1) for b in (h, o)]
        return image, *ordered, rng.integers(len(PAIRS), size=num)

    truth = HoiLabels(*draw(60, 0))
    keep = truth.image > 1
    truth = HoiLabels(*(values[keep] for values in vars(truth).values()))
    image, boxes_h, boxes_o, interaction = draw(num, 2.0)
    return Triplets(image, boxes_h, boxes_o, interaction, rng.integers(50, size=num) / 50), truth


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_laws_hold_under_every_protocol(protocol: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, truth = many(seed)
    is_allowed = np.random.default_rng(seed).random((12, len(PAIRS))) < 0.8
    is_here = np.arange(12) != 5
    for allowed, here in ((None, None), (is_allowed, None), (None, is_here)):
        compared = compare(predictions, truth, PAIRS, protocol, allowed, here)
        loss, result = Loss(compared), diagnose(compared)
        none = np.zeros(len(PAIRS), bool)
        if here is None:
            same = evaluate(predictions, truth, len(PAIRS), none, protocol=protocol, allowed=allowed)
            assert np.array_equal(loss.ap(), same.ap)
            assert result.full == same.full
        assert min(result.gains.values()) >= 0
        assert sum(result.counts[name] for name in CAUSES) + result.num_true == compared.counts.sum()
        assert result.num_missed + result.num_true == len(compared.labels.image)
        # All false positives taken off and all misses left out: perfect wherever anything is found.
        recalled = np.bincount(compared.labels.interaction[loss.is_found], minlength=len(PAIRS)) > 0
        assert recalled.any()
        assert (loss.ap(ALL)[recalled] == 1).all()
        for name in ALL:
            assert (loss.ap([name]) >= loss.ap() - 1e-12).all(), name
    monkeypatch.setattr("hoi.evaluation.diagnose.MOST_AT_ONCE", 7)
    assert diagnose(compared) == result


def plain_cause(row: int, of: Triplets, truth: HoiLabels, is_true: bool) -> str | None:
    """Say the cause of one prediction in the words of the definitions."""
    if is_true:
        return None
    fits_pair, persons_fit, objects_fit = [], False, False
    verb, name = PAIRS[of.interaction[row]]
    for g in np.flatnonzero(truth.image == of.image[row]):
        [[iou_h]], [[iou_o]] = (
            box_iou(ours[row : row + 1], theirs[g : g + 1])
            for ours, theirs in ((of.boxes_h, truth.boxes_h), (of.boxes_o, truth.boxes_o))
        )
        named = PAIRS[truth.interaction[g]]
        persons_fit |= iou_h >= 0.5
        objects_fit |= iou_o >= 0.5 and named[1] == name
        if iou_h >= 0.5 and iou_o >= 0.5:
            fits_pair.append(named)
    if (verb, name) in fits_pair:
        return "duplicate"
    if any(named[1] == name for named in fits_pair):
        return "verb"
    if any(named[0] == verb for named in fits_pair):
        return "object_class"
    if fits_pair:
        return "verb_and_object"
    if persons_fit and objects_fit:
        return "pairing"
    return "object" if persons_fit else "person" if objects_fit else "background"


@pytest.mark.parametrize("seed", range(2))
def test_causes_are_those_of_a_plain_loop(seed: int) -> None:
    predictions, truth = many(seed)
    loss = Loss(compare(predictions, truth, PAIRS))
    causes = [plain_cause(row, predictions, truth, loss.is_true[row]) for row in range(len(predictions))]
    assert causes == [None if i < 0 else list(CAUSES)[i] for i in loss.cause]
    assert {*causes} >= {"duplicate", "verb", "verb_and_object", "pairing", "person", "object", "background"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*ALL, "all"])
def test_gains_are_what_mended_files_would_score(seed: int, name: str) -> None:
    predictions, truth = many(seed)
    rows = np.column_stack([truth.image, truth.boxes_h, truth.boxes_o, truth.interaction])
    once = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    truth = HoiLabels(*(values[once] for values in vars(truth).values()))
    loss, names = Loss(compare(predictions, truth, PAIRS)), ALL if name == "all" else [name]
    # Written out: errors become the truth that they are mended to, once; others are dropped, as are misses.
    columns = [values.copy() for values in vars(predictions).values()]
    is_kept, is_left, taken = np.ones(len(predictions), bool), np.ones(len(truth.image), bool), set[int]()
    for row in np.lexsort((predictions.image, -predictions.score)):
        if loss.cause[row] >= 0 and list(CAUSES)[loss.cause[row]] in names:
            target = int(loss.target[row])
            is_kept[row] = target >= 0 and target not in taken
            taken.add(target)
            if is_kept[row]:
                for column, value in zip(columns, vars(truth).values(), strict=False):
                    column[row] = value[target]
    for g, miss in enumerate(loss.miss):
        is_left[g] = miss < 0 or list(MISSES)[miss] not in names or g in taken
    mended = Triplets(*(column[is_kept] for column in columns))
    left = HoiLabels(*(values[is_left] for values in vars(truth).values()))
    expected = evaluate(mended, left, len(PAIRS), np.zeros(len(PAIRS), bool)).ap
    assert loss.ap(names) == pytest.approx(expected, abs=1e-12)


def persons(seed: int) -> tuple[VcocoPredictions, VcocoTruth]:
    rng = np.random.default_rng(seed)
    predictions, _ = many(seed)
    num = 40
    rows = np.arange(num) * 9
    truth = VcocoTruth(
        predictions.image[rows],
        predictions.boxes_h[rows],
        rng.random(num) < 0.8,
        rng.random((num, len(ACTIONS))) < 0.2,
        np.repeat(predictions.boxes_o[rows][:, None], len(ACTION_ROLES), axis=1),
        rng.random((num, len(ACTION_ROLES))) < 0.7,
    )
    has_object, scores = rng.random(len(predictions)) < 0.8, rng.random((len(predictions), len(KEYS)))
    truth.does[~truth.is_annotated] = False
    return VcocoPredictions(predictions.image, predictions.boxes_h, predictions.boxes_o, has_object, scores), truth


@pytest.mark.parametrize("seed", range(3))
def test_vcoco_is_vsrl_evals_role_ap_and_laws_hold(seed: int) -> None:
    rows, truth = persons(seed)
    compared = compare_vcoco(rows, truth)
    loss, result, official = Loss(compared), diagnose(compared), evaluate_vcoco(rows, truth)
    assert loss.ap() == pytest.approx(official.role_ap_s1, abs=1e-12)
    assert result.full == pytest.approx(official.role("scenario_1"), abs=1e-12)
    assert result.full > 0
    assert min(result.gains.values()) >= 0
    assert result.num_missed + result.num_true == len(compared.labels.image)
    recalled = np.bincount(compared.labels.interaction[loss.is_found], minlength=len(ACTION_ROLES)) > 0
    assert loss.ap(ALL)[recalled] == pytest.approx(1)


@needs_references
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_reference_predictions_of_hicodet(protocol: str) -> None:
    file = CHECK_DATA / "reference/hicodet_1k_expected.json"
    expected = json.loads(file.read_text())["pocket_11P_default" if protocol == "pocket" else f"{protocol}_default"]
    npz = np.load(CHECK_DATA / "reference/hicodet_1k_predictions.npz")
    truth = read_annotations(CHECK_DATA / "annotations/hicodet_instances_test2015.json", "test2015")
    # Corners are 1-based and inclusive; edges are those of the annotations' frame.
    boxes_h, boxes_o = (npz[key] + np.array([-1, -1, 0, 0]) for key in ("bh", "bo"))
    predictions = Triplets(npz["images"][npz["img"]], boxes_h, boxes_o, npz["hoi"], npz["score"])
    of_truth = HoiLabels(truth.image, truth.boxes_h, truth.boxes_o, truth.interaction)
    here = np.isin(np.arange(len(truth.file_names)), npz["images"])
    compared = compare(predictions, of_truth, hicodet_vocabulary().interactions, protocol, images=here)
    result, loss = diagnose(compared), Loss(compared)
    print(result)
    assert result.full == pytest.approx(expected["full"], abs=1e-9)
    assert sum(result.counts[name] for name in CAUSES) + result.num_true == compared.counts.sum()
    assert result.num_missed + result.num_true == len(compared.labels.image)
    assert min(result.gains.values()) >= 0
    recalled = np.bincount(compared.labels.interaction[loss.is_found], minlength=600) > 0
    assert (loss.ap(ALL)[recalled] == 1).all()
    # Each kind of error is there, and few pairs are never formed in predictions that were made from the truth.
    assert all(result.counts[name] for name in ("duplicate", "verb", "person", "object", "background"))


@needs_references
def test_the_reference_predictions_of_vcoco() -> None:
    npz = np.load(CHECK_DATA / "reference/vcoco_test_predictions.npz")
    labels = read_labels(CHECK_DATA / "annotations/vcoco/vcoco_test_rebuilt.json.gz")
    truth = join_instances(labels).truth
    row_of = {image_id: row for row, image_id in enumerate(labels.image_ids)}
    image = np.array([row_of[i] for i in npz["image_id"].tolist()])
    columns = [npz["keys"].tolist().index(key) for key in KEYS]
    edges = np.array([0, 0, 1, 1])
    boxes_h, boxes_o = npz["person_xyxy"] + edges, npz["object_xyxy"] + edges
    rows = VcocoPredictions(image, boxes_h, boxes_o, npz["has_object"], npz["scores"][:, columns])
    compared = compare_vcoco(rows, truth)
    result, loss, official = diagnose(compared), Loss(compared), evaluate_vcoco(rows, truth)
    print(result)
    assert result.full == pytest.approx(official.role("scenario_1"), abs=1e-12)
    assert round(100 * official.role("scenario_1", 25), 2) == 30.89
    assert result.num_missed + result.num_true == len(compared.labels.image)
    assert min(result.gains.values()) >= 0
    assert np.bincount(compared.labels.interaction[loss.is_found], minlength=25).all()
    assert loss.ap(ALL) == pytest.approx(1)
    assert result.full + result.gains["everything"] == pytest.approx(1)


def written(folder: Path, *options: str) -> dict[str, Any]:
    files = ("--annotations", "annotations.json", "--predictions", "p.jsonl", "--json", "out.json")
    paths = [str(folder / name) if "." in name else name for name in files]
    assert run_verb(["diagnose", *paths, *options]) == 0
    return json.loads((folder / "out.json").read_text())


def line(human: list[float], obj: list[float], verb: str, **more: float) -> str:
    named = {"file_name": "a.jpg", "human_xyxy": human, "object_xyxy": obj, "verb": verb, "object": "cup"}
    return json.dumps({**named, **more}) + "\n"


def test_the_command_prints_a_table_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.json").write_text(line(A, B, "hold") + line(C, D, "wash"))
    (tmp_path / "p.jsonl").write_text(line(A, B, "hold", score=0.9) + line(C, D, "hold", score=0.8))
    out = written(tmp_path, "--dataset", "folder")
    assert (out["full"], out["diagnosis"]["full"], out["diagnosis"]["pair_recall"]) == (0.5, 0.5, 1)
    assert {name for name, count in out["diagnosis"]["counts"].items() if count} == {"verb", "missed_verb"}
    assert out["diagnosis"]["gains"]["verb"] == 0.5
    printed = capsys.readouterr().out.splitlines()
    assert any(row.split()[:3] == ["verb", "1", "+50.00"] for row in printed)


def test_the_command_knows_vcoco(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(label_file([7])))
    (tmp_path / "instances_boxes.json").write_text(json.dumps(instances([7])))
    row = {"image_id": 7, "human_xyxy": [10, 10, 49, 99], "object_xyxy": [40, 90, 59, 109]}
    scores = {key: 0.9 if key == "kick_obj" else 0.1 for key in KEYS}
    (tmp_path / "p.jsonl").write_text(json.dumps({**row, "scores": scores}) + "\n")
    out = written(tmp_path, "--dataset", "vcoco")
    assert out["diagnosis"]["full"] == pytest.approx(out["role_ap_s1_24"])
    assert out["diagnosis"]["measure"] == "role AP in scenario 1 over 24 roles"


def test_the_command_knows_the_world(tmp_path: Path) -> None:
    config = small_pipeline(tmp_path)
    write_pipeline(config, tmp_path / "annotations.json")
    (tmp_path / "p.jsonl").write_text("")
    out = written(tmp_path, "--dataset", "world")["diagnosis"]
    assert (out["full"], out["num_true"], out["counts"]["missed_person"]) == (0, 0, out["num_missed"])
