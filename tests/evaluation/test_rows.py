"""Rows, means over seeds, comparisons and the printed table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hoi.evaluation.bootstrap import ResampledMap
from hoi.evaluation.rows import (
    Evaluator,
    ResultRow,
    annotated_pairs,
    compare,
    format_table,
    format_zero_shot,
    from_plain,
    headroom,
    to_plain,
    zero_shot_of,
)
from hoi.vocabulary import Vocabulary
from tests.fakes.splits import labels_of, triplets_of

VERBS = ("ride", "no_interaction")
VOCABULARY = Vocabulary(("person", "bicycle"), VERBS, tuple((verb, "bicycle") for verb in VERBS))
BOX, OTHER = [0, 0, 9, 9], [20, 20, 29, 29]
# Image 0: one pair with both interactions. Image 1: two pairs. Image 2: none.
LABELS = labels_of((0, BOX, OTHER, 0), (0, BOX, OTHER, 1), (1, BOX, OTHER, 0), (1, OTHER, OTHER, 0))


def graded(
    score: list[float], seed: int | None = None, name: str = "method", intervals: tuple[str, ...] = ()
) -> ResultRow:
    """Rows: the truth of image 0's `ride`, its `no_interaction`, image 1's first pair, and a stray in image 2."""
    places = zip([0, 0, 1, 2], [0, 1, 0, 0], score, strict=True)
    rows = triplets_of(*((image, BOX, OTHER, k, s) for image, k, s in places))
    evaluator = Evaluator(LABELS, 3, VOCABULARY, np.array([False, True]), 200, intervals=intervals)
    return evaluator.evaluate(name, seed, rows, {"knob": 1})


def percent(row: ResultRow, mean: str) -> float:
    value = row.means[mean]
    assert value is not None
    return value


def test_annotated_pairs_are_counted_once() -> None:
    np.testing.assert_array_equal(annotated_pairs(LABELS, 3), [1, 2, 0])


def test_a_row_holds_every_mean_in_percent_and_what_made_it() -> None:
    row = graded([0.9, 0.9, 0.8, 0.1]).to_dict(num_images=3)
    ride = round(100 * 7 / 11, 4)  # two of three found, without a false positive before: levels 0 to 0.6
    assert row == {
        "name": "method",
        "seed": None,
        "full": pytest.approx((ride + 100) / 2, abs=1e-3),
        "rare": 100.0,
        "non_rare": pytest.approx(ride, abs=1e-3),
        "without_no_interaction": pytest.approx(ride, abs=1e-3),
        "one_pair": 100.0,
        "several_pairs": pytest.approx(100 * 6 / 11, abs=1e-3),  # one of two found: levels 0 to 0.5
        "num_images": 3,
        "num_positives": 4,
        "knobs": {"knob": 1},
    }


def test_the_difference_says_how_much_better_a_method_is() -> None:
    good, bad = graded([0.9, 0.9, 0.8, 0.1], 0, "good"), graded([0.5, 0.9, 0.4, 0.9], 0, "bad")
    found = compare([good, graded([0.9, 0.9, 0.8, 0.1], 1, "good"), bad], "good", "bad")
    assert found.num_seeds == (2, 1)
    assert found.difference.observed == pytest.approx((percent(good, "full") - percent(bad, "full")) / 100)
    assert found.difference.low >= 0
    assert found.difference.high > found.difference.low
    assert found.to_dict()["num_resamples"] == 200
    plus = f"{percent(good, 'full') - percent(bad, 'full'):+.2f}"
    assert str(found).startswith(f"good − bad: {plus} mAP, 95 % interval +0.00 to +")


def test_other_means_are_compared_and_come_back_from_disk() -> None:
    good = graded([0.9, 0.9, 0.8, 0.1], 0, "good", ("rare", "several_pairs"))
    bad = graded([0.5, 0.9, 0.0, 0.9], 0, "bad", ("rare", "several_pairs"))
    rows = [from_plain(json.loads(json.dumps(to_plain(row)))) for row in (good, bad)]
    for measure in ("full", "rare", "several_pairs"):
        found = compare(rows, "good", "bad", measure)
        assert found.difference.observed == pytest.approx((percent(good, measure) - percent(bad, measure)) / 100)
        assert found.to_dict() == compare([good, bad], "good", "bad", measure).to_dict()
    assert str(found).startswith("good − bad, 2+ pairs: +")
    with pytest.raises(KeyError):
        compare(rows, "good", "bad", "one_pair")


def test_the_way_between_two_methods_is_shared_out_by_hand() -> None:
    def at(name: str, observed: float, *resampled: float) -> ResultRow:
        return replace(graded([0.9] * 4, None, name), resampled=ResampledMap(observed, np.array(resampled)))

    rows = [at("start", 0.2, 0.2, 0.4, 0.5), at("goal", 0.7, 0.6, 0.8, 0.5), at("of", 0.4, 0.3, 0.6, 0.9)]
    # (0.4 − 0.2) / (0.7 − 0.2); resampled 1/4 and 1/2, and one in which start and goal are the same.
    way = headroom(rows, "of", "start", "goal")
    assert way.share == pytest.approx(0.4)
    assert (way.low, way.high) == (pytest.approx(0.25625), pytest.approx(0.49375))
    assert str(way) == "of: 40.0 % of the way from start to goal, 95 % interval 25.6 to 49.4"


def test_the_table_aligns_and_gives_mean_and_spread_over_seeds() -> None:
    one, two = graded([0.9, 0.9, 0.8, 0.1], 0, "student"), graded([0.9, 0.9, 0.0, 0.1], 1, "student")
    prior = graded([0.5] * 4, None, "detector_prior")
    text = format_table([prior, one, two])
    heading, first, second = text.splitlines()
    assert heading.split() == ["seeds", "full", "rare", "non-rare", "1", "pair", "2+", "pairs"]
    assert first.split()[:3] == ["detector_prior", "–", f"{percent(prior, 'full'):.2f}"]
    full = [percent(one, "full"), percent(two, "full")]
    assert second.split()[:5] == ["student", "2", f"{np.mean(full):.2f}", "±", f"{np.std(full, ddof=1):.2f}"]
    points = [next(i for i, c in enumerate(line) if c == ".") for line in (first, second)]
    assert points[0] == points[1]


def test_a_mean_over_no_interaction_is_a_dash() -> None:
    evaluator = Evaluator(LABELS, 3, VOCABULARY, np.array([False, False]), 10)
    row = evaluator.evaluate("nothing", None, triplets_of(), {})
    assert row.to_dict(3)["rare"] is None
    assert row.to_dict(3)["full"] == 0
    assert format_table([row]).splitlines()[1].split() == ["nothing", "–", "0.00", "–", "0.00", "0.00", "0.00"]


def test_zero_shot_means_are_printed_over_seeds() -> None:
    rows = [graded([0.9, 0.9, 0.8, 0.1], seed, "method") for seed in (0, 1)]
    splits = {"a": np.array([0]), "b": np.array([1])}
    ride, nothing = f"{percent(rows[0], 'non_rare'):.2f}", f"{percent(rows[0], 'rare'):.2f}"
    header, line, _ = format_zero_shot(rows, splits).splitlines()
    assert header.split() == ["zero-shot", "split", "unseen", "seen", "full"]
    assert line.split() == ["method", "a", ride, nothing, f"{percent(rows[0], 'full'):.2f}"]
    assert zero_shot_of(rows[0], splits)["a"]["unseen"] == round(percent(rows[0], "non_rare"), 4)
    by_labels = [replace(row, settings={"supervision": "labels"}) for row in rows]
    _, marked, _, note = format_zero_shot(by_labels, splits).splitlines()
    assert marked.split()[:3] == ["method", "*", "a"]
    assert note.startswith("* trained with labels of unseen")
    trained = [replace(row, settings={"supervision": "labels", "zero_shot": "a"}) for row in rows]
    assert format_zero_shot(trained, splits).splitlines()[1:] == [line]
