"""The branch that sees boxes and classes alone, and the views and gated targets that go with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hoi.config import TrainConfig
from hoi.scoring import competition_gate
from hoi.students.base import Student, build_student
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.students.multilevel.targets import from_pairs, with_none
from hoi.training.loop import fit
from tests.fakes.splits import VOCABULARY, Split, make_split

BEST: dict[str, Any] = {
    "targets": {"image": "pairs", "gate_exponent": 0.5},
    "aggregation": "logsumexp",
    "union_views": "all",
    "score": {"weights": {"spatial": 0.5}},
    "gate": {"exponent": 1.0},
}
ADMITTED = torch.from_numpy(VOCABULARY.object_mask)


def fresh(split: Split, **settings: Any) -> Student:
    axes = {"L": split.whole.union_feature.shape[1], "M": split.whole.union_similarity.shape[1]}
    return build_student(MultiLevelConfig(width=64, **settings), split.bank, VOCABULARY, axes, seed=3).eval()


def rivals() -> Split:
    """Ten pairs, some of which share an object."""
    split = make_split((3, 1, 0, 4, 2), margins=3)
    return split.with_pairs(rows_o=torch.tensor([20, 20, 21, 22, 23, 24, 24, 24, 25, 26]))


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


def test_labels_supervise_it_as_well() -> None:
    split = rivals()
    student = fresh(split, supervision="labels", score={"weights": {"spatial": 0.5}})
    assert student.branch_scores(split.whole)["spatial"].max() <= 1
