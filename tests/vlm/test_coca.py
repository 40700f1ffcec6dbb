from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hoi.world
from hoi.config import VlmConfig
from hoi.vlm import build_vlm
from hoi.vlm.coca import CocaModel
from tests.fakes.models import write_coca
from tests.fakes.pipelines import refused

TEXTS = ["a person riding a horse", "a ball", "a person sitting on a park bench", "a dog and a box"]
PICTURES = [np.random.default_rng(seed).integers(0, 256, (40 + 9 * seed, 64, 3), dtype=np.uint8) for seed in range(3)]


@pytest.fixture(scope="module", params=["plain", "full"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CocaModel:
    name = write_coca(tmp_path_factory.mktemp("coca") / request.param, full=request.param == "full")
    loaded = build_vlm(VlmConfig(backend="coca", model=name, pretrained="random", batch_size=2), "cpu")
    assert isinstance(loaded, CocaModel)
    return loaded


def encode(model: CocaModel, text: str) -> list[int]:
    return model._tokenizer.encode(text)


def forward(model: CocaModel, image: np.ndarray, tokens: list[int]) -> torch.Tensor:
    """Logits [context, vocabulary] by open_clip's own forward pass over one image and one padded text."""
    padded = torch.tensor([tokens + [0] * (20 - len(tokens))])
    with torch.inference_mode():
        image_tokens = model._image_tokens([image])[0]
        output = model._model(None, padded, torch.zeros(1, 32), image_tokens, output_labels=False)
    return output["logits"][0]


def log_probability(model: CocaModel, image: np.ndarray, prompt: list[int], tokens: list[int]) -> float:
    """Sum of the log-softmax of `tokens` after `prompt`, by one teacher-forced pass."""
    rows = forward(model, image, [*prompt, *tokens]).log_softmax(-1)
    return sum(rows[len(prompt) - 1 + step, token].item() for step, token in enumerate(tokens))


@pytest.mark.parametrize("question", [None, "what is in it?"])
def test_a_likelihood_is_that_of_one_teacher_forced_pass(model: CocaModel, question: str | None) -> None:
    candidates = [TEXTS, [], TEXTS[1:2]]
    scored = model.log_likelihoods(PICTURES, candidates, question)
    prompt = [model._tokenizer.sot_token_id, *encode(model, question or "")]
    assert [len(each.num_tokens) for each in scored] == [4, 0, 1]
    for picture, texts, likelihoods in zip(PICTURES, candidates, scored, strict=True):
        for row, text in enumerate(texts):
            tokens = [*encode(model, text), model._tokenizer.eot_token_id]
            expected = log_probability(model, picture, prompt, tokens)
            assert likelihoods.log_likelihood[row] == pytest.approx(expected, abs=1e-4)
            assert likelihoods.num_tokens[row] == len(tokens)


def test_order_and_other_images_do_not_change_a_likelihood(model: CocaModel) -> None:
    alone = model.log_likelihoods(PICTURES[:1], [TEXTS])[0].log_likelihood
    order = [2, 0, 3, 1]
    among = model.log_likelihoods(PICTURES[::-1], [TEXTS[:1], TEXTS, [TEXTS[row] for row in order]])[2].log_likelihood
    np.testing.assert_allclose(among, alone[order], atol=1e-4)
    assert np.ptp(alone) > 1


def test_an_image_goes_through_its_tower_once(model: CocaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    plain = model._model.visual.forward

    def counted(x: Any) -> Any:
        passes.append(len(x))
        return plain(x)

    monkeypatch.setattr(model._model.visual, "forward", counted)
    model.log_likelihoods(PICTURES, [TEXTS * 5] * 3)
    assert passes == [2, 1]


def test_yes_is_weighed_against_no_after_the_question_alone(model: CocaModel) -> None:
    questions = ["is a person riding a horse?", "is it a dog?"]
    probabilities = model.yes_probabilities(PICTURES[:2], [questions, questions[1:]])
    for picture, asked, shares in zip(PICTURES[:2], [questions, questions[1:]], probabilities, strict=True):
        for question, share in zip(asked, shares, strict=True):
            prompt = [model._tokenizer.sot_token_id, *encode(model, question)]
            yes, no = (log_probability(model, picture, prompt, encode(model, word)) for word in ("yes", "no"))
            assert share == pytest.approx(1 / (1 + np.exp(no - yes)), abs=1e-5)


def test_a_caption_is_what_argmax_says_token_by_token(model: CocaModel) -> None:
    together = model.answers(PICTURES, "a photo of")
    for picture, text in zip(PICTURES, together, strict=True):
        tokens = prompt = [model._tokenizer.sot_token_id, *encode(model, "a photo of")]
        while len(tokens) < 20:
            best = forward(model, picture, tokens)[len(tokens) - 1].argmax().item()
            if best == model._tokenizer.eot_token_id:
                break
            tokens = [*tokens, best]
        assert text == model._tokenizer.decode(tokens[len(prompt) :]).strip()
    assert model.captions(PICTURES) == model.answers(PICTURES, "")


def test_random_weights_are_always_the_same_ones(tmp_path: Path) -> None:
    config = VlmConfig(backend="coca", model=write_coca(tmp_path / "coca", full=False), pretrained="random")
    first, second = (CocaModel(config, "cpu").provenance() for _ in range(2))
    assert first == second
    assert str(tmp_path) not in json.dumps(first)
    other = CocaModel(config.model_copy(update={"max_new_tokens": 3}), "cpu").provenance()
    assert {key for key in first if first[key] != other[key]} == {"decoding"}


@pytest.mark.parametrize(
    ("model", "what", "where"),
    [
        ("clip", "the model is no CoCa", "vlms, model local-dir:"),
        ("coca_ViT-B-32", "the weights of coca_ViT-B-32 are not named", "vlms.NAME.pretrained"),
    ],
)
def test_what_is_no_coca_is_refused(model: str, what: str, where: str) -> None:
    clip = f"local-dir:{Path(hoi.world.__file__).parent / 'weights/clip'}"
    error = refused(CocaModel, VlmConfig(backend="coca", model=clip if model == "clip" else model), "cpu")
    assert error.what == what
    assert where in str(error.where)


def test_a_text_beyond_the_context_is_refused(model: CocaModel) -> None:
    error = refused(model.log_likelihoods, PICTURES[:1], [["a person " * 12]])
    assert "longer than the model's context" in error.what
    assert error.expected == "at most 20 tokens"
