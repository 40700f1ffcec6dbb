"""Shared layers and losses, by hand and as laws."""

from __future__ import annotations

import math

import pytest
import torch

from hoi.students.layers import (
    LOG_FLOOR,
    RaggedIndex,
    ScoreForm,
    aggregate,
    focal_loss,
    mean_over_images,
    noisy_or,
    soft_focal,
    spatial_code,
)

SOFTMAX, SIGMOID = ScoreForm("softmax", 2.0), ScoreForm("sigmoid", 2.0)


def test_scores_are_read_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 2 * math.log(3)]])
    assert torch.allclose(SOFTMAX.scores(logits), torch.tensor([[0.25, 0.75]]))
    assert torch.allclose(SOFTMAX.scores(50 * torch.randn(20, 9)).sum(-1), torch.ones(20))
    assert torch.allclose(SIGMOID.scores(logits), torch.tensor([[0.5, 0.75]]))


def test_divergence_by_hand() -> None:
    targets = torch.tensor([[0.5, 0.5]])
    logits = torch.tensor([[0.0, 2 * math.log(3)]])
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert SOFTMAX.divergence(targets, logits).item() == pytest.approx(by_hand, abs=1e-6)
    # The first of the two sigmoids agrees with its target, the second adds KL of (1/2, 1/2) from (3/4, 1/4).
    assert SIGMOID.divergence(targets, logits).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("form", [SOFTMAX, SIGMOID])
def test_divergence_is_zero_for_equal_scores_only(form: ScoreForm) -> None:
    logits = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)) * 8
    assert form.divergence(form.scores(logits), logits).abs().max() < 1e-5
    assert (form.divergence(form.scores(logits.flip(0)), logits) > 0).all()


def test_divergence_from_a_certain_target_is_finite() -> None:
    certain, logits = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    assert SOFTMAX.divergence(certain, logits).item() == pytest.approx(math.log(2))
    assert SIGMOID.divergence(certain, logits).item() == pytest.approx(2 * math.log(2))


PAIRS = torch.tensor([[1.0, 5.0], [3.0, -1.0], [2.0, 2.0]])
IMAGE = torch.tensor([0, 0, 2])


def test_aggregation_by_hand_with_an_image_that_has_no_pair() -> None:
    highest, has_pairs = aggregate(PAIRS, IMAGE, 3, "max")
    assert has_pairs.tolist() == [True, False, True]
    assert highest.tolist() == [[3, 5], [0, 0], [2, 2]]
    summed, _ = aggregate(PAIRS, IMAGE, 3, "logsumexp")
    assert summed[0, 0].item() == pytest.approx(math.log(math.e + math.e**3))
    mean, _ = aggregate(PAIRS, IMAGE, 3, "softmax_mean")
    weight = math.exp(2) / (1 + math.exp(2))
    assert mean[0, 0].item() == pytest.approx((1 - weight) * 1 + weight * 3)


@pytest.mark.parametrize("how", ["max", "logsumexp", "softmax_mean"])
def test_one_pair_passes_unchanged_and_none_gives_zeros(how: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4, generator=generator) * 30
    alone, _ = aggregate(logits, torch.arange(6), 6, how)
    assert torch.allclose(alone, logits, atol=1e-5)
    image, turned = torch.tensor([0, 1, 0, 1, 1, 0]), torch.randperm(6, generator=generator)
    one, other = (aggregate(logits[order], image[order], 2, how)[0] for order in (torch.arange(6), turned))
    assert torch.allclose(one, other, atol=1e-5)
    aggregated, has_pairs = aggregate(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 2, how)
    assert not has_pairs.any()
    assert aggregated.tolist() == [[0.0] * 4] * 2
    some = PAIRS.clone().requires_grad_()
    aggregate(some, IMAGE, 3, how)[0].sum().backward()
    assert torch.isfinite(some.grad).all()


def test_noisy_or_is_the_chance_that_a_pair_does_it() -> None:
    chance, has_pairs = noisy_or(torch.tensor([[0.5, 0.0], [0.2, 1.0], [0.3, 0.4]]), IMAGE, 3)
    torch.testing.assert_close(chance, torch.tensor([[0.6, 1.0], [0.0, 0.0], [0.3, 0.4]]))
    assert has_pairs.tolist() == [True, False, True]


@pytest.mark.parametrize("form", [SOFTMAX, SIGMOID])
def test_a_noisy_or_is_read_in_the_form_of_its_pairs(form: ScoreForm) -> None:
    logits = (8 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))).requires_grad_()
    alone, _ = form.aggregate(logits, torch.arange(6), 6, "noisy_or")
    torch.testing.assert_close(form.scores(alone), form.scores(logits), atol=1e-5, rtol=1e-3)
    both, _ = form.aggregate(logits, torch.tensor([0, 0, 1, 1, 2, 2]), 4, "noisy_or")
    by_hand = 1 - (1 - form.scores(logits[:2])).prod(0)
    by_hand = by_hand / by_hand.sum() if form.kind == "softmax" else by_hand
    torch.testing.assert_close(form.scores(both)[0], by_hand, atol=1e-5, rtol=1e-3)
    form.divergence(form.scores(logits[:4].detach()), both).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_mean_over_images_counts_empty_images() -> None:
    assert mean_over_images(torch.tensor([1.0, 3.0, 8.0]), IMAGE, 4).item() == pytest.approx((2 + 8) / 4)


def test_focal_loss_by_hand() -> None:
    logits, counted = torch.tensor([[0.0, math.log(3), 9.0]]), torch.tensor([[True, True, False]])
    positive = torch.tensor([[True, False, False]])
    by_hand = 0.5**2 * math.log(2) + 0.75**2 * math.log(4)
    assert focal_loss(logits, positive, counted, 2.0).item() == pytest.approx(by_hand)
    assert focal_loss(logits, positive, counted, 0.0).item() == pytest.approx(math.log(2) + math.log(4))
    assert focal_loss(logits[:0], positive[:0], counted[:0], 2.0).item() == 0


def test_spatial_code_by_hand() -> None:
    human, other = torch.tensor([[0.0, 0.0, 40.0, 80.0]]), torch.tensor([[20.0, 60.0, 60.0, 100.0]])
    code = spatial_code(human, other, torch.tensor([[100.0, 200.0]]))[0]
    overlap, union = 20 * 20, 40 * 80 + 40 * 40 - 20 * 20
    by_hand = [
        *(0.1, 0.4, 0.2, 0.8),
        *(0.2, 0.8, 0.2, 0.4),
        *(3200 / 20000, 1600 / 20000, 0.5),
        *(0.5, 1.0),
        overlap / union,
        *(0.5, 0.0, 0.5, 0.0),
    ]
    assert code[:18].tolist() == pytest.approx(by_hand, abs=1e-6)
    assert code[18:].tolist() == pytest.approx([math.log(term + LOG_FLOOR) for term in by_hand], abs=1e-4)
    # An object to the upper left fills the other offsets.
    human, other = torch.tensor([[50.0, 50.0, 60.0, 70.0]]), torch.tensor([[30.0, 30.0, 40.0, 50.0]])
    code = spatial_code(human, other, torch.tensor([[100.0, 100.0]]))[0]
    assert code[13:18].tolist() == pytest.approx([0.0, 0.0, 2.0, 0.0, 1.0])


def test_flat_boxes_and_no_pairs_stay_finite() -> None:
    line = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert torch.isfinite(spatial_code(line, line, torch.tensor([[10.0, 10.0]]))).all()
    assert spatial_code(line[:0], line[:0], torch.zeros(0, 2)).shape == (0, 36)


def test_flat_rows_come_back_from_a_table() -> None:
    places = RaggedIndex.of(torch.tensor([0, 0, 2]), 4)
    table = places.pad(torch.tensor([[1.0], [2.0], [3.0]]))
    assert table[..., 0].tolist() == [[1, 2], [0, 0], [3, 0], [0, 0]]
    assert places.flat(table)[:, 0].tolist() == [1, 2, 3]
    assert places.mask.tolist() == [[True, True], [False, False], [True, False], [False, False]]
    assert RaggedIndex.of(torch.zeros(0, dtype=torch.int64), 2).pad(torch.zeros(0, 3)).shape == (2, 1, 3)


def test_on_labels_the_soft_focal_loss_is_half_the_focal_loss() -> None:
    logits, labels, counted = torch.randn(5, 4), torch.rand(5, 4) > 0.6, torch.rand(5, 4) > 0.2
    found = focal_loss(logits, labels, counted, 2.0, alpha=0.5)
    assert torch.allclose(found, 0.5 * focal_loss(logits, labels, counted, 2.0))
    exact = torch.tensor([[0.3]])
    assert focal_loss(exact.logit(), exact, torch.tensor([[True]]), 2.0, alpha=0.5).item() == pytest.approx(0, abs=1e-6)
    assert focal_loss(logits, labels, counted & ~labels, 2.0, alpha=1.0) == 0


def test_soft_focal_by_hand() -> None:
    logits, targets = torch.tensor([[0.0, 2.0, 9.0]]), torch.tensor([[1.0, 0.3, 0.0]])
    counted = torch.tensor([[True, True, False]])
    p = torch.tensor(2.0).sigmoid()
    second = (p - 0.3) ** 2 * -(0.3 * p.log() + 0.7 * (1 - p).log())
    torch.testing.assert_close(
        soft_focal(logits, targets, counted, 2.0), torch.tensor([[0.25 * math.log(2), second, 0.0]])
    )
