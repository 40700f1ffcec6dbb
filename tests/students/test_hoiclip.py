"""Laws of the student `hoiclip`, and that what is wrong in the public code is not here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hoi.matching import LabelTargets, label_targets
from hoi.records import HoiLabels
from hoi.students.base import build_student
from hoi.students.hoiclip.networks import InteractionClassifier, object_texts
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.hoiclip.targets import RegionSums, verb_prototypes
from hoi.students.layers import focal_loss
from tests.fakes.pipelines import refused
from tests.fakes.splits import ADMITTED, CHANNELS, VOCABULARY, Split, fresh_hoiclip, make_map_split, overfitted

LABELS: dict[str, Any] = {"supervision": "labels", "score": {"fusion": "product"}}
DEPARTED: dict[str, Any] = {"query_union": "all", "query_boxes": True, "union_residual": True}


def targets_of(split: Split, unseen: list[int] | None = None) -> LabelTargets:
    kept = ~np.isin(split.labels.interaction, unseen or [])
    labels = HoiLabels(*(column[kept] for column in vars(split.labels).values()))
    hidden = None if unseen is None else np.array(unseen)
    return label_targets([split.whole], labels, VOCABULARY, split.num_images, hidden)


def test_interactions_of_other_objects_score_nothing() -> None:
    split = make_map_split()
    student = fresh_hoiclip(split, **DEPARTED)
    admitted = ADMITTED[split.whole.labels_o]
    logits = student(split.whole)
    assert torch.equal(logits == -torch.inf, ~admitted)
    student = fresh_hoiclip(split, score={"fusion": "product"}, enhancement_classes=0)
    plain = student.branch_scores(split.whole)["student"]
    assert (plain[~admitted] == 0).all()
    assert (plain[admitted] > 0).all()


@pytest.mark.parametrize("settings", [{}, DEPARTED, {"memories": "clip"}, {"memories": "instances"}, {"layers": 0}])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_pairs_score_does_not_depend_on_the_batch(kind: str, settings: dict) -> None:
    split = make_map_split(kind=kind)
    student = fresh_hoiclip(split, **settings)
    together = student(split.batch(np.array([3, 2, 0, 4])))
    alone = torch.cat([student(split.batch(np.array([row]))) for row in (3, 2, 0, 4)])
    assert torch.allclose(together, alone, atol=1e-4)
    without_pair = split.batch(np.array([2]))
    assert student(without_pair).shape == (0, len(VOCABULARY))
    total = student.train().losses(without_pair, None).total
    total.backward()
    assert total.item() == 0


def test_every_switch_reaches_the_scores() -> None:
    split = make_map_split()

    def score(**settings: Any) -> torch.Tensor:
        student = fresh_hoiclip(split, **{"score": {"fusion": "product"}, **settings})
        return student.branch_scores(split.whole)["student"]

    plain = score()
    for changed in (
        {"layers": 0},
        {"memories": "clip"},
        {"memories": "instances"},
        {"verb_weight": 0.0},
        {"enhancement_classes": 0},
        {"score": {"fusion": "sum"}},
        {"score": {"fusion": "product", "weights": {"union": 1.0}}},
        {"gate": {"exponent": 1.0}},
        {"query_union": "first"},
        {"query_boxes": True},
        {"union_residual": True},
        {"width": None},
    ):
        assert not torch.allclose(score(**changed), plain), changed
    assert "ungated" in fresh_hoiclip(split, gate={"exponent": 1.0}).branch_scores(split.whole)


def test_an_untrained_residual_student_is_the_union_embedding() -> None:
    split = make_map_split()
    (*_, joint) = fresh_hoiclip(split, union_residual=True).decoded(split.whole)
    crop = split.whole.extra["union_embedding"][:, 0].float()
    assert torch.allclose(joint, F.normalize(crop, dim=-1), atol=1e-3)


def test_the_papers_score_by_hand() -> None:
    split = make_map_split()
    student, batch = fresh_hoiclip(split, enhancement_classes=2), split.whole
    image = batch.image_similarity.float()
    gain = torch.zeros_like(image)
    for row in range(len(image)):
        for k in image[row].argsort(descending=True)[:2]:
            gain[row, k] = image[row, k].sigmoid() - 0.5
    expected = student(batch).sigmoid() + gain[batch.pair_image] + batch.scores_o[:, None] ** 2
    found = student.branch_scores(batch)["student"]
    assert torch.allclose(found * 2.5, expected.clamp(min=0), atol=1e-6)
    assert ((found >= 0) & (found <= 1)).all()


def test_scoring_edits_nothing() -> None:
    # The public code adds to the scores in place, so that each step of its top-K sweep starts from the one before.
    split = make_map_split()
    student, before = fresh_hoiclip(split), split.whole.image_similarity.clone()
    found: dict[int, Any] = {}
    for classes in (0, 1, 3, 0, 1, 3):
        student.config = student.config.model_copy(update={"enhancement_classes": classes})
        scores = student.branch_scores(split.whole)["student"]
        assert torch.equal(found.setdefault(classes, scores), scores)
    assert torch.equal(before, split.whole.image_similarity)


def test_classifiers_have_no_bias_of_chance() -> None:
    # The public code's linear classifiers keep torch's random biases, and freeze them.
    split = make_map_split()
    for seed in (0, 1):
        torch.manual_seed(seed)
        classifier = InteractionClassifier(split.bank, VOCABULARY, 0.0, None)
        assert torch.equal(classifier(torch.zeros(1, 16)), torch.zeros(1, 6))
    assert not [name for name, _ in classifier.named_parameters() if "bias" in name]
    with_offset = InteractionClassifier(split.bank, VOCABULARY, 0.0, 2.0)
    assert with_offset.bias.item() == pytest.approx(-np.log(6))


def test_logits_are_scaled_cosines_to_texts_and_verbs() -> None:
    split = make_map_split()
    classifier = InteractionClassifier(split.bank, VOCABULARY, 0.3, None)
    assert classifier.log_scale.exp().item() == pytest.approx(1 / 0.07)
    assert [layer.weight.shape for layer in classifier.adapter[::2]] == [(8, 16), (8, 8), (16, 8)]
    joint = F.normalize(torch.randn(4, 16), dim=-1)
    adapted = classifier.adapter(joint)
    with torch.no_grad():
        classifier.verbs *= 3
    for k, verb in enumerate(VOCABULARY.verb_of):
        to_text = F.cosine_similarity(joint, torch.from_numpy(split.bank.text_embedding[k])[None])
        to_verb = F.cosine_similarity(adapted, classifier.verbs[verb][None])
        assert torch.allclose(classifier(joint)[:, k], (to_text + 0.3 * to_verb) / 0.07, atol=1e-4)


def test_every_layer_is_taught_by_a_loss_of_its_own() -> None:
    split = make_map_split()
    student = fresh_hoiclip(split, layers=3)
    losses = student.losses(split.whole, None).losses
    assert list(losses) == ["layer_1", "layer_2", "layer_3"]
    for taught, loss in enumerate(losses.values()):
        student.zero_grad()
        loss.backward(retain_graph=True)
        reached = [any(p.grad is not None for p in layer.parameters()) for layer in student.decoder.layers]
        assert reached == [layer <= taught for layer in range(3)]


def test_targets_are_scaled_by_class_and_never_above_one() -> None:
    split = make_map_split()
    student, batch = fresh_hoiclip(split, layers=1), split.whole
    admitted = ADMITTED[batch.labels_o]
    raw = student.targets.raw(batch, admitted, student.is_real & admitted)
    scales = raw.max(0).values / 2
    student.target_scales.copy_(scales.where(scales > 0, 1.0))
    targets = (raw / student.target_scales).clamp(max=1)
    assert (targets == 1).any(0)[admitted.any(0)].all()
    logits = student(batch).masked_fill(~admitted, 0)
    expected = focal_loss(logits, targets, admitted, 2.0, alpha=0.5)
    assert torch.allclose(student.losses(batch, None).total, expected, rtol=1e-5)


def test_prototypes_are_made_of_first_crops() -> None:
    split = make_map_split(margins=2)
    labels, whole = targets_of(split), split.whole
    student = fresh_hoiclip(split, **LABELS)
    student.prepare([whole], labels)
    sums = RegionSums.empty(VOCABULARY, 16)
    # The last level is the teacher's embedding of the object's own crop; the levels before lie in other spaces.
    sums.add(labels.pairs.float(), whole.extra["union_embedding"][:, 0], whole.object_feature[:, -1], whole.labels_o)
    expected, _ = verb_prototypes(sums, torch.from_numpy(split.bank.text_embedding), VOCABULARY)
    assert torch.equal(student.classify.verbs, expected)
    taught = fresh_hoiclip(split)
    taught.prepare([whole], None)
    assert not torch.equal(taught.classify.verbs, expected)


def test_an_object_without_interactions_has_the_mean_text() -> None:
    texts = object_texts(make_map_split().bank, VOCABULARY)
    assert torch.equal(texts[0], texts[3])
    assert torch.allclose(texts.norm(dim=-1), torch.ones(4))


def test_uncounted_labels_give_exactly_no_gradient() -> None:
    split = make_map_split()
    labels = targets_of(split, unseen=[0, 3])
    student = fresh_hoiclip(split, **LABELS, **DEPARTED)
    grads = []
    # Labels of hidden classes, were they there, would say nothing.
    for given in (labels, replace(labels, pairs=labels.pairs | torch.tensor([1, 0, 0, 1, 0, 0], dtype=torch.bool))):
        student.zero_grad()
        student.losses(split.whole, given).total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


@pytest.mark.parametrize("settings", [{}, LABELS])
def test_losses_of_two_halves_add_up_to_those_of_the_whole(settings: dict) -> None:
    split = make_map_split((3, 2, 4, 2))
    student, labels = fresh_hoiclip(split, **settings), targets_of(split) if settings else None
    whole = student.losses(split.whole, labels)
    halves = [student.losses(split.batch(np.array(rows)), labels) for rows in ([0, 1], [2, 3])]
    for name, loss in whole.losses.items():
        parts = sum(half.losses[name] * half.counts[name].clamp(min=1) for half in halves)
        assert torch.allclose(parts / whole.counts[name].clamp(min=1), loss, atol=1e-5)
    assert len(whole.losses) == 2


def test_one_batch_can_be_overfitted() -> None:
    split = make_map_split()
    labels = targets_of(split)
    student = fresh_hoiclip(split, **LABELS, layers=1)
    student.prepare([split.whole], labels)
    student = overfitted(student, split, 40, 2e-2, labels)
    scores = student(split.whole).sigmoid()
    positive = labels.pairs
    assert scores[positive].min() > 2 * scores[~positive & torch.isfinite(student(split.whole))].max()


def test_what_was_prepared_is_in_the_weights() -> None:
    split = make_map_split()
    looked = fresh_hoiclip(split)
    looked.prepare([split.whole], None)
    other = fresh_hoiclip(split, seed=4)
    other.load_state_dict(looked.state_dict())
    assert torch.equal(other.target_scales, looked.target_scales)
    assert torch.equal(other.classify.verbs, looked.classify.verbs)
    assert not torch.equal(looked.classify.verbs, fresh_hoiclip(split).classify.verbs)
    assert (looked.target_scales < 1).any()
    # What is frozen is the teacher's.
    assert not [name for name in looked.state_dict() if name.startswith("head.") or "texts" in name]


def test_preparation_does_not_depend_on_the_order_of_images() -> None:
    split = make_map_split((3, 1, 0, 4, 2, 5))
    for settings in ({"targets": {"top_least": 2}}, LABELS):
        labels = targets_of(split) if settings == LABELS else None
        prepared = []
        for batches in ([range(6)], [[5], [3, 1], [0, 4, 2]]):
            student = fresh_hoiclip(split, **settings)
            student.prepare([split.batch(np.array(rows)) for rows in batches], labels)
            prepared.append(student.state_dict())
        assert all(torch.equal(prepared[0][name], prepared[1][name]) for name in prepared[0])


def test_settings_that_the_cache_cannot_serve_are_refused() -> None:
    split = make_map_split()
    config = HoiclipConfig(method="hoiclip", heads=5)
    axes = {"L": 2, "M": 1, "C": CHANNELS}
    error = refused(build_student, config, split.bank, VOCABULARY, {"L": 2, "M": 1})
    assert ("no spatial map" in error.what, "spatial_map=true" in str(error.fix)) == (True, True)
    without_head = replace(split.bank, visual=None)
    assert "no cell of its map" in refused(build_student, config, without_head, VOCABULARY, axes).what
    error = refused(build_student, config, split.bank, VOCABULARY, axes)
    assert (error.expected, error.got) == ("a multiple of heads 5", 24)
    with pytest.raises(ValueError, match="width 10 is no multiple of heads 4"):
        HoiclipConfig(method="hoiclip", width=10, heads=4)
    for key in ({"zero_shot": "unseen_verb"}, {"label_fraction": 0.5}):
        with pytest.raises(ValueError, match="is about labels, and supervision is teacher"):
            HoiclipConfig(method="hoiclip", **key)
