import numpy as np
import pytest

from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.evaluation.diagnose import CAUSES, MISSES, Loss, compare, compare_vcoco, diagnose
from hoi.evaluation.hico import PROTOCOLS, evaluate
from hoi.evaluation.vcoco import VcocoPredictions
from hoi.evaluation.vcoco import evaluate as evaluate_vcoco
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import HoiLabels, Triplets

A, B, C, D, FAR = ([x, 0.0, x + 10, 10.0] for x in (0, 20, 40, 60, 80))
PAIRS = [("hold", "cup"), ("wash", "cup"), ("hold", "fork"), ("wash", "fork"), ("no_interaction", "cup")]
LABELS = HoiLabels(
    image=np.array([0, 0]), boxes_h=np.array([A, C]), boxes_o=np.array([B, D]), interaction=np.zeros(2, int)
)
CASES = [(A, B, 0), (A, B, 1), (A, B, 2), (A, B, 3), (A, D, 0), (FAR, B, 0), (A, FAR, 0), (FAR, FAR, 0)]
ALL = [*CAUSES, *MISSES]


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
    return Triplets(*draw(num, 2.0), rng.integers(50, size=num) / 50), truth


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
