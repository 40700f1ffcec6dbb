"""The rows that need no training, on numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi.config import VlmConfig
from hoi.evaluation.baselines import (
    DetectorPrior,
    DirectClip,
    DirectClipLevels,
    DirectSetting,
    DirectVlm,
    GatedDirectClip,
    direct_settings,
    direct_vlms,
)
from hoi.records import PairBatch, TextBank
from hoi.vocabulary import Vocabulary

RIDE, HOLD, EAT = 0, 1, 2
VOCABULARY = Vocabulary(
    objects=("person", "bicycle", "apple"),
    verbs=("ride", "hold", "eat"),
    interactions=(("ride", "bicycle"), ("hold", "bicycle"), ("eat", "apple")),
)


def bank(logit_bias: float | None = None) -> TextBank:
    return TextBank(np.eye(3, dtype=np.float32), 10.0, logit_bias, (("text",),) * 3)


def batch(union_similarity: list, image_similarity: list) -> PairBatch:
    """Two pairs of one image with a bicycle, then one of another image with an apple, then one with a person."""
    labels = torch.tensor([1, 1, 2, 0])
    num = len(labels)
    boxes, features = torch.tensor([[0.0, 0, 10, 10]]).repeat(num, 1), torch.zeros(num, 1, 3)
    return PairBatch(
        image_rows=torch.tensor([4, 7]),
        size_hw=torch.full((2, 2), 100.0),
        image_embedding=torch.zeros(2, 3),
        image_similarity=torch.tensor(image_similarity, dtype=torch.float16),
        pair_image=torch.tensor([0, 0, 1, 1]),
        boxes_h=boxes,
        boxes_o=boxes,
        scores_h=torch.full((num,), 0.8),
        scores_o=torch.full((num,), 0.5),
        labels_o=labels,
        pair_rows=torch.arange(num),
        rows_h=torch.arange(num),
        rows_o=torch.arange(num),
        human_feature=features,
        object_feature=features,
        union_feature=features,
        union_similarity=torch.tensor(union_similarity, dtype=torch.float16),
    )


# Margins 0 and 1; log 2 / 10 in similarity is a factor of 2 between scores at the model's own scale of 10.
TWICE = float(np.log(2) / 10)
CROPS = [[[0, 0, TWICE], [TWICE, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
IMAGES = [[TWICE, 0, 0], [0, 0, 0]]


def direct(form: str, temperature: float = 1.0, margin: int | None = 0, logit_bias: float | None = None) -> dict:
    setting = DirectSetting(form, temperature, margin)  # type: ignore[arg-type]
    scorer = DirectClipLevels(DirectClip(bank(logit_bias), VOCABULARY, setting, "direct"))
    return scorer.branch_scores(batch(CROPS, IMAGES))


def test_the_prior_spreads_a_pair_over_its_objects_interactions() -> None:
    scores = DetectorPrior(VOCABULARY).branch_scores(batch(CROPS, IMAGES))["detector_prior"]
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0], [0, 0, 0]]))


def test_softmax_over_all_interactions_lets_another_objects_text_take_mass() -> None:
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(direct("softmax")["direct"][0], torch.tensor([0.25, 0.25, 0.5]).double(), **close)
    renormalised = direct("object_softmax")["direct"]
    torch.testing.assert_close(renormalised[0], torch.tensor([0.5, 0.5, 0]).double(), **close)
    assert torch.isfinite(renormalised).all()  # the pair with a person, which admits none, too


def test_temperature_and_margin_are_the_settings_own() -> None:
    close = {"rtol": 1e-3, "atol": 1e-3}
    hot = direct("softmax", temperature=0.5)["direct"][0]
    torch.testing.assert_close(hot, torch.tensor([1 / 6, 1 / 6, 4 / 6]).double(), **close)
    torch.testing.assert_close(
        direct("softmax", margin=1)["direct"][0], torch.tensor([0.5, 0.25, 0.25]).double(), **close
    )
    root = 2**0.5
    mean = torch.tensor([root, 1, root]).double() / (1 + 2 * root)
    torch.testing.assert_close(direct("softmax", margin=None)["direct"][0], mean, **close)


def test_the_image_row_gives_every_pair_its_images_score_and_the_product_multiplies() -> None:
    rows = direct("softmax")
    image = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1 / 3] * 3, [1 / 3] * 3]).double()
    torch.testing.assert_close(rows["direct_image"], image, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rows["direct_product"], rows["direct"] * rows["direct_image"])


def test_a_teacher_with_a_bias_is_read_by_sigmoid() -> None:
    scores = direct("sigmoid", logit_bias=-1.0)["direct"][1]
    torch.testing.assert_close(scores, torch.full((3,), 1 / (1 + np.e)).double())


@pytest.mark.parametrize(("bias", "form"), [(None, "softmax"), (-10.0, "sigmoid")])
def test_the_first_setting_is_the_teacher_as_it_comes_and_none_is_tried_twice(bias: float | None, form: str) -> None:
    settings = direct_settings(bank(bias), num_margins=2)
    assert settings[0] == DirectSetting(form, 1.0, 0)  # type: ignore[arg-type]
    assert len(set(settings)) == len(settings)
    assert {s.margin for s in settings} == {0, 1, None}
    assert ("sigmoid" in {s.form for s in settings}) == (bias is not None)
    assert {s.margin for s in direct_settings(bank(bias), num_margins=1)} == {0}


def test_knobs_name_the_margin_as_a_factor() -> None:
    knobs = DirectSetting("softmax", 2.0, 1).to_dict(0.5, (1.15, 1.5))
    assert knobs == {"form": "softmax", "temperature": 2.0, "margin": 1.5, "score_exponent": 0.5}
    assert DirectSetting("softmax", 2.0, None).to_dict(0.5, (1.15, 1.5))["margin"] == "mean"


def test_the_gate_divides_an_object_between_its_rivals() -> None:
    crop = DirectClip(bank(None), VOCABULARY, DirectSetting("softmax", 1.0, 0), "direct")
    plain = batch(CROPS, IMAGES)
    before = crop.branch_scores(plain)["direct"]
    assert torch.allclose(GatedDirectClip(crop, 0.5, "gated").branch_scores(plain)["gated"], before)
    rivals = replace(plain, rows_o=torch.tensor([9, 9, 8, 7]))
    shared = GatedDirectClip(crop, 0.5, "gated").branch_scores(rivals)["gated"]
    # The first pair gives 1 : 1 : 2 to ride, hold and eat, the second a third to each; similarities are float16.
    mass = torch.tensor([1 / 2, 2 / 3], dtype=torch.float64)
    expected = before[:2, [RIDE, HOLD]] * (mass / mass.sum()).sqrt()[:, None]
    assert torch.allclose(shared[:2, [RIDE, HOLD]], expected, rtol=1e-3)
    assert torch.equal(shared[:, EAT], before[:, EAT])


def test_a_language_models_rows_are_its_confidences_in_the_pairs_image_and_in_the_pair() -> None:
    plain = batch(CROPS, IMAGES)
    extra = {"a/vlm_scores": torch.rand(2, 3), "a/vlm_pair_scores": torch.rand(4, 3)}
    scorer = DirectVlm("a", "vlm_image", "vlm_pairs")
    rows = scorer.branch_scores(replace(plain, extra=extra))
    assert torch.equal(rows["vlm_image"], extra["a/vlm_scores"][[0, 0, 1, 1]])
    assert torch.equal(rows["vlm_pairs"], extra["a/vlm_pair_scores"])
    assert set(scorer.scoring_fields) == set(extra)


def test_the_rows_of_several_language_models_have_names_of_their_own() -> None:
    def asked(image: bool, pairs: bool) -> VlmConfig:
        return VlmConfig(backend="coca", model="m", image_scores=image, pair_scores=pairs)

    vlms = {"words": asked(False, False), "a": asked(True, False), "b": asked(True, True), "c": asked(False, True)}
    rows = {scorer.vlm: scorer.rows for scorer in direct_vlms(vlms)}
    assert rows == {"a": ("vlm_image",), "b": ("vlm_image/b", "vlm_pairs"), "c": ("vlm_pairs/c",)}
