"""The HICO-DET rule: by hand, by law, against a slow second implementation, against the official evaluator's output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from hoi.errors import UserError
from hoi.evaluation.hico import HicoResult, ProtocolName, evaluate, known_object_images, zero_shot_means
from hoi.records import HoiLabels, Triplets

NEAR, FAR, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60), (100, 100, 120, 130)


def labels_of(*rows: tuple) -> HoiLabels:
    """(image, box_h, box_o, interaction) rows."""
    return HoiLabels(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.float64).reshape(-1, 4),
        np.array([r[2] for r in rows], np.float64).reshape(-1, 4),
        np.array([r[3] for r in rows], np.int64),
    )


def triplets_of(*rows: tuple) -> Triplets:
    """(image, box_h, box_o, interaction, score) rows."""
    truth = labels_of(*rows)
    score = np.array([r[4] for r in rows], np.float64)
    return Triplets(truth.image, truth.boxes_h, truth.boxes_o, truth.interaction, score)


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


def test_ap_of_three_truths_found_late_is_as_by_hand() -> None:
    labels = labels_of((0, NEAR, FAR, 0), (1, NEAR, FAR, 0), (2, NEAR, FAR, 0))
    found = triplets_of((0, FAR, NEAR, 0, 0.9), (0, NEAR, FAR, 0, 0.8), (1, NEAR, FAR, 0, 0.7))
    # Recalls 0, 1/3, 2/3 at precisions 0, 1/2, 2/3: seven levels (0 to 0.6) see 2/3, the others nothing.
    assert hico(found, labels).ap[0] == pytest.approx(7 * (2 / 3) / 11)


def test_a_second_detection_of_a_found_pair_is_a_false_positive() -> None:
    labels = labels_of((0, NEAR, FAR, 0), (1, NEAR, FAR, 0))
    found = triplets_of((0, NEAR, FAR, 0, 0.9), (0, NEAR, FAR, 0, 0.8), (1, NEAR, FAR, 0, 0.7))
    assert hico(found, labels).ap[0] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_a_detection_never_falls_back_to_another_pair() -> None:
    nearly = (0, 0, 10, 9)
    labels = labels_of((0, NEAR, FAR, 0), (0, nearly, FAR, 0))
    found = triplets_of((0, NEAR, FAR, 0, 0.9), (0, NEAR, FAR, 0, 0.8))
    assert hico(found, labels).ap[0] == pytest.approx(6 / 11)


def test_an_iou_of_exactly_one_half_counts_but_for_pocket() -> None:
    labels = labels_of((0, NEAR, FAR, 0))
    half = triplets_of((0, (0, 0, 10, 5), FAR, 0, 0.9))
    assert hico(half, labels).ap[0] == pytest.approx(1)
    assert hico(half, labels, protocol="qpic").ap[0] == pytest.approx(1)
    assert hico(half, labels, protocol="pocket").ap[0] == 0


def test_both_boxes_must_overlap() -> None:
    labels = labels_of((0, NEAR, FAR, 0))
    assert hico(triplets_of((0, NEAR, ELSEWHERE, 0, 0.9)), labels).ap[0] == 0
    assert hico(triplets_of((0, ELSEWHERE, FAR, 0, 0.9)), labels).ap[0] == 0


def test_ties_go_by_image_and_then_by_row() -> None:
    labels = labels_of((0, NEAR, FAR, 0))
    true, false = (0, NEAR, FAR, 0, 0.5), (0, ELSEWHERE, FAR, 0, 0.5)
    assert hico(triplets_of(true, false), labels).ap[0] == pytest.approx(1)
    assert hico(triplets_of(false, true), labels).ap[0] == pytest.approx(1 / 2)
    assert hico(triplets_of((1, *false[1:]), true), labels).ap[0] == pytest.approx(1)


def test_images_without_truth_count_but_for_qpic_and_pocket() -> None:
    labels = labels_of((0, NEAR, FAR, 0))
    found = triplets_of((1, NEAR, FAR, 0, 0.9), (0, NEAR, FAR, 0, 0.5))
    assert hico(found, labels).ap[0] == pytest.approx(1 / 2)
    assert hico(found, labels, protocol="qpic").ap[0] == pytest.approx(1)
    assert hico(found, labels, protocol="pocket").ap[0] == pytest.approx(1)


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
    means = zero_shot_means(result, {"last": np.array([2])})["last"]
    assert (means["unseen"], means["seen"]) == (None, 0.375)


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
    untied = Triplets(predictions.image, predictions.boxes_h, predictions.boxes_o, predictions.interaction, score)
    moved = Triplets(
        new_row[untied.image[rows]], *(getattr(untied, f)[rows] for f in ("boxes_h", "boxes_o", "interaction", "score"))
    )
    moved_labels = HoiLabels(
        new_row[labels.image[truths]], *(getattr(labels, f)[truths] for f in ("boxes_h", "boxes_o", "interaction"))
    )
    np.testing.assert_allclose(hico(moved, moved_labels, num=5).ap, hico(untied, labels, num=5).ap, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_only_the_order_of_scores_matters(seed: int) -> None:
    predictions, labels = random_case(seed)
    before = hico(predictions, labels, num=5).ap
    columns = (predictions.image, predictions.boxes_h, predictions.boxes_o, predictions.interaction)
    np.testing.assert_array_equal(hico(Triplets(*columns, predictions.score**3 - 7), labels, num=5).ap, before)
    stray = triplets_of(*((0, (500, 500, 510, 510), NEAR, k, -1.0) for k in range(5)))
    names = ("image", "boxes_h", "boxes_o", "interaction", "score")
    more = Triplets(*(np.concatenate([getattr(predictions, n), getattr(stray, n)]) for n in names))
    assert (hico(more, labels, num=5).ap <= before).all()


def test_an_interaction_out_of_range_is_named() -> None:
    truth = labels_of((0, NEAR, FAR, 0))
    with pytest.raises(UserError) as caught:
        hico(triplets_of((0, NEAR, FAR, 0, 0.5), (0, NEAR, FAR, 3, 0.5)), truth)
    assert (caught.value.what, caught.value.got) == ("prediction 1 names an unknown interaction", 3)


CHECK_DATA = Path(os.environ.get("HOI_CHECK_DATA", "HOI_CHECK_DATA is not set"))


@pytest.mark.skipif(not (CHECK_DATA / "reference").is_dir(), reason="needs HOI_CHECK_DATA: the reference predictions")
@pytest.mark.parametrize("name", ["official_default", "official_known_object", "qpic_default", "pocket_11P_default"])
def test_real_annotations_give_the_reference_evaluators_figures(name: str) -> None:
    expected = json.loads((CHECK_DATA / "reference/hicodet_1k_expected.json").read_text())[name]
    truth = json.loads((CHECK_DATA / "annotations/hicodet_instances_test2015.json").read_text())
    npz = np.load(CHECK_DATA / "reference/hicodet_1k_predictions.npz")
    to_edges = np.array([1, 1, 0, 0])
    images = [truth["annotation"][i] for i in npz["images"]]
    labels = labels_of(
        *(
            (row, np.array(h) - to_edges, np.array(o) - to_edges, k)
            for row, image in enumerate(images)
            for h, o, k in zip(image["boxes_h"], image["boxes_o"], image["hoi"], strict=True)
        )
    )
    predictions = Triplets(
        npz["img"], npz["bh"] - to_edges, npz["bo"] - to_edges, npz["hoi"].astype(np.int64), npz["score"]
    )
    rare = np.isin(np.arange(600), truth["rare"])
    allowed = None
    if name.endswith("known_object"):
        from scipy.io import loadmat

        image_labels = loadmat(CHECK_DATA / "annotations/hico_anno.mat")["anno_test"].T[npz["images"]] == 1
        allowed = known_object_images(image_labels, np.array(truth["correspondence"])[:, 1])
    protocol = cast(ProtocolName, name.split("_")[0])
    result = evaluate(predictions, labels, 600, rare, np.zeros(600, bool), protocol=protocol, allowed=allowed)
    for mean in ("full", "rare", "non_rare"):
        assert getattr(result, mean) == pytest.approx(expected[mean], abs=1e-9)
    if "ap" in expected:
        np.testing.assert_allclose(result.ap, expected["ap"], atol=1e-9)
    assert (result.num_positives > 0).sum() == 425
