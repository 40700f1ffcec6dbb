"""Box geometry against numbers worked out by hand."""

from __future__ import annotations

import numpy as np

from hoi.boxes import box_area, box_iou, clip_boxes, suppress, union_boxes

A = [0, 0, 10, 10]
B = [5, 0, 15, 10]
FAR = [20, 20, 30, 40]
EMPTY = [3, 3, 3, 9]


def boxes(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def test_an_empty_or_inverted_box_has_no_area() -> None:
    assert box_area(boxes(A, FAR, EMPTY, [9, 9, 1, 1])).tolist() == [100, 200, 0, 0]


def test_iou_by_hand_and_of_empty_boxes() -> None:
    # Overlap 5 x 10 = 50, union 100 + 100 - 50 = 150.
    expected = [[1, 1 / 3, 0], [1 / 3, 1, 0]]
    np.testing.assert_allclose(box_iou(boxes(A, B), boxes(A, B, FAR)), expected, rtol=1e-6)
    assert box_iou(boxes(EMPTY), boxes(EMPTY, A)).tolist() == [[0, 0]]
    assert box_iou(boxes(), boxes(A)).shape == (0, 1)


def test_union_holds_both_boxes_and_nothing_more() -> None:
    rows = boxes(A, B, FAR)
    assert union_boxes(rows, np.array([[0, 1], [2, 0], [1, 1]])).tolist() == [[0, 0, 15, 10], [0, 0, 30, 40], B]
    assert union_boxes(rows, np.zeros((0, 2), np.int32)).shape == (0, 4)


def test_clipping_keeps_what_lies_inside_the_image() -> None:
    clipped = clip_boxes(boxes([-5, -5, 8, 30], [50, 50, 60, 60]), (20, 10))
    assert clipped.tolist() == [[0, 0, 8, 20], [10, 20, 10, 20]]


def test_suppression_drops_the_lower_overlapping_box_of_a_class() -> None:
    rows = boxes(A, [1, 0, 11, 10], FAR, B, A)
    labels = np.array([0, 0, 0, 0, 1])
    # The second overlaps the first by 90/110; the fourth by 1/3; the last is of another class.
    assert suppress(rows, labels, 0.5).tolist() == [0, 2, 3, 4]
    assert suppress(rows, labels, 0.3).tolist() == [0, 2, 4]
    assert suppress(boxes(), np.zeros(0, np.int64), 0.5).tolist() == []
    # A suppressed box suppresses no other.
    chain = boxes([0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10])
    assert suppress(chain, np.zeros(3, np.int64), 0.4).tolist() == [0, 2]


def plainly_suppressed(rows: np.ndarray, labels: np.ndarray, max_iou: float) -> list[int]:
    kept: list[int] = []
    for row, label in enumerate(labels):
        same = [other for other in kept if labels[other] == label]
        if not same or (box_iou(rows[same], rows[row : row + 1]) <= np.float32(max_iou)).all():
            kept.append(row)
    return kept


def test_suppression_is_exact_where_overlaps_equal_the_limit() -> None:
    rng = np.random.default_rng(0)
    for max_iou in (0.0, 0.2, 0.3, 1 / 3, 0.5, 0.6, 1.0):
        corners = rng.integers(0, 12, (300, 2))
        rows = np.concatenate([corners, corners + rng.integers(0, 11, (300, 2))], 1).astype(np.float32)
        labels = rng.integers(0, 3, 300)
        assert suppress(rows, labels, max_iou).tolist() == plainly_suppressed(rows, labels, max_iou)
