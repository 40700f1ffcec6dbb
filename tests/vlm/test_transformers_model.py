"""Real architectures with random weights: one pass for all candidates against a pass each, and what is refused.

Tokenisers, processors and weights are built here and read back from a folder, as a user's would be.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hoi.config import VlmConfig
from hoi.errors import UserError
from hoi.vlm import build_vlm
from hoi.vlm.transformers_model import common_length, first_token_share, likelihoods, plain_likelihoods, run_prefix

transformers = pytest.importorskip("transformers", reason="needs the extra vlm (transformers)")

from safetensors.torch import load_file, save_file  # noqa: E402

from hoi.vlm.transformers_model import TransformersModel  # noqa: E402
from tests.fakes.models import FAMILIES, write_vlm  # noqa: E402
from tests.fakes.pipelines import refused  # noqa: E402

CANDIDATES = ["riding a horse", "no", "holding an umbrella in the rain and walking a dog", "sitting on a bench"]
QUESTION = "What is the person doing?"

Folder = Callable[[str], Path]
Load = Callable[[str], TransformersModel]


def config(folder: Path | str, **settings: Any) -> VlmConfig:
    return VlmConfig(backend="transformers", model=str(folder), **{"max_new_tokens": 8, "batch_size": 3, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return what writes the model of a family, once, and gives its folder."""
    root = tmp_path_factory.mktemp("models")
    return cache(lambda family: write_vlm(root / family, family))


@pytest.fixture(scope="module")
def load(folder: Folder) -> Load:
    """Return what loads the model of a family, once."""
    return cache(lambda family: TransformersModel(config(folder(family)), "cpu"))


@pytest.fixture
def broken(folder: Folder, tmp_path: Path) -> Path:
    """A copy of a model that a test may break."""
    return Path(shutil.copytree(folder("llava"), tmp_path / "model"))


def pictures() -> list[np.ndarray]:
    """Two of different shapes, so that their numbers of tokens differ where a model's does."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((90, 120), (200, 100))]


def by_plain_passes(model: TransformersModel, image: np.ndarray, texts: list[str]) -> list[float]:
    """Return each candidate's sum of log-probabilities, by one forward pass over image, question and candidate."""
    inputs = model.inputs(image, QUESTION)
    with torch.inference_mode():
        return [plain_likelihoods(model.model, inputs, text).sum().item() for text in model.tokens(inputs, texts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_gives_what_plain_passes_give(family: str, load: Load) -> None:
    model, images = load(family), pictures()
    assert model.provenance()["shared_prefix"]["candidates"] is True
    # Four candidates in batches of three, of one to a dozen tokens; the second image follows upon the first.
    scored = model.log_likelihoods(images, [CANDIDATES, CANDIDATES[:2]], QUESTION)
    for image, texts, each in zip(images, (CANDIDATES, CANDIDATES[:2]), scored, strict=True):
        np.testing.assert_allclose(each.log_likelihood, by_plain_passes(model, image, texts), atol=1e-4)
    assert np.abs(scored[0].log_likelihood[:2] - scored[1].log_likelihood).min() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_writes_by_itself_is_as_likely_as_it_says(family: str, load: Load) -> None:
    model = load(family)
    inputs = model.inputs(pictures()[0], QUESTION)
    with torch.inference_mode():
        written = model.model.generate(
            **inputs, do_sample=False, max_new_tokens=5, output_logits=True, return_dict_in_generate=True
        )
        text = written.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        [log_p] = likelihoods(model.model, run_prefix(model.model, inputs), [text], 1)
    for step, token in enumerate(text):
        expected = written.logits[step][0].log_softmax(-1)[token]
        assert log_p[step].item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_model_that_loses_its_state_takes_plain_passes(
    folder: Folder, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(model: Any, inputs: Any) -> Any:
        prefix = run_prefix(model, inputs)
        # Where the image lies, without which the positions of what follows are wrong.
        model.model.rope_deltas = None
        return prefix

    monkeypatch.setattr("hoi.vlm.transformers_model.run_prefix", forgetful)
    model = build_vlm(config(folder("qwen2_vl")), "cpu")
    assert model.provenance()["shared_prefix"] == {"candidates": False, "questions": False}
    [scored] = model.log_likelihoods(pictures()[:1], [CANDIDATES], QUESTION)
    expected = by_plain_passes(load("qwen2_vl"), pictures()[0], CANDIDATES)
    np.testing.assert_allclose(scored.log_likelihood, expected, atol=1e-5)


@pytest.mark.parametrize(("family", "shares"), [("qwen3_vl", True), ("qwen3_5", True), ("paligemma", False)])
def test_questions_share_the_image_where_that_changes_nothing(family: str, shares: bool, load: Load) -> None:
    # PaliGemma's prompt is read both ways, so that its image is another one under another question.
    model, questions = load(family), [f"Is a person {text}?" for text in CANDIDATES]
    assert model.provenance()["shared_prefix"]["questions"] is shares
    [together] = model.yes_probabilities(pictures()[:1], [questions])
    alone = [model.yes_probabilities(pictures()[:1], [[question]])[0][0] for question in questions]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 0.01
    assert model.yes_probabilities(pictures()[:1], [[]])[0].shape == (0,)


def test_the_share_of_yes_counts_every_spelling() -> None:
    # e^0 + e^1 for yes against e^1 for no; the last token is neither.
    logits = torch.tensor([0.0, 1.0, 1.0, 9.0])
    assert first_token_share(logits, [0, 1], [2]) == pytest.approx((1 + math.e) / (1 + 2 * math.e))


@pytest.mark.parametrize(("family", "gap"), [("qwen2_vl", ""), ("llava", " "), ("idefics3", " "), ("paligemma", "")])
def test_a_candidate_is_tokenized_at_the_end_of_the_prompt(family: str, gap: str, load: Load) -> None:
    # Chat templates that end in a line end take no space before an answer; "ASSISTANT:" takes one.
    model = load(family)
    inputs = model.inputs(pictures()[0], QUESTION)
    [tokens] = model.tokens(inputs, ["riding a horse"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.model.name_or_path)
    last = tokenizer.decode(inputs["input_ids"][0, -1:].tolist())
    assert tokens[-1] == tokenizer.eos_token_id
    end = "?" if family == "paligemma" else ":"
    together = tokenizer.encode(f"{end}{gap}riding a horse", add_special_tokens=False)
    assert tokens[:-1] == together[len(tokenizer.encode(end, add_special_tokens=False)) :]
    assert last.endswith("\n") is (gap == "")


def test_answers_are_greedy_whatever_the_folder_says(folder: Folder, load: Load, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder("qwen2_vl"), tmp_path / "model"))
    settings = json.loads((copy / "generation_config.json").read_text())
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0}
    (copy / "generation_config.json").write_text(json.dumps({**settings, **sampling}))
    model, plain = build_vlm(config(copy, caption_question=QUESTION), "cpu"), load("qwen2_vl")
    sampled = model.answers(pictures(), QUESTION)
    assert sampled == plain.answers(pictures(), QUESTION) == model.captions(pictures())
    assert len(set(sampled)) == 2


def test_provenance_follows_weights_and_prompts_alone(folder: Folder, load: Load, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder("qwen2_vl"), tmp_path / "elsewhere"))
    ours = load("qwen2_vl").provenance()
    assert json.loads(json.dumps(ours)) == ours
    assert build_vlm(config(moved), "cpu").provenance() == ours
    assert ours["versions"]["transformers"] == transformers.__version__
    template = (moved / "chat_template.jinja").read_text()
    (moved / "chat_template.jinja").write_text("Look. " + template)
    changed = build_vlm(config(moved), "cpu").provenance()
    assert {name for name in ours if ours[name] != changed[name]} == {"chat_template_sha256"}
    other = build_vlm(config(write_vlm(tmp_path / "other", "qwen2_vl", seed=1)), "cpu").provenance()
    assert {name for name in ours if ours[name] != other[name]} == {"weights_sha256"}


def test_random_weights_need_no_weight_file(broken: Path) -> None:
    (broken / "model.safetensors").unlink()
    first, second = (build_vlm(config(broken, pretrained="random"), "cpu").provenance() for _ in range(2))
    assert first == second


def test_common_tokens_leave_one_to_each_text() -> None:
    assert common_length([[1, 2, 3], [1, 2, 4]]) == 2
    assert common_length([[1, 2], [1, 2, 4]]) == 1
    assert common_length([[5], [6]]) == 0


def refusal(model: Path | str) -> UserError:
    """Return the error with which a model is refused."""
    return refused(build_vlm, config(model), "cpu")


def test_code_beside_the_weights_is_never_run(broken: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (broken / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    settings = json.loads((broken / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}}
    (broken / "config.json").write_text(json.dumps(settings))
    assert "code of its own, which is never run" in refusal(broken).what
    assert not marker.exists()


def test_pickled_weights_are_refused(broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    error = refusal(broken)
    assert error.what == "the model's weights cannot be read"
    assert "model.safetensors" in str(error.got)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_tensor_that_is_missing_or_does_not_fit_is_named(broken: Path, is_there: bool) -> None:
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    cut = weights.pop(name)[:5]
    save_file({**weights, name: cut} if is_there else weights, broken / "model.safetensors", metadata={"format": "pt"})
    error = refusal(broken)
    assert error.what == "the weights do not fit the model"
    assert "up_proj" in str(error.got)


def test_a_model_that_does_not_see_the_image_is_refused(broken: Path) -> None:
    weights = load_file(broken / "model.safetensors")
    blind = {name: value * ("multi_modal_projector" not in name) for name, value in weights.items()}
    save_file(blind, broken / "model.safetensors", metadata={"format": "pt"})
    assert "same of two different pictures" in refusal(broken).what


def test_a_template_without_a_place_for_the_image_is_refused(broken: Path) -> None:
    (broken / "chat_template.jinja").write_text("{{ messages[0]['role'] }}: say something")
    error = refusal(broken)
    assert "no place for an image" in error.what
    assert "<image> included" in str(error.fix)


@pytest.mark.parametrize(
    ("kind", "what"), [("GPT2", "does not turn images and text into text"), ("Florence2", "an encoder of its own")]
)
def test_models_of_other_kinds_are_refused(tmp_path: Path, kind: str, what: str) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path)
    error = refusal(tmp_path)
    assert what in error.what
    assert error.got == kind.lower()


def test_what_is_not_there_is_named(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (broken / name).unlink(missing_ok=True)
    assert refusal(broken).what == "the model's processor cannot be read"
    assert refusal(tmp_path / "gone").what == "there is no such model folder"
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = refusal("owner/name")
    assert error.what == "the package transformers is not installed"
    assert error.fix == "pip install 'hoi-distill[vlm]'"
