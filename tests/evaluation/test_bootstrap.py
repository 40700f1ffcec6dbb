"""The paired bootstrap: equal to really copying images, paired, and as wide as it should be."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.evaluation.bootstrap import ResampledMap, Resamples, paired_difference, resample_map
from hoi.evaluation.hico import evaluate, match, score_matches
from hoi.records import HoiLabels, Triplets
from tests.fakes.splits import labels_of, triplets_of

NUM_IMAGES, NUM_INTERACTIONS = 12, 4
NONE = np.zeros(NUM_INTERACTIONS, bool)


@pytest.fixture(scope="module")
def case() -> tuple[Triplets, HoiLabels]:
    """One or two truths an image, predictions around them and astray, no two scores alike."""
    rng = np.random.default_rng(3)
    image = np.repeat(np.arange(NUM_IMAGES), 2)[:-3]
    boxes = np.stack([np.array([60 * (r % 2), 0, 60 * (r % 2) + 20, 20]) for r in range(len(image))]).astype(np.float32)
    interaction = rng.integers(NUM_INTERACTIONS, size=len(image))
    drawn = rng.integers(len(image), size=300)
    shifted = boxes[drawn] + rng.integers(-9, 10, (300, 1))
    stray = np.where(rng.random(300) < 0.3, rng.integers(NUM_IMAGES, size=300), image[drawn])
    score = rng.permutation(300) / 300
    found = Triplets(stray, shifted, boxes[drawn], interaction[drawn], score)
    return found, HoiLabels(image, boxes, boxes, interaction)


def copied(table: Triplets | HoiLabels, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The table with image i written weights[i] times under new rows."""
    first = np.cumsum(weights) - weights
    rows = np.repeat(np.arange(len(table)), weights[table.image])
    nth = np.concatenate([np.arange(weights[i]) for i in table.image])
    columns = {name: value[rows] for name, value in vars(table).items()}
    return {**columns, "image": first[table.image[rows]] + nth}


@pytest.mark.parametrize("is_part", [False, True])
def test_a_resample_equals_evaluating_really_copied_images(case: tuple[Triplets, HoiLabels], is_part: bool) -> None:
    predictions, labels = case
    resamples = Resamples.draw(25, NUM_IMAGES, seed=0)
    assert (resamples.weights.sum(1) == NUM_IMAGES).all()
    images, interactions = np.ones(NUM_IMAGES, bool), np.ones(NUM_INTERACTIONS, bool)
    if is_part:
        images, interactions = np.arange(NUM_IMAGES) % 3 > 0, np.arange(NUM_INTERACTIONS) % 2 > 0
    matches = match(predictions, labels, NUM_INTERACTIONS, protocol="official")
    part = (images, interactions) if is_part else ()
    found = resample_map(matches, predictions.score, resamples, *part)
    # The mean over the chosen interactions is that of the rare ones, if these are called rare.
    observed = score_matches(matches, predictions.score, interactions, NONE, images).rare
    assert found.observed == pytest.approx(observed, abs=1e-12)
    assert 0.1 < found.observed < 0.9
    for weights, value in zip(resamples.weights * images, found.resampled, strict=True):
        tables = Triplets(**copied(predictions, weights)), HoiLabels(**copied(labels, weights))
        expected = evaluate(*tables, NUM_INTERACTIONS, interactions, NONE, protocol="official")
        assert value == pytest.approx(expected.rare, abs=1e-12)
    if is_part:
        assert found.observed != resample_map(matches, predictions.score, resamples, images).observed


def test_an_interaction_that_loses_all_truth_leaves_the_mean() -> None:
    box = (0, 0, 9, 9)
    labels, found = labels_of((0, box, box, 0), (1, box, box, 1)), triplets_of((0, box, box, 0, 0.5))
    matches = match(found, labels, NUM_INTERACTIONS, protocol="official")
    maps = resample_map(matches, found.score, Resamples(np.array([[1, 1], [2, 0], [0, 2]], np.int32)))
    np.testing.assert_allclose(maps.resampled, [0.5, 1, 0], atol=1e-12)


def test_memory_chunks_change_nothing(case: tuple[Triplets, HoiLabels], monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, labels = case
    matches = match(predictions, labels, NUM_INTERACTIONS, protocol="official")
    resamples = Resamples.draw(25, NUM_IMAGES, seed=1)
    at_once = resample_map(matches, predictions.score, resamples).resampled
    monkeypatch.setattr("hoi.evaluation.bootstrap._MAX_CELLS", 1000)
    np.testing.assert_array_equal(resample_map(matches, predictions.score, resamples).resampled, at_once)


def test_pairing_cancels_what_both_methods_share() -> None:
    shared = np.random.default_rng(0).normal(0.5, 0.1, 4000)
    small = np.random.default_rng(1).normal(0, 0.01, 4000)
    found = paired_difference([ResampledMap(0.52, shared + small + 0.02)], [ResampledMap(0.5, shared)])
    assert found.observed == pytest.approx(0.02)
    assert found.sd == pytest.approx(0.01, rel=0.05)
    assert found.low == pytest.approx(0.02 - 0.0196, abs=0.001)
    assert found.high == pytest.approx(0.02 + 0.0196, abs=0.001)
    assert found.num_resamples == 4000


def test_seeds_are_averaged_inside_a_resample() -> None:
    up, down = ResampledMap(0.7, np.array([0.8, 0.6])), ResampledMap(0.5, np.array([0.4, 0.6]))
    found = paired_difference([up, down], [ResampledMap(0.5, np.array([0.5, 0.5]))])
    assert found.observed == pytest.approx(0.1)
    assert (found.mean, found.sd) == (pytest.approx(0.1), pytest.approx(0))
