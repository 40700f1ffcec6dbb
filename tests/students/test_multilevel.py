"""Laws of the multi-level student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from hoi.matching import LabelTargets, label_targets
from hoi.students.base import StepLosses, Student, build_student
from hoi.students.multilevel.settings import MultiLevelConfig
from tests.fakes.pipelines import refused
from tests.fakes.splits import ADMITTED, AXES, VOCABULARY, Split, make_bank, make_split, overfitted
from tests.fakes.splits import fresh_multilevel as fresh


def trained(split: Split, labels: LabelTargets | None = None, **settings: Any) -> Student:
    return overfitted(fresh(split, dropout=0.0, **settings), split, 100, 1e-2, labels)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("logit_bias", [None, -5.0])
def test_untrained_global_and_union_branch_equal_the_teacher(levels: int, logit_bias: float | None) -> None:
    split = make_split(levels=levels, logit_bias=logit_bias)
    logits = fresh(split)(split.whole)
    texts, scale = torch.from_numpy(split.bank.text_embedding), split.bank.logit_scale
    union = F.normalize(split.whole.union_feature.float().mean(1), dim=-1)
    assert torch.allclose(logits.union, scale * union @ texts.T + (logit_bias or 0), atol=1e-4)
    image = split.whole.image_embedding.float()
    assert torch.allclose(logits.image, scale * image @ texts.T + (logit_bias or 0), atol=0.02)
    assert fresh(split).losses(split.whole, None).losses["global"] < 1e-4


def test_losses_are_the_three_divergences_of_the_formula() -> None:
    split = make_split((2, 1, 3))
    student, batch, scale = fresh(split), split.whole, split.bank.logit_scale
    step, logits = student.losses(batch, None), student(batch)
    t_g = (scale * batch.image_similarity.float() / 2).softmax(-1)
    t_u = (scale * batch.union_similarity[:, 0].float() / 2).softmax(-1)

    def divergence(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return F.kl_div((z / 2).log_softmax(-1), t, reduction="none").sum(-1)

    per_pair = divergence(t_u, logits.union)
    of_images = [per_pair[:2].mean(), per_pair[2:3].mean(), per_pair[3:].mean()]
    highest = torch.stack([part.max(0).values for part in logits.human_object.split((2, 1, 3))])
    by_hand = {
        "global": divergence(t_g, logits.image).mean(),
        "union": torch.stack(of_images).mean(),
        "human_object": divergence(t_g, highest).mean(),
    }
    torch.testing.assert_close(step.losses, by_hand, rtol=1e-4, atol=0)
    torch.testing.assert_close(step.total, sum(by_hand.values()), rtol=1e-4, atol=0)


def test_image_level_targets_alone_reach_the_human_object_branch() -> None:
    split = make_split((2, 1, 3))
    student = fresh(split)
    student.losses(split.whole, None).losses["union"].backward()
    assert all(p.grad is None or not p.grad.any() for p in student.encode_pair.parameters())
    student.losses(split.whole, None).losses["human_object"].backward()
    assert all(p.grad.abs().sum() > 0 for name, p in student.encode_pair.named_parameters() if "weight" in name)
    assert student.adapt_image.last.weight.grad is None


@pytest.mark.parametrize(
    "aggregation", ["max", *(pytest.param(how, marks=pytest.mark.slow) for how in ("logsumexp", "softmax_mean"))]
)
def test_one_batch_can_be_overfitted_to_the_teachers_entropy(aggregation: str) -> None:
    split = make_split((3, 1, 4, 2))
    student = trained(split, aggregation=aggregation)
    losses = student.losses(split.whole, None).losses
    assert set(losses) == {"global", "union", "human_object"}
    assert max(losses.values()) < 0.005


@pytest.mark.slow
def test_one_batch_of_a_sigmoid_teacher_can_be_overfitted_too() -> None:
    split = make_split((3, 1, 4, 2), logit_bias=-8.0)
    before, after = fresh(split).losses(split.whole, None), trained(split).losses(split.whole, None)
    assert after.total < 0.05 < before.total


def test_images_without_pairs_teach_the_global_branch_only() -> None:
    split = make_split((0, 0, 0))
    student = fresh(split)
    step = student.losses(split.whole, None)
    assert step.losses["union"] == step.losses["human_object"] == 0
    assert step.agreement["global"].numel() == 3
    assert step.agreement["human_object"].numel() == 0
    step.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert student.branch_scores(split.whole)["student"].shape == (0, 6)


def human_object_loss(split: Split, logits: torch.Tensor, **settings: Any) -> StepLosses:
    """The losses of a student that learns from its pairs and whose human-object branch says these logits."""
    student = fresh(split, targets={"image": "pairs"}, **settings)
    said = replace(student(split.whole), human_object=logits)
    student.forward = lambda batch: said
    return student.losses(split.whole, None)


def targets_by_hand(split: Split) -> torch.Tensor:
    """At each interaction that an object admits, the best of the image's pairs; a distribution over the image."""
    batch, targets = split.whole, torch.zeros(split.num_images, len(VOCABULARY))
    t_u = (split.bank.logit_scale * batch.union_similarity[:, 0].float() / 2).softmax(-1)
    for p in range(batch.num_pairs):
        for k in np.flatnonzero(VOCABULARY.object_mask[batch.labels_o[p]]):
            likely = t_u[p, k] * (batch.scores_h[p] * batch.scores_o[p]) ** 0.5
            targets[batch.pair_image[p], k] = max(targets[batch.pair_image[p], k], likely)
    return targets / targets.sum(1, keepdim=True)


@pytest.mark.parametrize("aggregation", ["max", "logsumexp", "softmax_mean"])
def test_targets_from_pairs_are_the_best_pair_by_interaction(aggregation: str) -> None:
    split = make_split((2, 1, 3))
    targets = targets_by_hand(split)
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    admitted = ADMITTED[split.whole.labels_o]
    of_images = (logits / 2).masked_fill(~admitted, -1e9).split((2, 1, 3))
    how = {
        "max": lambda z: z.max(0).values,
        "logsumexp": lambda z: z.logsumexp(0),
        "softmax_mean": lambda z: (z.softmax(0) * z).sum(0),
    }[aggregation]
    log_scores = torch.stack([how(z) for z in of_images]).log_softmax(-1)
    by_hand = (torch.xlogy(targets, targets) - targets * log_scores).sum(-1).mean()
    found = human_object_loss(split, logits, aggregation=aggregation).losses["human_object"]
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-4)
    # A student that says them has no loss, whatever it says of what the objects do not admit.
    said = 2 * targets.log()[split.whole.pair_image]
    step = human_object_loss(split, said.where(admitted, torch.tensor(40.0)))
    assert step.losses["human_object"].item() == pytest.approx(0, abs=1e-6)
    assert step.agreement["human_object"].tolist() == [True] * 3


@pytest.mark.parametrize("logit_bias", [None, -5.0])
@pytest.mark.parametrize("aggregation", ["max", "logsumexp", "softmax_mean"])
def test_what_an_object_does_not_admit_teaches_nothing(aggregation: str, logit_bias: float | None) -> None:
    split = make_split((2, 1, 3), logit_bias=logit_bias)
    admitted = ADMITTED[split.whole.labels_o]
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    human_object_loss(split, logits, aggregation=aggregation).losses["human_object"].backward()
    assert logits.grad is not None
    assert not logits.grad[~admitted].any()
    assert logits.grad[admitted].any()
    # Nor does anything where no object admits anything.
    split = split.with_pairs(labels_o=torch.tensor([3, 0, 3, 3, 0, 0]))
    student = fresh(split, targets={"image": "pairs"}, aggregation=aggregation)
    step = student.losses(split.whole, None)
    assert step.losses["human_object"] == 0
    assert step.agreement["human_object"].numel() == 0
    step.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert not any(p.grad.any() for p in student.encode_pair.parameters() if p.grad is not None)


def test_the_gate_changes_real_interactions_of_the_fused_row() -> None:
    """Pairs 0 and 1 share a human, 1 and 2 an object, 3 and 4 both an object and a class that admits nothing."""
    split = make_split((3, 2)).with_pairs(
        rows_h=torch.tensor([0, 0, 1, 2, 3]),
        rows_o=torch.tensor([9, 10, 10, 11, 11]),
        labels_o=torch.tensor([1, 2, 2, 3, 3]),
    )
    plain = fresh(split).branch_scores(split.whole)
    assert "ungated" not in plain
    scores = fresh(split, gate={"exponent": 0.5}).branch_scores(split.whole)
    assert set(scores) == {*plain, "ungated"}
    for name in ("global", "union", "human_object"):
        assert torch.equal(scores[name], plain[name])
    fused = scores["ungated"]
    assert torch.equal(fused, plain["student"])

    bicycle, dog = fused[0, :2].sum(), fused[1:3, 3:5].sum(1)
    of_object = dog / dog.sum()
    of_human = torch.stack([bicycle, dog[0] * of_object[0]])
    of_human = of_human / of_human.sum()
    gate = torch.stack([of_human[0], of_object[0] * of_human[1], of_object[1]])
    expected = plain["student"].clone()
    expected[0, :2] *= gate[0].sqrt()
    expected[1:3, 3:5] *= gate[1:, None].sqrt()
    admitted = ADMITTED[split.whole.labels_o]
    torch.testing.assert_close(scores["student"][admitted], expected[admitted], rtol=1e-5, atol=0)
    assert torch.isfinite(scores["student"]).all()


def test_labels_are_learned_where_the_object_admits_them() -> None:
    split = make_split((3, 1, 4, 2))
    targets = label_targets([split.whole], split.labels, VOCABULARY, 4)
    untrained, student = fresh(split, supervision="labels"), trained(split, targets, supervision="labels")
    before, after = (each.losses(split.whole, targets).total for each in (untrained, student))
    assert after < 0.05 * before
    scores = student.branch_scores(split.whole)
    for branch in ("human_object", "union"):
        assert torch.equal((scores[branch] > 0.5) & ADMITTED[split.whole.labels_o], targets.pairs)
    # Before training, one in K is expected.
    assert untrained.branch_scores(split.whole)["union"].median().item() == pytest.approx(1 / 6, abs=0.1)


def test_settings_that_cannot_be_are_refused() -> None:
    sigmoid = MultiLevelConfig(score={"form": "sigmoid"})
    assert "the teacher has no logit bias" in refused(build_student, sigmoid, make_bank(), VOCABULARY, AXES).what
    without_branch: Any = {"fusion": "early", "score": {"weights": {"human_object": 0.0}}}
    for settings, problem in (
        ({"targets": {"pair_teachers": {"clip": 0.0}}}, "every teacher has the weight 0"),
        (without_branch, "every branch has the weight 0"),
        ({"score": {"weights": {"union": 0.0, "human_object": 0.0}}}, "every branch has the weight 0"),
    ):
        with pytest.raises(ValidationError, match=problem):
            MultiLevelConfig(**settings)


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one, other, same = (
        build_student(MultiLevelConfig(), make_bank(), VOCABULARY, AXES, seed).state_dict() for seed in (1, 2, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    name = "encode_pair.layers.0.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_each_branch_is_left_out_once_and_global_taken_in() -> None:
    split = make_split()
    student = fresh(split, gate={"exponent": 0.5})
    variants = student.variants()
    assert list(variants) == [
        "without union",
        "without human_object",
        "with global, weight 0.25",
        "with global, weight 1",
    ]
    scores, without = (s.branch_scores(split.whole) for s in (student, variants["without union"]))
    assert torch.equal(without["ungated"], scores["human_object"])
    assert torch.equal(student.branch_scores(split.whole)["student"], scores["student"])
    early = fresh(split, fusion="early", score={"weights": {"global": 1.0}})
    assert list(early.variants()) == ["without human_object", "without global"]
