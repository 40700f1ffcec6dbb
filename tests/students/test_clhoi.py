"""Laws of the student `clhoi`, and its parts by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from hoi.records import PairBatch
from hoi.scoring import competition_gate
from hoi.students.base import Student, build_student
from hoi.students.clhoi.model import interaction_contrast, pool_pairs
from hoi.students.clhoi.networks import context_loss, union_cover
from hoi.students.clhoi.settings import ClhoiConfig
from hoi.students.layers import RaggedIndex
from tests.fakes.pipelines import refused
from tests.fakes.splits import (
    ADMITTED,
    REAL,
    VLM,
    VOCABULARY,
    Split,
    make_split,
    make_vlm_split,
    overfitted,
    with_vlm_fields,
)

AXES = {"L": 2, "M": 1, "C": 5, "H": 3, "W": 4}


def fresh(split: Split, **settings: Any) -> Student:
    config = ClhoiConfig(method="clhoi", width=32, heads=4, dropout=0.0, **settings)
    return build_student(config, split.bank, VOCABULARY, AXES, seed=3).eval()


def rows_of(batch: PairBatch, order: list[int]) -> PairBatch:
    """The batch with its pairs in another order of rows."""
    of_images = {"image_rows", "size_hw", "image_embedding", "image_similarity", "pair_image", "extra"}
    changed = {name: getattr(batch, name)[order] for name in PairBatch.__dataclass_fields__ if name not in of_images}
    extra = {name: v[order] if len(v) == batch.num_pairs else v for name, v in batch.extra.items()}
    return replace(batch, **changed, extra=extra)


def test_pooling_by_hand() -> None:
    index = RaggedIndex.of(torch.tensor([0, 1, 1]), 3)
    logits, vectors = torch.tensor([[0.3, -2.0], [1.0, 0.0], [0.5, 4.0]]), torch.randn(3, 7)
    log_r = torch.tensor([0.2, 0.9, 0.6]).log()
    admitted = torch.tensor([[True, True], [True, False], [True, True]])
    pooled, joined, has_pair = pool_pairs(index, logits, vectors, log_r, admitted, 0.5)
    assert torch.equal(pooled[0], logits[0])
    assert torch.equal(joined[0], vectors[0].expand(2, -1))
    odds = torch.tensor([0.9 * math.exp(2.0), 0.6 * math.exp(1.0)])
    share = odds / odds.sum()
    torch.testing.assert_close(pooled[1], torch.tensor([share[0] * 1.0 + share[1] * 0.5, 4.0]))
    torch.testing.assert_close(joined[1, 0], share @ vectors[1:])
    assert has_pair.tolist() == [[True, True], [True, True], [False, False]]
    assert not torch.cat([pooled[2], joined[2].flatten()]).any()
    # What no pair of an image admits is pooled from none.
    nothing, joined, has_pair = pool_pairs(index, logits, vectors, log_r, torch.zeros_like(admitted), 0.5)
    assert not torch.cat([nothing.flatten(), joined.flatten(), has_pair.flatten().float()]).any()


def test_what_was_not_asked_gets_no_gradient_at_all() -> None:
    split = make_vlm_split()
    batch = split.whole
    student = fresh(split, union_weight=0.0, pair_weight=1.0)
    found = student(batch)
    found.logits.retain_grad()
    student.forward = lambda _: found
    student.losses(batch, None).total.backward()
    asked = (batch.extra[f"{VLM}/vlm_asked"] > 0)[batch.pair_image] & ADMITTED[batch.labels_o]
    assert found.logits.grad is not None
    assert found.logits.grad[asked].abs().min() > 0
    assert not found.logits.grad[~asked].any()


def test_the_order_of_sentences_and_of_pairs_does_not_matter() -> None:
    split = make_vlm_split((3, 2))
    student, batch = fresh(split, pair_weight=1.0), split.whole
    before, scores = student.losses(batch, None).losses, student.branch_scores(batch)["student"]
    order = [2, 0, 1]
    told = {f"{VLM}/{own}": batch.extra[f"{VLM}/{own}"][:, order] for own in ("context_embedding", "context_mask")}
    for other in (replace(batch, extra={**batch.extra, **told}), rows_of(batch, [2, 0, 1, 4, 3])):
        for name, loss in student.losses(other, None).losses.items():
            torch.testing.assert_close(loss, before[name])
    moved = student.branch_scores(rows_of(batch, [2, 0, 1, 4, 3]))["student"]
    torch.testing.assert_close(moved, scores[[2, 0, 1, 4, 3]])


def test_images_do_not_see_one_another_but_for_the_contrasts() -> None:
    split = make_vlm_split((3, 0, 2))
    student = fresh(split).requires_grad_(False)
    for name, parameter in student.named_parameters():
        if name.startswith("to_joint"):
            torch.nn.init.normal_(parameter, std=0.1)
    noise = torch.randn_like(split.whole.union_feature)
    noise[:3] = split.whole.union_feature[:3]
    batches = split.whole, replace(split.whole, union_feature=noise)
    one, two = (student.branch_scores(batch)["student"] for batch in batches)
    torch.testing.assert_close(one[:3], two[:3])
    assert not torch.allclose(one[3:], two[3:])


@pytest.mark.parametrize("pairs_of", [(0, 0), (0, 2), (1,)])
def test_images_without_a_pair_or_without_a_caption_are_fine(pairs_of: tuple[int, ...]) -> None:
    split = with_vlm_fields(make_split(pairs_of))
    student = fresh(split, pair_weight=1.0).train()
    step = student.losses(split.whole, None)
    step.total.backward()
    assert torch.isfinite(step.total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())
    assert len(student.branch_scores(split.whole)["student"]) == sum(pairs_of)


def test_an_untrained_pair_vector_is_clips_of_its_union() -> None:
    split = make_vlm_split()
    union = F.normalize(split.whole.union_feature.float().mean(1), dim=-1)
    torch.testing.assert_close(fresh(split)(split.whole).vectors, union)
    assert not torch.allclose(fresh(split, start="none")(split.whole).vectors, union, atol=0.1)


def test_the_score_is_the_formula_and_the_gate_is_the_students() -> None:
    split = make_vlm_split()
    split = split.with_pairs(rows_o=torch.tensor([20, 20, 21, 22, 23, 24, 24, 24, 25, 26]))
    batch = split.whole
    found = fresh(split)(batch)
    r, z = found.log_interactive.exp()[:, None], found.logits
    scores = fresh(split).branch_scores(batch)
    torch.testing.assert_close(scores["student"], r.sqrt() * z.sigmoid())
    torch.testing.assert_close(scores["interaction"], z.sigmoid())
    softmax = fresh(split, score={"form": "product", "interactiveness_exponent": 1.0}).branch_scores(batch)["student"]
    torch.testing.assert_close(softmax, r * z.sigmoid() * (z / 2).softmax(1))
    gated = fresh(split, gate={"exponent": 1.0}).branch_scores(batch)
    is_real = REAL[batch.labels_o]
    gate = competition_gate(scores["student"], is_real, batch.rows_h, batch.rows_o)[:, None]
    torch.testing.assert_close(gated["student"], torch.where(is_real, gate * scores["student"], scores["student"]))
    assert torch.equal(gated["ungated"], scores["student"])


def test_context_loss_by_hand() -> None:
    words = F.normalize(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0.6, 0.8, 0]]]), dim=-1)
    sentences, mask = torch.tensor([[[1.0, 0, 0]], [[0, 1, 0]]]), torch.ones(2, 1, dtype=torch.bool)
    image = words.mean(1)
    nearness = torch.tensor([[1.0, 0.6], [1.0, 0.8]])
    expected = -(nearness.log_softmax(1).diagonal() + nearness.log_softmax(0).diagonal()).mean() / 2
    torch.testing.assert_close(context_loss(words, sentences, mask, image, torch.tensor(1.0)), expected)
    torch.testing.assert_close(context_loss(words, sentences, mask, -image, torch.tensor(1.0)), expected + 0.5 * 2)
    same = sentences[:1].expand(2, -1, -1)
    assert context_loss(words, same, mask, image, torch.tensor(1.0)).item() == pytest.approx(0.0, abs=1e-6)


def test_contrast_by_hand_spares_what_is_seen_too() -> None:
    object_of, texts = torch.tensor([0, 0, 0, 1]), torch.eye(4)
    vectors = torch.randn(2, 4, 4)
    asked = torch.tensor([[True, True, False, True], [True, True, True, True]])
    positive = torch.zeros(2, 4, dtype=torch.bool)
    positive[0, 0] = True
    near = F.normalize(vectors[0, 0], dim=-1)
    # Alone in its batch, it is told from the one other interaction of its object that was asked.
    by_hand = -(near[0] - torch.stack([near[0], near[1]]).logsumexp(0)) / 2
    found = interaction_contrast(vectors, texts, positive, asked, object_of, torch.tensor(1.0))
    torch.testing.assert_close(found, by_hand / 2)
    positive[0, 1] = True
    both = interaction_contrast(vectors, texts, positive, asked, object_of, torch.tensor(1.0))
    assert both.item() == pytest.approx(0.0, abs=1e-6)


def test_a_unions_share_of_the_maps_cells_follows_the_padding() -> None:
    # An image of 20 × 40 lies in the middle rows of a square of 40; the map has 2 × 4 cells.
    cover = union_cover(
        torch.tensor([[0.0, 0, 5, 10]]), torch.tensor([[5.0, 5, 20, 20]]), torch.tensor([[20.0, 40.0]]), 2, 4
    )
    torch.testing.assert_close(cover, torch.tensor([[0.5, 0.5, 0, 0, 0.5, 0.5, 0, 0]]))


@pytest.mark.slow
def test_it_learns_the_teachers_scores_of_images() -> None:
    split = make_vlm_split((3, 1, 4, 2))
    scores = torch.zeros(4, 6)
    scores[torch.from_numpy(split.labels.image), torch.from_numpy(split.labels.interaction)] = 1.0
    asked = split.whole.extra[f"{VLM}/vlm_asked"]
    split.whole.extra[f"{VLM}/vlm_scores"] = scores * asked
    student = fresh(split, union_weight=0.0)
    before = student.losses(split.whole, None).losses["interaction"]
    student = overfitted(student, split, 150, 3e-3)
    step = student.losses(split.whole, None)
    assert step.losses["interaction"] < 0.02 * before
    assert step.agreement["interaction"].all()


def test_settings_that_cannot_be_are_refused() -> None:
    split = make_vlm_split()
    with pytest.raises(ValidationError, match="multiple of heads"):
        ClhoiConfig(method="clhoi", width=30, heads=4)
    error = refused(build_student, ClhoiConfig(method="clhoi"), split.bank, VOCABULARY, {"L": 2, "M": 1})
    assert ("reads CLIP's spatial map" in error.what, error.where) == (True, "teacher.spatial_map")
    assert fresh(split).scoring_fields == ("spatial_map",)
    assert f"{VLM}/context_mask" not in fresh(split, translator=False).extra_fields
