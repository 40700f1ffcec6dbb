"""The switches of the ablation table, each by hand or by a law; views, gated targets and the spatial branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from hoi.config import TrainConfig
from hoi.matching import label_targets
from hoi.scoring import competition_gate
from hoi.students.layers import fuse
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.students.multilevel.targets import from_pairs, related, with_none
from hoi.training.loop import fit
from tests.fakes.splits import VOCABULARY, Split, make_split
from tests.fakes.splits import fresh_multilevel as fresh

ADMITTED = torch.from_numpy(VOCABULARY.object_mask)
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
    weights = {"union": 2.0, "human_object": 1.0, "global": 1.0, "spatial": 0.5}
    product = fresh(split, score={"weights": weights}).branch_scores(split.whole)["student"]
    by_hand = parts["union"] ** 2 * parts["human_object"] * parts["global"] * parts["spatial"] ** 0.5
    torch.testing.assert_close(product, by_hand)
    added = fresh(split, score={"weights": weights, "fusion": "sum"}).branch_scores(split.whole)["student"]
    by_hand = 2 * parts["union"] + parts["human_object"] + parts["global"] + 0.5 * parts["spatial"]
    torch.testing.assert_close(added, by_hand / 4.5)


@pytest.mark.parametrize("how", ["product", "sum"])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_one_branch_alone_is_that_branch(how: str, weight: float) -> None:
    one, other = torch.rand(4, 3), torch.rand(4, 3)
    alone = fuse([(one, 0.0), (other, weight)], how)
    torch.testing.assert_close(alone, other**weight if how == "product" else other)


def test_a_student_without_any_branch_in_its_score_is_refused() -> None:
    with pytest.raises(ValidationError, match="every branch has the weight 0"):
        MultiLevelConfig(fusion="early", score={"weights": {"human_object": 0.0}})
    with pytest.raises(ValidationError, match="every branch has the weight 0"):
        MultiLevelConfig(score={"weights": {"union": 0.0, "human_object": 0.0}})


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
    is_real = ADMITTED[split.whole.labels_o] & ~torch.from_numpy(VOCABULARY.is_no_interaction)
    torch.testing.assert_close(
        student.branch_scores(split.whole)["student"], torch.where(is_real, related_to * plain, plain)
    )
    loss = student.losses(split.whole, None).losses["relatedness"]
    assert loss > 0
    loss.backward()
    touched = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"relatedness"}


@pytest.mark.parametrize(
    "switch", [{}, {"targets": {"image": "pairs"}}, *({key: EVERYTHING[key]} for key in EVERYTHING), EVERYTHING]
)
def test_every_switch_keeps_the_loss_a_mean_of_halves(switch: dict) -> None:
    split = make_split((3, 0, 4, 2))
    student = fresh(split, **switch)
    whole = student.losses(split.whole, None)
    halves = [student.losses(split.batch(np.array(rows)), None).total for rows in ([0, 1], [2, 3])]
    assert whole.total.item() == pytest.approx((sum(halves) / 2).item(), rel=1e-4)
    whole.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert torch.isfinite(student.losses(make_split((0, 0)).whole, None).total)
    scores = student.branch_scores(split.whole)
    assert all(((s >= 0) & (s <= 1)).all() for s in scores.values())


def test_labels_train_what_the_switches_leave() -> None:
    split = make_split((3, 1, 4, 2))
    targets = label_targets([split.whole], split.labels, VOCABULARY, 4)
    student = fresh(split, supervision="labels", **EVERYTHING)
    losses = student.losses(split.whole, targets).losses
    assert set(losses) == {"global", "human_object", "spatial", "relatedness"}
    assert all(0 < loss < 20 for loss in losses.values())


def test_the_spatial_branch_changes_no_other_branch() -> None:
    split = rivals()
    without, with_it = fresh(split), fresh(split, score={"weights": {"spatial": 0.5}})
    plain, scores = without.branch_scores(split.whole), with_it.branch_scores(split.whole)
    assert all(torch.equal(plain[name], scores[name]) for name in ("global", "union", "human_object"))
    assert torch.allclose(scores["student"], plain["student"] * scores["spatial"].sqrt())


def test_it_sees_boxes_and_classes_and_no_pixel() -> None:
    split = rivals()
    student, batch = fresh(split, **BEST), split.whole
    before = student.branch_scores(batch)["spatial"]
    features: dict[str, Any] = {
        name: torch.randn_like(getattr(batch, name)) for name in ("human_feature", "object_feature")
    }
    noise = replace(batch, **features, extra={"union_embedding": torch.randn_like(batch.extra["union_embedding"])})
    assert torch.equal(student.branch_scores(noise)["spatial"], before)
    for change in ({"boxes_o": batch.boxes_o + 30}, {"labels_o": (batch.labels_o % 2) + 1}):
        assert not torch.allclose(student.branch_scores(replace(batch, **change))["spatial"], before, atol=1e-4)


def test_the_spatial_target_by_hand() -> None:
    split = rivals()
    student, batch = fresh(split, score={"weights": {"spatial": 0.5}}).requires_grad_(False), split.whole
    logits, admitted = student(batch), ADMITTED[split.whole.labels_o]
    teacher = (split.bank.logit_scale * batch.union_similarity[:, 0].float() / 2).softmax(-1)
    branches = (logits.union / 2).softmax(-1) * (logits.human_object / 2).softmax(-1)
    product = teacher * branches * admitted
    is_real = admitted & ~torch.from_numpy(VOCABULARY.is_no_interaction)
    gate = competition_gate(product, is_real, batch.rows_h, batch.rows_o)
    targets = with_none(batch, teacher * branches, admitted, is_real)
    assert torch.allclose(targets[:, :-1].sum(1), gate, atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(10), atol=1e-6)
    assert torch.allclose(F.normalize(targets[:, :-1], dim=-1), F.normalize(product, dim=-1), atol=1e-6)
    assert gate[0] + gate[1] < 1.0001
    assert gate[2] == pytest.approx(1, abs=1e-6)
    log_scores = logits.spatial.log_softmax(-1)
    divergence = (torch.xlogy(targets, targets) - targets * log_scores).sum(-1)
    by_hand = sum(part.mean() for part in divergence.split((3, 1, 4, 2))) / 5
    assert student.losses(batch, None).losses["spatial"].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_its_loss_reaches_no_other_branch() -> None:
    split = rivals()
    student = fresh(split, **BEST)
    student.losses(split.whole, None).losses["spatial"].backward()
    touched = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"spatial"}


@pytest.mark.slow
def test_all_losses_of_the_best_student_fall() -> None:
    split = rivals()
    student = fresh(split, dropout=0.0, **BEST)
    before = student.losses(split.whole, None).losses
    train = TrainConfig(epochs=200, batch_images=split.num_images, learning_rate=3e-3, weight_decay=0.0)
    after = fit(student, split, train, seed=0, device=torch.device("cpu"))[0].losses(split.whole, None).losses
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
    admitted = ADMITTED[batch.labels_o]
    is_real = admitted & ~torch.from_numpy(VOCABULARY.is_no_interaction)
    plain, gated = (from_pairs(batch, teacher, admitted, is_real, exponent, True)[0] for exponent in (0.0, 1.0))
    # Pairs 0 and 1 share an object, with masses 0.9 and 0.2 of real interactions; pair 2 has its own, of mass 0.2.
    share = 0.9 / 1.1
    raw = torch.tensor([0.8 * share, max(0.1 * share, 0.1), 0.1, 0, 0, 0])
    assert torch.allclose(gated, raw / raw.sum(), atol=1e-6)
    assert plain[0] == pytest.approx(0.8, abs=1e-6)
    assert torch.allclose(plain, torch.tensor([0.8, 0.1, 0.1, 0, 0, 0]), atol=1e-6)
