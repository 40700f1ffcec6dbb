from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hoi.config import TeacherConfig, VlmConfig
from hoi.datasets.world import world_vocabulary
from hoi.teachers.loading import load_model
from hoi.vlm.coca import CocaModel, image_states
from hoi.world import draw, sample_scene
from hoi.world.models import WEIGHTS
from hoi.world.models.captioner import (
    IGNORED,
    CaptionerRecipe,
    Texts,
    build_captioner,
    model_config,
    start_from_clip,
    token_states,
    train_captioner,
)
from hoi.world.models.clip import captioned_images
from hoi.world.models.measure import measure_captioner

TINY = CaptionerRecipe(stored_px=72, sizes_px=(64, 96), steps=(1, 1), decoder_layers=1, batch_size=4, warmup_steps=1)


def test_a_training_repeats_by_its_seed_and_learns_every_part(tmp_path: Path) -> None:
    pairs = list(captioned_images(seed=0, num_scenes=3, crops_per_scene=1, size_px=TINY.stored_px))
    for name in ("a", "b"):
        train_captioner(pairs, TINY, 0, WEIGHTS / "clip", tmp_path / name, lambda _: None)
    first, second = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    clip = load_file(WEIGHTS / "clip" / "open_clip_model.safetensors")
    for name in ("visual.conv1.weight", "visual.attnpool.v_proj.weight"):
        assert not torch.equal(first[name], clip[name])
    assert not torch.equal(first["text.token_embedding.weight"], clip["token_embedding.weight"])
    model = CocaModel(VlmConfig(backend="coca", model=f"local-dir:{tmp_path / 'a'}", max_new_tokens=3), "cpu")
    assert len(model.captions([pairs[0][0]])) == 1


@pytest.fixture(scope="module")
def clip() -> Any:
    return load_model(TeacherConfig(model=f"local-dir:{WEIGHTS / 'clip'}"))


def test_it_starts_as_the_clip(clip: Any) -> None:
    model = build_captioner(model_config(replace(TINY, sizes_px=(96,)), clip.architecture)).eval()
    start_from_clip(model, clip.model.state_dict())
    views = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = clip.tokenizer(["a person riding a horse", "a box"])
    with torch.inference_mode():
        embedding, image_tokens = image_states(model.visual, views)
        torch.testing.assert_close(embedding, clip.model.encode_image(views), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(image_tokens[:, 0], embedding)
        assert image_tokens.shape == (2, 1 + 3 * 3, 128)
        assert image_states(model.visual, torch.zeros(1, 3, 160, 160))[1].shape == (1, 1 + 5 * 5, 128)
        pooled, states = model.text(tokens)
        torch.testing.assert_close(pooled, clip.model.encode_text(tokens), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(token_states(model, tokens[:, :9]), states[:, :9], atol=1e-5, rtol=1e-4)


def test_of_a_question_only_the_answer_is_learned(clip: Any) -> None:
    texts = Texts(["a man riding a horse", "a man holding a horse", "a man in a hat"], clip.tokenizer)
    tokens, labels = texts.questions(torch.tensor([0, 2]), 2, torch.Generator().manual_seed(0))
    decode = clip.tokenizer.decode
    read = [decode([t for t in row.tolist() if 0 < t < texts.end - 1]).strip() for row in tokens]
    learned = [decode([t for t in row.tolist() if t not in (IGNORED, texts.end)]).strip() for row in labels]
    assert read[:2] == ["is a person riding a horse ? yes", "is a person holding a horse ? no"]
    # The last caption has nothing to ask.
    assert learned == ["yes", "no", "", ""]
    assert (labels[:2] == texts.end).sum(1).tolist() == [1, 1]


def test_the_committed_captioner_knows_scenes_it_never_saw() -> None:
    folder = WEIGHTS / "coca"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 8_000_000
    state = load_file(folder / "open_clip_model.safetensors")
    assert {value.dtype for value in state.values()} <= {torch.float16, torch.int64}
    model = CocaModel(VlmConfig(backend="coca", model=f"local-dir:{folder}", batch_size=32), "cpu")
    scenes = [sample_scene(0, "test", index) for index in range(8)]
    figures = measure_captioner(model, world_vocabulary(), 1.15, scenes, [draw(scene) for scene in scenes])
    assert figures.perplexity < 4
    assert min(figures.top1_within_object[way] for way in ("likelihood", "sum", "mean", "yes_no")) > 0.75
    assert figures.image_map["likelihood"] > figures.chance_map + 0.1
    assert model.captions([np.full((50, 60, 3), 128, np.uint8)])[0]
