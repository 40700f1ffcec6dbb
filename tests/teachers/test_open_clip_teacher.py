"""The teacher as a whole: names and weights, texts, precision, provenance."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

import hoi.world
from hoi.config import TeacherConfig
from hoi.errors import UserError
from hoi.teachers import Teacher, build_teacher
from hoi.teachers.open_clip_teacher import OpenClipTeacher
from hoi.vocabulary import Vocabulary
from tests.fakes.models import teacher_config, write_clip
from tests.fakes.pipelines import refused

VOCABULARY = Vocabulary(
    ("person", "horse"), ("ride", "no_interaction"), (("ride", "horse"), ("no_interaction", "horse"))
)


def build(model: str, pretrained: str | None = None) -> Teacher:
    return build_teacher(TeacherConfig(model=model, pretrained=pretrained), "cpu")


def refusal(model: str, pretrained: str | None = None, **settings: Any) -> UserError:
    """Return the error with which a teacher is refused."""
    return refused(build_teacher, TeacherConfig(model=model, pretrained=pretrained, **settings), "cpu")


def crops(num: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def random_model(name: str, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.create_model_and_transforms(name, load_weights=False)[0]


def by_open_clip(model: Any) -> torch.Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), 0.2
    with torch.inference_mode():
        return model.eval().encode_image((crops() / 255 - mean) / std, normalize=True)


def test_crops_are_normalised_as_the_model_was_trained(tmp_path: Path) -> None:
    teacher = build_teacher(teacher_config(tmp_path), "cpu")
    embedding = teacher.encode_crops(crops())
    expected = by_open_clip(random_model(f"local-dir:{tmp_path / 'resnet'}"))
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(3))
    assert teacher.crop_style.fill_rgb == (128, 102, 76)
    assert not embedding.requires_grad


def test_a_text_row_is_the_mean_of_its_prompts(tmp_path: Path) -> None:
    prompts, of_none = ["a person {verb_ing} {a_object}", "{phrase}"], ["a person, {a_object}", "{object}"]
    both = teacher_config(tmp_path, prompts=prompts, no_interaction_prompts=of_none)
    bank = build_teacher(both, "cpu").text_bank(VOCABULARY)
    assert bank.prompts == (("a person riding a horse", "riding a horse"), ("a person, a horse", "horse"))
    halves = []
    for row in (0, 1):
        single = teacher_config(tmp_path, prompts=[prompts[row]], no_interaction_prompts=[of_none[row]])
        halves.append(build_teacher(single, "cpu").text_bank(VOCABULARY).text_embedding)
    expected = sum(halves) / np.linalg.norm(sum(halves), axis=1, keepdims=True)
    np.testing.assert_allclose(bank.text_embedding, expected, atol=1e-5)


def test_scale_and_bias_are_the_models(tmp_path: Path) -> None:
    plain = build_teacher(teacher_config(tmp_path), "cpu").text_bank(VOCABULARY)
    assert plain.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert plain.logit_bias is None
    file = tmp_path / "resnet" / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"] |= {"init_logit_bias": -10.0, "init_logit_scale": 2.0, "custom_text": True}
    file.write_text(json.dumps(config))
    sigmoid = build(f"local-dir:{file.parent}", "random").text_bank(VOCABULARY)
    assert sigmoid.logit_scale == pytest.approx(np.exp(2.0), rel=1e-5)
    assert sigmoid.logit_bias == -10.0


def test_a_word_list_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(hoi.world.__file__).parent / "weights/clip"
    here = build(f"local-dir:{folder}").text_bank(VOCABULARY)
    relative = os.path.relpath(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    there = build(f"local-dir:{relative}").text_bank(VOCABULARY)
    np.testing.assert_array_equal(here.text_embedding, there.text_embedding)


def test_random_weights_are_the_same_in_every_folder(tmp_path: Path) -> None:
    first = build_teacher(teacher_config(tmp_path / "a"), "cpu").provenance()
    torch.manual_seed(9)
    assert build_teacher(teacher_config(tmp_path / "b"), "cpu").provenance() == first
    assert str(tmp_path) not in json.dumps(first)


@pytest.mark.parametrize(
    "settings",
    [{"image_size_px": 128}, {"batch_size": 4}, {"crop": {"margins": (1.0,)}}, {"prompts": ["{phrase}"]}],
)
def test_provenance_follows_what_changes_content(tmp_path: Path, settings: dict) -> None:
    usual = build_teacher(teacher_config(tmp_path), "cpu").provenance()
    assert build_teacher(teacher_config(tmp_path, **settings), "cpu").provenance() != usual


def test_weights_come_from_the_folder(tmp_path: Path) -> None:
    name = write_clip(tmp_path / "model")
    model = random_model(name, seed=4)
    save_file(model.state_dict(), tmp_path / "model" / "open_clip_model.safetensors")
    loaded, random = build(name), build(name, "random")
    assert loaded.provenance()["weights_sha256"] != random.provenance()["weights_sha256"]
    torch.testing.assert_close(loaded.encode_crops(crops()), by_open_clip(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "pretrained", "what", "where", "expected"),
    [
        ("ViT-B-61", "openai", "no such model", "teacher.model", "ViT-B-16"),
        ("ViT-B-16", "laion2b_s34b_b78k", "no such weights", "teacher.pretrained", "laion2b_s34b_b88k"),
        ("ViT-B-16", "/nowhere/weights.pt", "no such weights", "teacher.pretrained", "a weight file; or random"),
        ("ViT-B-16", None, "weights of ViT-B-16 are not named", "teacher.pretrained", "openai"),
        ("ViT-B-16", "openai", "trained with QuickGELU", "teacher.model", "ViT-B-16-quickgelu"),
        ("RN50", "openai", "trained with QuickGELU", "teacher.model", "RN50-quickgelu"),
        ("local-dir:/nowhere", None, "no folder of an open_clip model", "/nowhere", "open_clip_config.json"),
    ],
)
def test_a_model_that_does_not_exist_is_named(
    model: str, pretrained: str | None, what: str, where: str, expected: str
) -> None:
    error = refusal(model, pretrained)
    assert what in error.what
    assert str(error.where) == where
    assert expected in str(error.expected)


def test_a_folder_that_is_not_complete_is_named(tmp_path: Path) -> None:
    name = write_clip(tmp_path)
    error = refusal(name)
    assert (error.what, error.where) == ("the folder holds no weights", tmp_path)
    assert refusal(name, "openai").what == "the weights are named twice"
    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "open_clip_model.safetensors")
    assert "positional_embedding" in str(refusal(name).expected)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"cut")
    assert refusal(name).what == "the weight file cannot be read"
    for content in ("{", "[]", '{"model_cfg": {"embed_dim": "x"}}', "[" * 10_000):
        (tmp_path / "open_clip_config.json").write_text(content)
        assert refusal(name).what == "this is no open_clip model config"


@pytest.mark.parametrize(
    ("width", "what"),
    [(16_384, "the weights are smaller than the model"), (1 << 40, "this is no open_clip model config")],
)
def test_a_model_larger_than_its_weights_is_not_built(tmp_path: Path, width: int, what: str) -> None:
    name, file = write_clip(tmp_path, "vit"), tmp_path / "open_clip_config.json"
    save_file(random_model(name).state_dict(), tmp_path / "open_clip_model.safetensors")
    config = json.loads(file.read_text())
    config["model_cfg"]["vision_cfg"]["width"] = width
    file.write_text(json.dumps(config))
    assert refusal(name).what == what
    # One number, shown many times.
    (tmp_path / "open_clip_model.safetensors").unlink()
    torch.save({"logit_scale": torch.ones(1).expand(1 << 40)}, tmp_path / "open_clip_pytorch_model.bin")
    assert refusal(name).what == what


def quickgelu(folder: Path) -> str:
    """Write a model that computes QuickGELU, as OpenAI's do."""
    name = write_clip(folder, "vit")
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["quick_gelu"] = True
    file.write_text(json.dumps(config))
    return name


def test_weights_of_openai_load_where_the_activation_is_theirs(tmp_path: Path) -> None:
    name, file = quickgelu(tmp_path), tmp_path / "ViT.pt"
    model = random_model(name, seed=4)
    state = model.state_dict() | {key: torch.tensor(64) for key in ("input_resolution", "context_length", "vocab_size")}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    loaded = build(name)
    expected = model.eval()(None, torch.zeros(1, 77, dtype=torch.long))[1]
    found = loaded._model(None, torch.zeros(1, 77, dtype=torch.long))[1]  # type: ignore[attr-defined]
    torch.testing.assert_close(found, expected.detach())
    plain = write_clip(tmp_path, "vit")
    assert "trained with QuickGELU" in refusal(plain).what
    error = refusal("ViT-B-16", str(file))
    assert ("trained with QuickGELU" in error.what, error.expected) == (True, "ViT-B-16-quickgelu")


@pytest.mark.parametrize(
    ("model", "has_notice"), [("ViT-B-16", True), ("ViT-B-16-quickgelu", False), ("ViT-B-16-SigLIP", False)]
)
def test_a_file_under_a_name_with_a_quickgelu_twin_gets_a_notice(tmp_path: Path, model: str, has_notice: bool) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    notice = TeacherConfig(model=model, pretrained=str(tmp_path / "a.pt")).activation_notice()
    assert (notice is not None) == has_notice
    assert TeacherConfig(model=model, pretrained="random").activation_notice() is None


def test_a_tokenizer_out_of_reach_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    error = refusal(write_clip(tmp_path), "random")
    assert error.what == "the teacher's tokenizer cannot be loaded"


def test_several_weight_files_are_not_guessed_among(tmp_path: Path) -> None:
    name = write_clip(tmp_path)
    for file in ("a.pth", "b.pth"):
        torch.save({}, tmp_path / file)
    assert refusal(name).what == "the folder holds several weight files"


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    name = write_clip(tmp_path)
    state = random_model(name).state_dict()
    state["text_projection"][0, 0] = torch.inf
    save_file(state, tmp_path / "open_clip_model.safetensors")
    error = refusal(name)
    assert (error.what, "text_projection" in str(error.where)) == ("a weight is not finite", True)


@pytest.mark.parametrize(
    ("seconds", "cosine", "expected"),
    [(0.5, 0.999, "bf16"), (0.9, 0.999, "fp32"), (2.0, 0.999, "fp32"), (0.1, 1.01, "fp32")],
)
def test_auto_takes_what_is_clearly_faster_and_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, cosine: float, expected: str
) -> None:
    clock = {"fp32": 1.0, "bf16": seconds}
    monkeypatch.setattr(OpenClipTeacher, "_seconds", lambda _, precision: clock[precision])
    monkeypatch.setattr("hoi.teachers.open_clip_teacher.MIN_PRECISION_COSINE", cosine)
    teacher = build_teacher(teacher_config(tmp_path, precision="auto"), "cpu")
    monkeypatch.undo()
    named = build_teacher(teacher_config(tmp_path, precision=expected), "cpu")
    assert teacher.provenance() == named.provenance()
    assert torch.equal(teacher.encode_crops(crops()), named.encode_crops(crops()))


def test_auto_measures_this_machine(tmp_path: Path) -> None:
    teacher = build_teacher(teacher_config(tmp_path, precision="auto"), "cpu")
    assert teacher.provenance()["precision"] in ("fp32", "bf16")


def test_a_precision_that_moves_embeddings_is_refused(tmp_path: Path) -> None:
    assert build_teacher(teacher_config(tmp_path, precision="bf16"), "cpu").encode_crops(crops()).isfinite().all()
    name = write_clip(tmp_path / "huge")
    model = random_model(name)
    # Activations above 65504 overflow in fp16.
    model.visual.conv1.weight.data *= 1e7
    save_file(model.state_dict(), tmp_path / "huge" / "open_clip_model.safetensors")
    error = refusal(name, precision="fp16")
    assert (error.what, error.where) == ("precision fp16 changes the teacher's embeddings", "teacher.precision")
    assert error.fix == "set teacher.precision to fp32 or bf16"
