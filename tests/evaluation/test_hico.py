"""The HICO-DET rule: by hand, by law, against a slow second implementation. Against official figures: test_score.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hoi.evaluation.hico import HicoResult, ProtocolName, evaluate, known_object_images
from hoi.records import HoiLabels, Triplets
from tests.fakes.pipelines import refused
from tests.fakes.splits import labels_of, triplets_of

NEAR, FAR, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60), (100, 100, 120, 130)


def hico(
    predictions: Triplets, labels: HoiLabels, num: int = 1, protocol: ProtocolName = "official", **options: np.ndarray
) -> HicoResult:
    none = np.zeros(num, bool)
    return evaluate(predictions, labels, num, none, none, protocol=protocol, **options)


def random_case(seed: int, num_interactions: int = 5, num_images: int = 12) -> tuple[Triplets, HoiLabels]:
    """Integer boxes about a few truths, scores rounded so that many tie; images without truth; a class without any."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for image in range(num_images):
        for _ in range(rng.integers(0, 5)):
            corners = rng.integers(0, 30, 4)
            box_h, box_o = (
                (x, y, x + w, y + h)
                for (x, y), (w, h) in zip(corners.reshape(2, 2), rng.integers(8, 25, (2, 2)), strict=True)
            )
            truths.append((image, box_h, box_o, rng.integers(num_interactions - 1)))
    for _ in range(400):
        image, box_h, box_o, k = truths[rng.integers(len(truths))]
        moved_h, moved_o = np.add(box_h, rng.integers(-3, 4, 4)), np.add(box_o, rng.integers(-3, 4, 4))
        image = image if rng.random() < 0.8 else int(rng.integers(num_images))
        k = k if rng.random() < 0.8 else rng.integers(num_interactions)
        found.append((image, moved_h, moved_o, k, round(rng.random(), 1)))
    return triplets_of(*found), labels_of(*truths)


def slow_ap(predictions: Triplets, labels: HoiLabels, k: int) -> float:
    """The official rule as one would say it, with inclusive integer corners and +1 widths."""

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a - [0, 0, 1, 1], b - [0, 0, 1, 1]
        w, h = (min(a[2 + i], b[2 + i]) - max(a[i], b[i]) + 1 for i in (0, 1))
        area = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
        return w * h / (sum(area) - w * h) if w > 0 and h > 0 else 0.0

    truths = [g for g in range(len(labels)) if labels.interaction[g] == k]
    rows = [r for r in range(len(predictions)) if predictions.interaction[r] == k]
    rows.sort(key=lambda r: (-predictions.score[r], predictions.image[r], r))
    taken: set[int] = set()
    recall_precision, num_true = [], 0
    for position, r in enumerate(rows, start=1):
        best, best_iou = None, -1.0
        for g in truths:
            if labels.image[g] == predictions.image[r]:
                overlap = min(
                    iou(predictions.boxes_h[r], labels.boxes_h[g]), iou(predictions.boxes_o[r], labels.boxes_o[g])
                )
                if overlap > best_iou:
                    best, best_iou = g, overlap
        if best is not None and best_iou >= 0.5 and best not in taken:
            taken.add(best)
            num_true += 1
        recall_precision.append((num_true / max(len(truths), 1), num_true / position))
    ap = 0.0
    for level in np.arange(0, 1.1, 0.1):
        ap += max((p for r, p in recall_precision if r >= level), default=0.0) / 11
    return ap if truths else 0.0


def test_a_perfect_prediction_has_ap_one_and_a_missed_class_zero() -> None:
    labels = labels_of((0, NEAR, FAR, 0), (1, FAR, NEAR, 0), (1, NEAR, FAR, 1))
    result = hico(triplets_of((0, NEAR, FAR, 0, 0.2), (1, FAR, NEAR, 0, 0.9)), labels, num=3)
    np.testing.assert_allclose(result.ap, [1, 0, 0])
    np.testing.assert_array_equal(result.num_positives, [2, 1, 0])
    assert result.full == pytest.approx(0.5)  # class 2 has no truth and is in no mean


TRUE, STRAY, NEARLY = (NEAR, FAR, 0), (ELSEWHERE, FAR, 0), ((0, 0, 10, 9), FAR, 0)
BY_HAND: dict[str, tuple[list[tuple], list[tuple], float]] = {
    # Recalls 0, 1/3, 2/3 at precisions 0, 1/2, 2/3: seven levels (0 to 0.6) see 2/3, the others nothing.
    "three truths found late": (
        [(0, *TRUE), (1, *TRUE), (2, *TRUE)],
        [(0, FAR, NEAR, 0, 0.9), (0, *TRUE, 0.8), (1, *TRUE, 0.7)],
        7 * (2 / 3) / 11,
    ),
    "a second detection of a found pair": (
        [(0, *TRUE), (1, *TRUE)],
        [(0, *TRUE, 0.9), (0, *TRUE, 0.8), (1, *TRUE, 0.7)],
        (6 * 1 + 5 * 2 / 3) / 11,
    ),
    "no fall back to another pair": ([(0, *TRUE), (0, *NEARLY)], [(0, *TRUE, 0.9), (0, *TRUE, 0.8)], 6 / 11),
    "human elsewhere": ([(0, *TRUE)], [(0, *STRAY, 0.9)], 0),
    "object elsewhere": ([(0, *TRUE)], [(0, NEAR, ELSEWHERE, 0, 0.9)], 0),
    "tied, by row": ([(0, *TRUE)], [(0, *TRUE, 0.5), (0, *STRAY, 0.5)], 1),
    "tied, by row, the stray first": ([(0, *TRUE)], [(0, *STRAY, 0.5), (0, *TRUE, 0.5)], 1 / 2),
    "tied, by image": ([(0, *TRUE)], [(1, *STRAY, 0.5), (0, *TRUE, 0.5)], 1),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_the_official_rule_is_as_by_hand(case: str) -> None:
    truth, found, expected = BY_HAND[case]
    assert hico(triplets_of(*found), labels_of(*truth)).ap[0] == pytest.approx(expected)


def test_protocols_differ_at_one_half_and_in_empty_images() -> None:
    labels = labels_of((0, *TRUE))
    half = triplets_of((0, (0, 0, 10, 5), FAR, 0, 0.9))
    in_empty = triplets_of((1, *TRUE, 0.9), (0, *TRUE, 0.5))
    expected: dict[ProtocolName, tuple[float, float]] = {"official": (1, 1 / 2), "qpic": (1, 1), "pocket": (0, 1)}
    for protocol, figures in expected.items():
        found = tuple(hico(rows, labels, protocol=protocol).ap[0] for rows in (half, in_empty))
        assert found == pytest.approx(figures)


def test_the_last_bit_of_the_recall_levels_is_the_protocols_own() -> None:
    # Of ten truths the best seven are found, then a false positive, then no more: recall 7/10 is 0.7 exactly.
    labels = labels_of(*((i, NEAR, FAR, 0) for i in range(10)))
    found = triplets_of(*((i, NEAR, FAR, 0, 0.9) for i in range(7)))
    assert hico(found, labels).ap[0] == pytest.approx(7 / 11)  # 0.7000000000000001 is out of reach
    assert hico(found, labels, protocol="pocket").ap[0] == pytest.approx(8 / 11)


def test_known_object_counts_only_images_that_hold_the_object() -> None:
    # Interactions 0 and 1 share an object; image 1 is labelled with neither, image 2 with 1.
    image_labels = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
    allowed = known_object_images(image_labels, np.array([0, 0, 1]))
    np.testing.assert_array_equal(allowed, [[1, 1, 0], [0, 0, 1], [1, 1, 0]])
    labels = labels_of((0, NEAR, FAR, 0))
    stray, true = (1, NEAR, FAR, 0, 0.9), (0, NEAR, FAR, 0, 0.5)
    assert hico(triplets_of(stray, true), labels, num=3, allowed=allowed).ap[0] == pytest.approx(1)
    shared = (2, *stray[1:])
    assert hico(triplets_of(shared, true), labels, num=3, allowed=allowed).ap[0] == pytest.approx(1 / 2)


def test_means_leave_out_classes_without_truth() -> None:
    yes, no = np.array([True, False, False]), np.array([False, True, False])
    result = HicoResult(np.array([0.5, 0.25, 0.0]), np.array([3, 1, 0]), is_rare=no, is_no_interaction=yes)
    assert (result.full, result.rare, result.non_rare, result.without_no_interaction) == (0.375, 0.25, 0.5, 0.25)


def test_no_prediction_and_no_truth_are_valid() -> None:
    nothing, truth = triplets_of(), labels_of((0, NEAR, FAR, 0))
    assert hico(nothing, truth).full == 0
    assert hico(nothing, labels_of()).full is None
    assert hico(triplets_of((0, NEAR, FAR, 0, 0.9)), labels_of()).ap[0] == 0


@pytest.mark.parametrize("seed", range(8))
def test_vectorised_equals_the_rule_as_one_would_say_it(seed: int) -> None:
    predictions, labels = random_case(seed)
    expected = [slow_ap(predictions, labels, k) for k in range(5)]
    assert 0 < np.mean(expected) < 1
    np.testing.assert_allclose(hico(predictions, labels, num=5).ap, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_permuting_images_or_truth_changes_nothing_without_ties(seed: int) -> None:
    predictions, labels = random_case(seed)
    rng = np.random.default_rng(seed)
    score = rng.permutation(len(predictions)) / len(predictions)
    new_row, truths, rows = rng.permutation(12), rng.permutation(len(labels)), rng.permutation(len(predictions))
    untied = replace(predictions, score=score)
    moved = Triplets(**{name: column[rows] for name, column in vars(untied).items()})
    moved_labels = HoiLabels(**{name: column[truths] for name, column in vars(labels).items()})
    moved = replace(moved, image=new_row[moved.image])
    moved_labels = replace(moved_labels, image=new_row[moved_labels.image])
    np.testing.assert_allclose(hico(moved, moved_labels, num=5).ap, hico(untied, labels, num=5).ap, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_only_the_order_of_scores_matters(seed: int) -> None:
    predictions, labels = random_case(seed)
    before = hico(predictions, labels, num=5).ap
    bent = replace(predictions, score=predictions.score**3 - 7)
    np.testing.assert_array_equal(hico(bent, labels, num=5).ap, before)
    stray = triplets_of(*((0, (500, 500, 510, 510), NEAR, k, -1.0) for k in range(5)))
    more = Triplets(**{n: np.concatenate([column, getattr(stray, n)]) for n, column in vars(predictions).items()})
    assert (hico(more, labels, num=5).ap <= before).all()


def test_an_interaction_out_of_range_is_named() -> None:
    truth = labels_of((0, NEAR, FAR, 0))
    error = refused(hico, triplets_of((0, NEAR, FAR, 0, 0.5), (0, NEAR, FAR, 3, 0.5)), truth)
    assert (error.what, error.got) == ("prediction 1 names an unknown interaction", 3)
