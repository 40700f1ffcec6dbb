"""The rows that need no training, on numbers worked out by hand, and tuning of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hoi.config import VlmConfig
from hoi.evaluation.baselines import (
    EXPONENTS,
    DetectorPrior,
    DirectClip,
    DirectClipLevels,
    DirectSetting,
    DirectVlm,
    GatedDirectClip,
    Tuner,
    direct_settings,
    direct_vlms,
)
from hoi.records import BranchScores, HoiLabels, PairBatch, TextBank
from hoi.vocabulary import Vocabulary
from tests.fakes.splits import make_split

RIDE, HOLD, EAT = 0, 1, 2
NAMES = (("ride", "bicycle"), ("hold", "bicycle"), ("eat", "apple"))
VOCABULARY = Vocabulary(("person", "bicycle", "apple"), ("ride", "hold", "eat"), NAMES)


def bank(logit_bias: float | None = None) -> TextBank:
    return TextBank(np.eye(3, dtype=np.float32), 10.0, logit_bias, (("text",),) * 3)


def batch(union_similarity: list, image_similarity: list, pairs_of: tuple[int, ...] = (2, 2)) -> PairBatch:
    """Two pairs of one image with a bicycle, then one of another image with an apple, then one with a person."""
    return replace(
        make_split(pairs_of).whole,
        image_similarity=torch.tensor(image_similarity, dtype=torch.float16),
        union_similarity=torch.tensor(union_similarity, dtype=torch.float16),
        scores_h=torch.full((4,), 0.8),
        scores_o=torch.full((4,), 0.5),
        labels_o=torch.tensor([1, 1, 2, 0]),
    )


# Margins 0 and 1; log 2 / 10 in similarity is a factor of 2 between scores at the model's own scale of 10.
TWICE = float(np.log(2) / 10)
CROPS = [[[0, 0, TWICE], [TWICE, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
IMAGES = [[TWICE, 0, 0], [0, 0, 0]]


def direct(form: str, temperature: float = 1.0, margin: int | None = 0, logit_bias: float | None = None) -> dict:
    setting = DirectSetting(form, temperature, margin)
    scorer = DirectClipLevels(DirectClip(bank(logit_bias), VOCABULARY, setting, "direct"))
    return scorer.branch_scores(batch(CROPS, IMAGES))


def test_the_prior_spreads_a_pair_over_its_objects_interactions() -> None:
    scores = DetectorPrior(VOCABULARY).branch_scores(batch(CROPS, IMAGES))["detector_prior"]
    torch.testing.assert_close(scores, torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0], [0, 0, 0]]))


ROOT = 2**0.5
READ = {
    ("softmax", 1.0, 0): [0.25, 0.25, 0.5],
    ("object_softmax", 1.0, 0): [0.5, 0.5, 0],
    ("softmax", 0.5, 0): [1 / 6, 1 / 6, 4 / 6],
    ("softmax", 1.0, 1): [0.5, 0.25, 0.25],
    ("softmax", 1.0, None): [ROOT / (1 + 2 * ROOT), 1 / (1 + 2 * ROOT), ROOT / (1 + 2 * ROOT)],
}


@pytest.mark.parametrize("setting", READ)
def test_form_temperature_and_margin_are_the_settings_own(setting: tuple) -> None:
    scores = direct(*setting)["direct"]
    torch.testing.assert_close(scores[0], torch.tensor(READ[setting]).double(), rtol=1e-3, atol=1e-3)
    assert torch.isfinite(scores).all()  # of the pair with a person, which admits no interaction, too


def test_every_pair_has_its_images_score_and_the_product() -> None:
    rows = direct("softmax")
    image = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1 / 3] * 3, [1 / 3] * 3]).double()
    torch.testing.assert_close(rows["direct_image"], image, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rows["direct_product"], rows["direct"] * rows["direct_image"])


def test_a_teacher_with_a_bias_is_read_by_sigmoid() -> None:
    scores = direct("sigmoid", logit_bias=-1.0)["direct"][1]
    torch.testing.assert_close(scores, torch.full((3,), 1 / (1 + math.e)).double())


@pytest.mark.parametrize(("bias", "form"), [(None, "softmax"), (-10.0, "sigmoid")])
def test_the_first_setting_is_the_teacher_as_it_comes(bias: float | None, form: str) -> None:
    settings = direct_settings(bank(bias), num_margins=2)
    assert settings[0] == DirectSetting(form, 1.0, 0)
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


def test_a_vlms_rows_are_its_cached_confidences() -> None:
    plain = batch(CROPS, IMAGES)
    extra = {"a/vlm_scores": torch.rand(2, 3), "a/vlm_pair_scores": torch.rand(4, 3)}
    scorer = DirectVlm("a", {"vlm_scores": "vlm_image", "vlm_pair_scores": "vlm_pairs"})
    rows = scorer.branch_scores(replace(plain, extra=extra))
    assert torch.equal(rows["vlm_image"], extra["a/vlm_scores"][[0, 0, 1, 1]])
    assert torch.equal(rows["vlm_pairs"], extra["a/vlm_pair_scores"])
    assert set(scorer.scoring_fields) == set(extra)


def test_rows_of_several_vlms_have_names_of_their_own() -> None:
    def asked(image: bool, pairs: bool) -> VlmConfig:
        return VlmConfig(backend="coca", model="m", image_scores=image, pair_scores=pairs)

    vlms = {"words": asked(False, False), "a": asked(True, False), "b": asked(True, True), "c": asked(False, True)}
    rows = {scorer.vlm: scorer.rows for scorer in direct_vlms(vlms)}
    assert rows == {"a": ("vlm_image",), "b": ("vlm_image/b", "vlm_pairs"), "c": ("vlm_pairs/c",)}


class Fixed:
    """Gives the pairs the same scores whatever the batch."""

    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor(scores)[:, None] * torch.tensor([1.0, 0, 0])

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        return {"row": self.scores}


def tuner(detection: list[float]) -> Tuner:
    """Four images with one pair each; the pairs of images 0 and 1 are true rides of a bicycle."""
    plain = batch([[[0.0] * 3] * 2] * 4, [[0.0] * 3] * 4, (1, 1, 1, 1))
    scores: dict[str, Any] = {"scores_h": torch.tensor(detection), "scores_o": torch.ones(4)}
    labels = HoiLabels(np.array([0, 1]), plain.boxes_h[:2].numpy(), plain.boxes_o[:2].numpy(), np.full(2, RIDE))
    pairs = replace(plain, labels_o=torch.ones(4, dtype=torch.int64), **scores)
    return Tuner(lambda extra: [pairs], labels, VOCABULARY, torch.device("cpu"))


def test_the_best_scorer_and_the_plainest_exponent_win() -> None:
    found = tuner([0.5, 0.5, 0.5, 0.5]).tune([Fixed(0.1, 0.2, 0.8, 0.9), Fixed(0.9, 0.8, 0.2, 0.1)], "row")
    assert (found.choice, found.exponent, found.quality) == (1, 1.0, pytest.approx(1))
    assert found.num_tried == 2 * len(EXPONENTS)
    assert tuner([0.5] * 4).tune([Fixed(0.9, 0.8, 0.2, 0.1)] * 2, "row").choice == 0


def test_the_exponent_weighs_detection_against_the_score() -> None:
    # The true pairs score twice the false ones but are detected at 0.4 against 0.9: γ must stay below ln 2 / ln 2.25.
    found = tuner([0.4, 0.4, 0.9, 0.9]).tune([Fixed(0.8, 0.8, 0.4, 0.4)], "row")
    assert found.quality == pytest.approx(1)
    assert found.exponent == 0.0
    # The scores are wrong and detection is right: γ must be large.
    found = tuner([0.9, 0.9, 0.4, 0.4]).tune([Fixed(0.2, 0.2, 0.5, 0.5)], "row")
    assert found.exponent == 1.4
