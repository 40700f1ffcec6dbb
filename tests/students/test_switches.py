"""The switches of the ablation table, each by hand or by a law; views, gated targets and the spatial branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hoi.matching import label_targets
from hoi.scoring import competition_gate
from hoi.students.base import Student
from hoi.students.multilevel.targets import from_pairs, related, with_none
from tests.fakes.splits import ADMITTED, REAL, VOCABULARY, Split, make_split, overfitted
from tests.fakes.splits import fresh_multilevel as fresh

EVERYTHING = {
    "targets": {"human_object": "both", "scope": "object"},
    "aggregation": "noisy_or",
    "fusion": "early",
    "score": {"weights": {"relatedness": 1.0, "spatial": 0.5}},
    "gate": {"exponent": 1.0, "kind": "best"},
}
BEST: dict[str, Any] = {
    "targets": {"image": "pairs", "gate_exponent": 0.5},
    "aggregation": "logsumexp",
    "union_views": "all",
    "score": {"weights": {"spatial": 0.5}},
    "gate": {"exponent": 1.0},
}


def rivals() -> Split:
    """Ten pairs, some of which share an object."""
    split = make_split((3, 1, 0, 4, 2), margins=3)
    return split.with_pairs(rows_o=torch.tensor([20, 20, 21, 22, 23, 24, 24, 24, 25, 26]))


def reached(student: Student, split: Split, loss: str) -> set[str]:
    """The parts of the student to which a loss gives a gradient."""
    student.losses(split.whole, None).losses[loss].backward()
    return {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}


def divergence(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return F.kl_div((logits / 2).log_softmax(-1), targets, reduction="none").sum(-1)


def test_a_human_object_branch_can_learn_union_scores() -> None:
    split = make_split((2, 1, 3))
    image, union, both = (fresh(split, targets={"human_object": of}) for of in ("image", "union", "both"))
    t_u = (split.bank.logit_scale * split.whole.union_similarity[:, 0].float() / 2).softmax(-1)
    per_pair = divergence(t_u, union(split.whole).human_object)
    by_hand = torch.stack([part.mean() for part in per_pair.split((2, 1, 3))]).mean()
    found = {of: s.losses(split.whole, None).losses for of, s in (("i", image), ("u", union), ("b", both))}
    assert found["u"]["human_object_union"].item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert found["b"] == {**found["i"], **found["u"]}
    assert "human_object" not in found["u"]


def test_early_fusion_feeds_the_human_object_branch() -> None:
    split = make_split((2, 1, 3))
    for fusion in ("late", "early"):
        student = fresh(split, fusion=fusion)
        other = replace(split.whole, union_feature=split.whole.union_feature.flip(0))
        one, two = student.branch_scores(split.whole), student.branch_scores(other)
        assert torch.allclose(one["human_object"], two["human_object"], atol=1e-6) == (fusion == "late")
        assert ("union" in one) == (fusion == "late")
    assert torch.equal(one["student"], one["human_object"])
    assert set(student.losses(split.whole, None).losses) == {"global", "human_object"}


def test_scores_are_fused_by_product_or_sum_with_weights() -> None:
    split = make_split()
    parts = fresh(split, score={"weights": {"spatial": 0.5}}).branch_scores(split.whole)
    torch.testing.assert_close(parts["union"].sum(-1), torch.ones(10))
    assert torch.equal(parts["global"][0], parts["global"][1])
    torch.testing.assert_close(parts["student"], parts["union"] * parts["human_object"] * parts["spatial"].sqrt())
    weights = {"union": 2.0, "human_object": 1.0, "global": 1.0, "spatial": 0.5}
    by_hand = {
        "product": parts["union"] ** 2 * parts["human_object"] * parts["global"] * parts["spatial"] ** 0.5,
        "sum": (2 * parts["union"] + parts["human_object"] + parts["global"] + 0.5 * parts["spatial"]) / 4.5,
    }
    for fusion, expected in by_hand.items():
        student = fresh(split, score={"weights": weights, "fusion": fusion})
        torch.testing.assert_close(student.branch_scores(split.whole)["student"], expected)
    # The spatial branch changes no other one, and is not there unless it counts.
    without = fresh(split).branch_scores(split.whole)
    assert set(parts) - set(without) == {"spatial"}
    assert all(torch.equal(without[name], parts[name]) for name in ("global", "union", "human_object"))


def test_scores_within_the_object_sum_to_one() -> None:
    split = make_split((2, 1, 3)).with_pairs(labels_o=torch.tensor([1, 2, 2, 1, 1, 1]))
    student, batch = fresh(split, targets={"scope": "object"}), split.whole
    scores = student.branch_scores(batch)
    for name in ("union", "human_object"):
        assert torch.allclose((scores[name] * ADMITTED[batch.labels_o]).sum(1), torch.ones(6)), name
    # The first image's pairs have both objects, the second and third one each.
    assert (scores["global"] > 0).sum(1).tolist() == [6, 6, 3, 3, 3, 3]
    plain, scale = fresh(split)(batch), split.bank.logit_scale
    within = torch.tensor([[0, 1, 2], [3, 4, 5], [3, 4, 5], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    t_u = (scale * batch.union_similarity[:, 0].float() / 2).gather(1, within).softmax(-1)
    per_pair = divergence(t_u, plain.union.gather(1, within))
    by_hand = torch.stack([part.mean() for part in per_pair.split((2, 1, 3))]).mean()
    assert student.losses(batch, None).losses["union"].item() == pytest.approx(by_hand.item(), rel=1e-3)


def test_the_best_pairs_of_confident_interactions_are_related() -> None:
    split = make_split((3, 2))
    batch, is_real = split.whole, torch.ones(5, 6, dtype=torch.bool)
    together = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.1, 0.2], [0.5, 0.5], [0.4, 0.6]])
    together = torch.cat([together, torch.zeros(5, 4)], 1)
    targets = torch.tensor([[0.5, 0.3, 0.2, 0, 0, 0], [0.05, 0.09, 0, 0, 0, 0.9]])
    positive, counted = related(batch, targets, together, is_real)
    # Of the first image, pair 0 is the best of one interaction and pair 1 of the other; the third has no score at all.
    assert positive.tolist() == [True, True, False, False, False]
    # In the second, nothing that pairs do is seen.
    assert counted.tolist() == [True, True, True, False, False]


def test_relatedness_multiplies_real_interactions_alone() -> None:
    split = make_split()
    plain = fresh(split).branch_scores(split.whole)["student"]
    student = fresh(split, score={"weights": {"relatedness": 0.5}})
    related_to = student(split.whole).relatedness.sigmoid().sqrt()[:, None]
    expected = torch.where(REAL[split.whole.labels_o], related_to * plain, plain)
    torch.testing.assert_close(student.branch_scores(split.whole)["student"], expected)
    assert reached(student, split, "relatedness") == {"relatedness"}


@pytest.mark.parametrize(
    "switch", [{}, {"targets": {"image": "pairs"}}, *({key: EVERYTHING[key]} for key in EVERYTHING), EVERYTHING]
)
def test_every_switch_keeps_the_loss_a_mean_of_halves(switch: dict) -> None:
    split = make_split((3, 0, 4, 2)).with_pairs(rows_o=torch.tensor([20, 20, 21, 24, 24, 24, 25, 26, 27]))
    student = fresh(split, **switch)
    whole = student.losses(split.whole, None)
    halves = [split.batch(np.array(rows)) for rows in ([3, 2], [1, 0])]
    of_halves = [student.losses(half, None).total for half in halves]
    assert whole.total.item() == pytest.approx((sum(of_halves) / 2).item(), rel=1e-4)
    whole.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert torch.isfinite(student.losses(make_split((0, 0)).whole, None).total)
    scores, parts = student.branch_scores(split.whole), [student.branch_scores(half) for half in halves]
    order = torch.cat([half.pair_rows for half in halves])
    for name, each in scores.items():
        assert ((each >= 0) & (each <= 1)).all(), name
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), each[order], rtol=1e-4, atol=1e-5)


def test_labels_train_what_the_switches_leave() -> None:
    split = make_split((3, 1, 4, 2))
    targets = label_targets([split.whole], split.labels, VOCABULARY, 4)
    student = fresh(split, supervision="labels", **EVERYTHING)
    losses = student.losses(split.whole, targets).losses
    assert set(losses) == {"global", "human_object", "spatial", "relatedness"}
    assert all(0 < loss < 20 for loss in losses.values())


def test_it_sees_boxes_and_classes_and_no_pixel() -> None:
    split = rivals()
    student, batch = fresh(split, **BEST), split.whole
    before = student.branch_scores(batch)["spatial"]
    human, obj, union = map(
        torch.randn_like, (batch.human_feature, batch.object_feature, batch.extra["union_embedding"])
    )
    noise = replace(batch, human_feature=human, object_feature=obj, extra={"union_embedding": union})
    assert torch.equal(student.branch_scores(noise)["spatial"], before)
    for change in ({"boxes_o": batch.boxes_o + 30}, {"labels_o": (batch.labels_o % 2) + 1}):
        assert not torch.allclose(student.branch_scores(replace(batch, **change))["spatial"], before, atol=1e-4)


def test_the_spatial_target_by_hand() -> None:
    split = rivals()
    student, batch = fresh(split, score={"weights": {"spatial": 0.5}}).requires_grad_(False), split.whole
    logits, admitted = student(batch), ADMITTED[split.whole.labels_o]
    teacher = (split.bank.logit_scale * batch.union_similarity[:, 0].float() / 2).softmax(-1)
    branches = (logits.union / 2).softmax(-1) * (logits.human_object / 2).softmax(-1)
    product, is_real = teacher * branches * admitted, REAL[batch.labels_o]
    gate = competition_gate(product, is_real, batch.rows_h, batch.rows_o)
    targets = with_none(batch, teacher * branches, admitted, is_real)
    assert torch.allclose(targets[:, :-1].sum(1), gate, atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(10), atol=1e-6)
    assert torch.allclose(F.normalize(targets[:, :-1], dim=-1), F.normalize(product, dim=-1), atol=1e-6)
    assert gate[0] + gate[1] < 1.0001
    assert gate[2] == pytest.approx(1, abs=1e-6)
    per_pair = divergence(targets, 2 * logits.spatial)
    by_hand = sum(part.mean() for part in per_pair.split((3, 1, 4, 2))) / 5
    assert student.losses(batch, None).losses["spatial"].item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert reached(fresh(split, **BEST), split, "spatial") == {"spatial"}


@pytest.mark.slow
def test_all_losses_of_the_best_student_fall() -> None:
    split = rivals()
    student = fresh(split, dropout=0.0, **BEST)
    before = student.losses(split.whole, None).losses
    after = overfitted(student, split, 200, 3e-3).losses(split.whole, None).losses
    assert set(after) == {"global", "union", "human_object", "spatial"}
    assert all(after[name] < 0.2 * before[name] + 1e-3 for name in after)


def test_all_views_start_as_the_mean_of_the_crops() -> None:
    split = rivals()
    logits = fresh(split, union_views="all")(split.whole)
    crops = F.normalize(split.whole.extra["union_embedding"].float().mean(1), dim=-1)
    texts = torch.from_numpy(split.bank.text_embedding)
    assert torch.allclose(logits.union, split.bank.logit_scale * crops @ texts.T, atol=1e-4)


def test_a_gated_target_leaves_an_object_to_its_best_pair() -> None:
    split = rivals()
    teacher = torch.full((10, 6), 0.1)
    teacher[0, 0] = 0.8
    batch = replace(
        split.whole, labels_o=torch.ones(10, dtype=torch.long), scores_h=torch.ones(10), scores_o=torch.ones(10)
    )
    allowed = ADMITTED[batch.labels_o], REAL[batch.labels_o]
    plain, gated = (from_pairs(batch, teacher, *allowed, exponent, True)[0] for exponent in (0.0, 1.0))
    # Pairs 0 and 1 share an object, with masses 0.9 and 0.2 of real interactions; pair 2 has its own, of mass 0.2.
    share = 0.9 / 1.1
    raw = torch.tensor([0.8 * share, max(0.1 * share, 0.1), 0.1, 0, 0, 0])
    assert torch.allclose(gated, raw / raw.sum(), atol=1e-6)
    assert torch.allclose(plain, torch.tensor([0.8, 0.1, 0.1, 0, 0, 0]), atol=1e-6)
