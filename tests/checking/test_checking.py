"""Which triplets are drawn, what marks say of all, whether intervals hold the truth, and marks on disk."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.checking.estimates import Result, Results, estimate, precision, rank_share, ranked_precision, wilson
from hoi.checking.session import Session, SessionKey, draw_sample, read_candidates
from hoi.errors import UserError
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused


def drawn(rng: np.random.Generator, num_phrases: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Phrases of uneven size, scores, and verdicts that are likelier where scores are high."""
    sizes = np.maximum(3, np.exp(rng.normal(4, 1, num_phrases))).astype(int)
    phrase = np.repeat(np.arange(num_phrases), sizes)
    score = rng.beta(0.6, 1.5, len(phrase))
    chance = 1 / (1 + np.exp(-(8 * (score - 0.6) + rng.normal(0, spread, num_phrases)[phrase])))
    return phrase, score, rng.random(len(phrase)) < chance


def true_ap(right: np.ndarray, score: np.ndarray) -> float:
    """The mean of the precision at each right triplet, counted one by one."""
    found, precisions = 0, []
    for rank, row in enumerate(np.argsort(-score, kind="stable"), start=1):
        found += int(right[row])
        precisions += [found / rank] if right[row] else []
    return float(np.mean(precisions)) if precisions else 0.0


def scopes(phrase: np.ndarray, results: Results) -> Iterator[tuple[str, np.ndarray, Result]]:
    """Yield a name, the rows and the result of all triplets together, then of each phrase."""
    yield "all", np.ones(len(phrase), bool), results.together
    for k, result in enumerate(results.phrases):
        yield "a phrase", phrase == k, result


def test_interval_and_average_precision_are_worked_out_by_hand() -> None:
    # 8 of 10: (0.8 + 1.96²/20) / (1 + 1.96²/10) = 0.7166, half a width of 0.2267.
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    right = np.array([[True, False, True], [False, False, False], [True, True, True]])
    assert ranked_precision(right).tolist() == pytest.approx([(1 + 2 / 3) / 2, 0, 1])
    # Two strata of 2 and 8, one mark in the first (right), two in the second (one right): 0.2 × 1 + 0.8 × 1/2.
    stratum = np.array([0] * 2 + [1] * 8)
    marked = np.isin(np.arange(10), [0, 2, 3])
    found = precision(stratum, marked, np.isin(np.arange(10), [0, 2]))
    assert found is not None
    assert found.value == pytest.approx(0.6)
    # 1 / (0.04 × 1/2 / 1 + 0.64 × 3/4 / 2) = 3.846 marks.
    assert (found.low, found.high) == pytest.approx(wilson(0.6, 1 / 0.26))


def test_ranks_count_from_the_top_and_ties_stay_in_order() -> None:
    share = rank_share(np.array([0, 0, 1, 0, 0]), np.array([0.2, 0.9, 0.5, 0.2, -3.0]), 2)
    assert share.tolist() == [1.5 / 4, 0.5 / 4, 0.5, 2.5 / 4, 3.5 / 4]


@pytest.mark.parametrize(("num_phrases", "num_marks"), [(1, 50), (5, 50), (20, 50), (60, 50), (20, 7), (3, 5000)])
def test_as_many_are_drawn_as_wanted_and_the_top_more_densely(num_phrases: int, num_marks: int) -> None:
    phrase, score, _ = drawn(np.random.default_rng(1), num_phrases, 1.0)
    sample = draw_sample(phrase, score, num_phrases, num_marks, seed=0)
    assert len(sample.asked) == len(set(sample.asked.tolist())) == min(num_marks, len(phrase))
    sizes = np.bincount(sample.stratum, minlength=len(sample.group))
    assert (np.bincount(sample.stratum[sample.asked], minlength=len(sizes)) == sample.num_marks).all()
    assert (sample.num_marks <= sizes).all()
    if num_marks >= 2 * num_phrases:
        assert (np.bincount(phrase[sample.asked], minlength=num_phrases) >= 2).all()
    first = sample.probability[np.argsort(rank_share(phrase, score, num_phrases))]
    assert first[: len(first) // 4].mean() >= first[len(first) // 2 :].mean()
    again = draw_sample(phrase, 1000 * score - 7, num_phrases, num_marks, seed=0)
    assert (again.asked == sample.asked).all()


def test_each_triplet_is_drawn_as_often_as_its_probability_says() -> None:
    phrase, score, _ = drawn(np.random.default_rng(2), 6, 1.0)
    counts = np.zeros(len(phrase))
    for seed in range(400):
        counts[draw_sample(phrase, score, 6, 30, seed).asked] += 1
    chance = draw_sample(phrase, score, 6, 30, 0).probability
    assert chance.sum() == pytest.approx(30)
    off = (counts - 400 * chance) / np.sqrt(np.maximum(400 * chance * (1 - chance), 1))
    assert np.abs(off).max() < 4.5


def test_when_all_is_marked_the_estimates_are_the_truth() -> None:
    phrase, score, right = drawn(np.random.default_rng(3), 4, 1.0)
    stratum = draw_sample(phrase, score, 4, 50, 0).stratum
    results = estimate(phrase, score, stratum, np.ones(len(phrase), bool), right, 4)
    for _, of, result in scopes(phrase, results):
        assert result.precision is not None
        assert result.ap is not None
        for found, truth in ((result.precision, right[of].mean()), (result.ap, true_ap(right[of], score[of]))):
            assert (found.value, found.low, found.high) == pytest.approx((truth, truth, truth))
    nothing = estimate(phrase, score, stratum, np.zeros(len(phrase), bool), right, 4)
    assert (nothing.together.precision, nothing.together.ap, nothing.mean_ap) == (None, None, None)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held: dict[str, list[bool]] = defaultdict(list)
    off, widths = [], []
    for seed in range(40):
        phrase, score, right = drawn(np.random.default_rng(seed), 5, 1.0)
        sample = draw_sample(phrase, score, 5, 50, seed)
        marked = np.isin(np.arange(len(phrase)), sample.asked)
        results = estimate(phrase, score, sample.stratum, marked, right, 5)
        for name, of, result in scopes(phrase, results):
            for key, truth in (("precision", right[of].mean()), ("ap", true_ap(right[of], score[of]))):
                found = getattr(result, key)
                held[f"{key} of {name}"].append(found.low - 1e-9 <= truth <= found.high + 1e-9)
        widths.append(results.together.precision.high - results.together.precision.low)
        off.append(results.together.precision.value - right.mean())
    shares = {name: float(np.mean(values)) for name, values in held.items()}
    assert all(share >= 0.88 for share in shares.values()), shares
    assert np.mean(widths) < 0.32
    assert abs(np.mean(off)) < 3 * np.std(off) / np.sqrt(len(off))


LINE: dict[str, Any] = {
    "file_name": "a/b.jpg",
    "human_xyxy": [0, 0, 10, 20],
    "object_xyxy": [5.5, 5, 9, 9],
    "verb": "ride",
    "object": "bicycle",
    "score": 0.5,
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_predictions_are_read_by_name_or_by_row(tmp_path: Path) -> None:
    idle = {**LINE, "verb": "no_interaction"}
    named = read_candidates(write(tmp_path / "named.jsonl", LINE, idle, {**LINE, "verb": "hold"}))
    assert named.phrases == ["hold bicycle", "ride bicycle"]
    assert named.phrase.tolist() == [1, 0]
    assert named.boxes_o[0].tolist() == [5.5, 5, 9, 9]
    by_row = write(
        tmp_path / "rows.jsonl", {k: v for k, v in LINE.items() if k not in ("verb", "object")} | {"interaction": 0}
    )
    vocabulary = Vocabulary(("person", "bicycle"), ("ride",), (("ride", "bicycle"),))
    found = read_candidates(by_row, vocabulary, inclusive=True)
    assert (found.interactions, found.boxes_h[0].tolist()) == ([("ride", "bicycle")], [0, 0, 11, 21])
    for path, what in (
        (by_row, "a prediction does not name its verb and object"),
        (write(tmp_path / "idle.jsonl", idle), "there is no prediction to check"),
        (write(tmp_path / "wrong.jsonl", LINE, {**LINE, "score": "high"}), "'score' of a prediction is mistyped"),
    ):
        error = refused(read_candidates, path)
        assert error.what == what
        assert str(path) in str(error.where)
    far = write(tmp_path / "far.jsonl", {**json.loads(by_row.read_text()), "interaction": 1})
    assert refused(read_candidates, far, vocabulary).expected == "a whole number of 0..0"


def test_marks_are_on_disk_before_they_count_and_are_resumed(tmp_path: Path) -> None:
    rows = [{**LINE, "score": score, "file_name": f"{score}.jpg"} for score in np.linspace(0, 1, 30).tolist()]
    candidates = read_candidates(write(tmp_path / "predictions.jsonl", *rows))
    kept: list[Any] = []
    session = Session(candidates, SessionKey("0" * 64, 12, 0), kept.append)
    first, second = session.sample.asked[:2].tolist()
    session.mark(first, "right")
    session.mark(second, "wrong")
    session.mark(first, "skip")
    assert session.next_row == session.sample.asked[2]
    assert [mark["verdict"] for mark in kept[-1]["marks"]] == ["wrong", "skip"]
    session.undo()
    assert session.next_row == first
    session.mark(first, "right")
    [annotation] = [json.loads(line) for line in session.annotations().splitlines()]
    assert annotation == {key: value for key, value in rows[first].items() if key != "score"} | {
        "human_xyxy": [0.0, 0.0, 10.0, 20.0]
    }
    assert [json.loads(line)["verdict"] for line in session.checked().splitlines()] == ["wrong", "right"]
    assert session.table()[0]["num_marked"] == 2

    again = Session(candidates, SessionKey("0" * 64, 12, 0), kept.append)
    again.resume(json.loads(json.dumps(kept[-1])), tmp_path / "marks.json")
    assert again.marks == session.marks
    for other, expected in (
        (SessionKey("1" * 64, 12, 0), "the same predictions_sha256"),
        (SessionKey("0" * 64, 13, 0), "the same num_marks"),
    ):
        error = refused(Session(candidates, other, kept.append).resume, kept[-1], tmp_path / "marks.json")
        assert error.expected == expected
    damaged: Any
    for damaged in ({}, [], {**kept[-1], "version": 2}, {**kept[-1], "marks": [{"row": 99, "verdict": "right"}]}):
        assert refused(again.resume, damaged, tmp_path / "marks.json").what == "this is no file of marks"

    def full(_: Any) -> None:
        raise UserError("the disk is full")

    session._save = full
    assert refused(session.mark, session.sample.asked[5], "right").what == "the disk is full"
    assert session.marks == again.marks
    with pytest.raises(ValueError, match="is not in the sample"):
        again.mark(next(row for row in range(30) if row not in again.sample.asked), "right")
