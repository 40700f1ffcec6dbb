from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hoi.world
from hoi.config import VlmConfig
from hoi.errors import UserError
from hoi.vlm import build_vlm
from hoi.vlm.coca import CocaModel
from hoi.world.models.clip import BPE_FILE

WORLD = Path(hoi.world.__file__).parent / "weights"
TEXTS = ["a person riding a horse", "a ball", "a person sitting on a park bench", "a dog and a box"]
PICTURES = [np.random.default_rng(seed).integers(0, 256, (40 + 9 * seed, 64, 3), dtype=np.uint8) for seed in range(3)]
PLAIN: dict[str, Any] = {"text": {}, "vision": {}}
FULL = {"text": {"embed_cls": True}, "vision": {"attentional_pool": True, "attn_pooler_queries": 9}}
"""As the published models are: a class token in the text tower, and an attentional pooler."""


def small_folder(folder: Path, kind: dict[str, Any]) -> Path:
    """A folder of a CoCa with the parts of the full-size one, for random weights."""
    text = {"context_length": 20, "vocab_size": 808, "width": 32, "heads": 2, "layers": 2, "output_tokens": True}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2, "output_tokens": True}
    config = {
        "embed_dim": 32,
        "vision_cfg": vision | {"attn_pooler_heads": 2} | kind["vision"],
        "text_cfg": text | {"tokenizer_kwargs": {"bpe_path": BPE_FILE}} | kind["text"],
        "multimodal_cfg": {"context_length": 20, "vocab_size": 808, "width": 32, "heads": 2, "layers": 2},
        "custom_text": True,
    }
    folder.mkdir()
    shutil.copyfile(WORLD / "clip" / BPE_FILE, folder / BPE_FILE)
    written = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module", params=["plain", "full"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CocaModel:
    kind = {"plain": PLAIN, "full": FULL}[request.param]
    folder = small_folder(tmp_path_factory.mktemp("coca") / request.param, kind)
    config = VlmConfig(backend="coca", model=f"local-dir:{folder}", pretrained="random", batch_size=2)
    found = build_vlm(config, "cpu")
    assert isinstance(found, CocaModel)
    return found


def forward(model: CocaModel, image: np.ndarray, tokens: list[int]) -> torch.Tensor:
    """Logits [context, vocabulary] by open_clip's own forward pass over one image and one padded text."""
    padded = torch.tensor([tokens + [0] * (20 - len(tokens))])
    with torch.inference_mode():
        image_tokens = model._image_tokens([image])[0]
        found = model._model(None, padded, torch.zeros(1, 32), image_tokens, output_labels=False)
    return found["logits"][0]


@pytest.mark.parametrize("question", [None, "what is in it?"])
def test_a_likelihood_is_the_sum_of_the_log_softmax_of_one_teacher_forced_pass(
    model: CocaModel, question: str | None
) -> None:
    found = model.log_likelihoods(PICTURES, [TEXTS, [], TEXTS[1:2]], question)
    start, encode = model._tokenizer.sot_token_id, model._tokenizer.encode
    prompt = [start, *encode(question or "")]
    assert [len(each.num_tokens) for each in found] == [4, 0, 1]
    for picture, texts, likelihoods in zip(PICTURES, [TEXTS, [], TEXTS[1:2]], found, strict=True):
        for at, text in enumerate(texts):
            candidate = [*encode(text), model._tokenizer.eot_token_id]
            log_p = forward(model, picture, [*prompt, *candidate]).log_softmax(-1)
            plain = sum(log_p[len(prompt) - 1 + step, token].item() for step, token in enumerate(candidate))
            assert likelihoods.log_likelihood[at] == pytest.approx(plain, abs=1e-4)
            assert likelihoods.num_tokens[at] == len(candidate)


def test_neither_the_order_of_candidates_nor_the_other_images_change_a_likelihood(model: CocaModel) -> None:
    alone = model.log_likelihoods(PICTURES[:1], [TEXTS])[0].log_likelihood
    order = [2, 0, 3, 1]
    among = model.log_likelihoods(PICTURES[::-1], [TEXTS[:1], TEXTS, [TEXTS[row] for row in order]])[2].log_likelihood
    np.testing.assert_allclose(among, alone[order], atol=1e-4)
    assert np.ptp(alone) > 1


def test_an_image_goes_through_its_tower_once_however_many_candidates_it_has(
    model: CocaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    plain = model._model.visual.forward
    monkeypatch.setattr(model._model.visual, "forward", lambda x: passes.append(len(x)) or plain(x))
    model.log_likelihoods(PICTURES, [TEXTS * 5] * 3)
    assert passes == [2, 1]


def test_yes_is_weighed_against_no_after_the_question_alone(model: CocaModel) -> None:
    questions = ["is a person riding a horse?", "is it a dog?"]
    found = model.yes_probabilities(PICTURES[:2], [questions, questions[1:]])
    encode = model._tokenizer.encode
    for picture, asked, shares in zip(PICTURES, [questions, questions[1:]], found, strict=False):
        for question, share in zip(asked, shares, strict=True):
            prompt, log_p = [model._tokenizer.sot_token_id, *encode(question)], {}
            for word in ("yes", "no"):
                rows = forward(model, picture, [*prompt, *encode(word)]).log_softmax(-1)
                log_p[word] = sum(rows[len(prompt) - 1 + at, token].item() for at, token in enumerate(encode(word)))
            assert share == pytest.approx(1 / (1 + np.exp(log_p["no"] - log_p["yes"])), abs=1e-5)


def test_a_caption_is_what_argmax_says_token_by_token(model: CocaModel) -> None:
    together = model.answers(PICTURES, "a photo of")
    for picture, text in zip(PICTURES, together, strict=True):
        tokens = prompt = [model._tokenizer.sot_token_id, *model._tokenizer.encode("a photo of")]
        while len(tokens) < 20:
            best = forward(model, picture, tokens)[len(tokens) - 1].argmax().item()
            if best == model._tokenizer.eot_token_id:
                break
            tokens = [*tokens, best]
        assert text == model._tokenizer.decode(tokens[len(prompt) :]).strip()
    assert model.captions(PICTURES) == model.answers(PICTURES, "")


def test_random_weights_are_always_the_same_ones(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "coca", PLAIN)
    config = VlmConfig(backend="coca", model=f"local-dir:{folder}", pretrained="random")
    first, second = (CocaModel(config, "cpu").provenance() for _ in range(2))
    assert first == second
    assert str(tmp_path) not in json.dumps(first)
    other = CocaModel(config.model_copy(update={"max_new_tokens": 3}), "cpu").provenance()
    assert {key for key in first if first[key] != other[key]} == {"decoding"}


def test_what_is_no_coca_and_what_is_too_long_are_refused(model: CocaModel) -> None:
    with pytest.raises(UserError, match=r"the model is no CoCa .* got: CLIP"):
        CocaModel(VlmConfig(backend="coca", model=f"local-dir:{WORLD / 'clip'}"), "cpu")
    with pytest.raises(UserError, match=r"the weights of coca_ViT-B-32 are not named · where: vlms\.NAME\.pretrained"):
        CocaModel(VlmConfig(backend="coca", model="coca_ViT-B-32"), "cpu")
    with pytest.raises(UserError, match=r"longer than the model's context .* at most 20 tokens"):
        model.log_likelihoods(PICTURES[:1], [["a person " * 12]])
