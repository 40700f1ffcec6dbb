from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file

import hoi.world
from hoi.config import TeacherConfig, VlmConfig, WorldDetectorConfig
from hoi.datasets.world import world_vocabulary
from hoi.detectors.world import DetectorNet, DetectorShape, WorldDetector, boxes_at, load_detector, peaks
from hoi.prompts import interaction_prompts
from hoi.teachers import build_teacher
from hoi.teachers.loading import load_model
from hoi.vlm.coca import CocaModel, image_states
from hoi.vocabulary import Vocabulary
from hoi.world import OBJECTS, SceneAnnotation, draw, sample_scene
from hoi.world.models import WEIGHTS, captioner, clip, measure
from hoi.world.models import detector as training
from hoi.world.models.captioner import CaptionerRecipe
from hoi.world.models.clip import BPE_FILE, ClipRecipe, captioned_images, learn_merges
from hoi.world.models.detector import DetectorRecipe, annotated_images
from hoi.world.models.loop import row_batches, warmup_cosine
from tests.fakes.pipelines import refused

FEW: dict[str, Any] = {"num_scenes": 4, "crops_per_scene": 1, "batch_size": 4}
TINY_CLIP = ClipRecipe(**FEW, stored_px=40, image_px=32, width=8, joint_width=16, text_layers=1, text_width=32, steps=2)
TINY_DETECTOR = DetectorRecipe(
    num_scenes=3, shape=DetectorShape((4, 4, 4, 4, 4), 4), steps=2, batch_size=2, sizes_px=(96, 64)
)
TINY_CAPTIONER = CaptionerRecipe(**FEW, stored_px=72, sizes_px=(64, 96), steps=(1, 1), decoder_layers=1, warmup_steps=1)
TEACHER = TeacherConfig(model=f"local-dir:{WEIGHTS / 'clip'}")


def detector(vocabulary: Vocabulary) -> WorldDetector:
    config = WorldDetectorConfig(name="world", weights=str(WEIGHTS / "detector.safetensors"))
    return WorldDetector(config, vocabulary, "cpu")


def drawn(num_scenes: int) -> list[tuple[np.ndarray, SceneAnnotation]]:
    return [draw(sample_scene(0, "validation", index)) for index in range(num_scenes)]


def test_training_reads_splits_that_no_pipeline_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def spy(seed: int, split: str, index: int) -> hoi.world.Scene:
        seen.add(split)
        return hoi.world.sample_scene(seed, split, index)

    monkeypatch.setattr(clip, "sample_scene", spy)
    monkeypatch.setattr(training, "sample_scene", spy)
    for image, text in captioned_images(seed=0, num_scenes=2, crops_per_scene=2, size_px=48):
        assert (image.dtype, image.shape) == (np.uint8, (48, 48, 3))
        assert type(text) is str
        assert text.isascii()
        assert not any(character.isdigit() or character == "_" for character in text)
    for image, boxes, labels in annotated_images(seed=0, num_scenes=3):
        assert (image.dtype, boxes.dtype, labels.dtype) == (np.uint8, np.float32, np.int64)
        assert (image.shape, boxes.shape) == ((192, 192, 3), (len(labels), 4))
        assert set(labels.tolist()) <= set(range(len(OBJECTS)))
    assert seen == {"clip", "detector"}
    assert not seen & set(hoi.world.SPLITS)


def test_neither_training_can_reach_an_interaction(monkeypatch: pytest.MonkeyPatch) -> None:
    # `draw` and `annotate` are the only ways to pairs: CLIP's training has neither, the detector's drops the pairs.
    for name in ("annotate", "draw", "INTERACTIONS", "VERBS"):
        assert not hasattr(clip, name)
        assert name == "draw" or not hasattr(training, name)
    annotation = hoi.world.annotate(hoi.world.sample_scene(0, "detector", 0))
    without_pairs = hoi.world.SceneAnnotation(annotation.boxes_xyxy, annotation.labels, pairs=[])
    expected = next(annotated_images(0, 1))
    monkeypatch.setattr(training, "draw", lambda scene: (hoi.world.render(scene), without_pairs))
    for got, wanted in zip(next(annotated_images(0, 1)), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_trainings_repeat_by_their_seed_and_their_models_load(tmp_path: Path) -> None:
    lines: list[str] = []
    training.train_detector(TINY_DETECTOR, 4, tmp_path / "other", lines.append)
    for run in ("a", "b"):
        clip.train_clip(TINY_CLIP, 3, tmp_path / run / "clip", lines.append)
        training.train_detector(TINY_DETECTOR, 3, tmp_path / run / "detector", lines.append)
        captioner.train_captioner(TINY_CAPTIONER, 3, WEIGHTS / "clip", tmp_path / run / "coca", lines.append)
    first, again = (
        {file.relative_to(run): file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}
        for run in (tmp_path / "a", tmp_path / "b")
    )
    assert first == again
    assert first[Path("detector")] != (tmp_path / "other").read_bytes()
    folder = ["bpe_merges.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"]
    assert [str(name) for name in first] == [f"{part}/{f}" for part in ("clip", "coca") for f in folder] + ["detector"]
    assert lines[1].startswith("step 2/2 loss ")

    model = open_clip.create_model(f"local-dir:{tmp_path / 'a' / 'clip'}")
    assert model.encode_text(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 16)
    assert load_detector(tmp_path / "a" / "detector").class_names == OBJECTS
    start = load_file(WEIGHTS / "clip" / "open_clip_model.safetensors")
    learned = load_file(tmp_path / "a" / "coca" / "open_clip_model.safetensors")
    for name in ("visual.conv1.weight", "visual.attnpool.v_proj.weight"):
        assert not torch.equal(learned[name], start[name])
    assert not torch.equal(learned["text.token_embedding.weight"], start["token_embedding.weight"])
    config = VlmConfig(backend="coca", model=f"local-dir:{tmp_path / 'a' / 'coca'}", max_new_tokens=3)
    assert len(CocaModel(config, "cpu").captions([drawn(1)[0][0]])) == 1


def test_the_rate_warms_up_and_batches_are_epochs() -> None:
    rate = warmup_cosine(2.0, warmup_steps=4, steps=10)
    assert [rate(step) for step in (1, 4, 5)] == [0.5, 2.0, 2.0]
    assert rate(8) == pytest.approx(1.0)
    batches = row_batches(5, 2, torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(batches), next(batches)]).tolist() for _ in range(6)]
    assert all(len(set(epoch)) == 4 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_merges_join_the_most_frequent_pairs_first(tmp_path: Path) -> None:
    captions = ["to to to", "ta"]
    assert learn_merges(captions, 9) == [("t", "o</w>"), ("t", "a</w>")]
    assert learn_merges(captions, 1) == [("t", "o</w>")]
    clip.write_merges(learn_merges(captions, 9), tmp_path / "merges.gz")
    tokenizer = SimpleTokenizer(bpe_path=str(tmp_path / "merges.gz"), context_length=6)
    assert tokenizer.vocab_size == 2 * 256 + 2 + 2
    assert tokenizer.encode("to ta") == [512, 513]
    assert tokenizer("to ta").tolist() == [[514, 512, 513, 515, 0, 0]]


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    # Two images of one caption and one of another; every cosine is 0, so each softmax is over what is left of three.
    image, text = torch.zeros(3, 4), torch.zeros(3, 4)
    loss = clip.contrastive_loss(image, text, torch.tensor(10.0), torch.tensor([7, 7, 8]))
    assert float(loss) == pytest.approx((np.log(2) + np.log(2) + np.log(3)) / 3, abs=1e-6)


def test_a_square_beyond_the_image_is_padded() -> None:
    square = clip.cut_square(np.full((4, 4, 3), 9, np.uint8), left=-1, top=2, side=4, pad=5)
    assert square[:, :, 0].tolist() == [[5, 9, 9, 9], [5, 9, 9, 9], [5, 5, 5, 5], [5, 5, 5, 5]]


def test_detector_targets_decode_to_their_boxes() -> None:
    # A rider and a bicycle share their centre; a ball of 4 pixels is apart.
    boxes = torch.tensor([[20.0, 10.0, 60.0, 90.0], [10.0, 30.0, 70.0, 70.0], [100.0, 100.0, 104.0, 104.0]])
    labels, groups = torch.tensor([0, 1, 4]), torch.tensor([0] + [1] * 12)
    targets = training.make_targets([boxes], [labels], groups, (128, 128))
    x = (torch.arange(32) + 0.5) * 4
    wanted = targets.boxes[0]
    here = torch.stack(torch.meshgrid(x, x, indexing="xy"))
    distances = torch.cat([here - wanted[:, :2], wanted[:, 2:] - here], 1)
    # Only a centre cell has a logit above 0.
    logits = torch.logit(targets.heat[0].clamp(0.001, 0.999)) - 6
    decoded, _, classes = peaks(logits, distances, groups, (128, 128), min_score=0.5)
    assert classes.tolist() == [0, 1, 4]
    torch.testing.assert_close(decoded, boxes)
    torch.testing.assert_close(boxes_at(distances), wanted)
    perfect = torch.where(targets.heat == 1, 12.0, -12.0)[None, 0]
    assert float(training.detector_loss(perfect, distances[None], targets)) < 1e-3


def test_average_precision_by_hand() -> None:
    # Ranks 1 and 3 of four are positive: (1/1 + 2/3) / 2.
    scores, truth = np.array([0.9, 0.5, 0.4, 0.1]), np.array([True, False, True, False])
    assert measure.average_precision(scores, truth) == pytest.approx(5 / 6)


def test_open_clip_loads_the_committed_small_clip() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 12_000_000
    folder = WEIGHTS / "clip"
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / BPE_FILE))
    assert tokenizer.vocab_size == config["text_cfg"]["vocab_size"]
    assert not config["quick_gelu"]
    for texts in interaction_prompts(world_vocabulary(), TEACHER.prompts, TEACHER.no_interaction_prompts):
        for text in texts:
            assert len(tokenizer.encode(text)) == len(text.split()) + 1  # one token a word, and the full stop
    model = open_clip.create_model(f"local-dir:{folder}")
    assert sum(value.numel() for value in model.parameters()) < 4_000_000
    assert all(torch.isfinite(value).all() for value in load_file(folder / "open_clip_model.safetensors").values())


def test_the_committed_weights_know_the_world() -> None:
    # Lower than the minima of `hoi world train --check`, because scenes are few.
    scenes = drawn(24)
    figures = measure.measure_clip(build_teacher(TEACHER, "cpu"), world_vocabulary(), 1.15, scenes)
    assert figures.top1 > 0.8
    assert figures.top1_within_object >= figures.top1
    precision = measure.measure_detector(detector(world_vocabulary()), world_vocabulary(), scenes)
    assert np.mean([value for value in precision.values() if value >= 0]) > 0.85


def test_detector_classes_are_matched_by_name() -> None:
    whole, part = world_vocabulary(), Vocabulary(("dog", "person"), ("pet",), (("pet", "dog"),))
    images = [image for image, _ in drawn(6)]
    found = [detector(names).detect(images, [str(row) for row in range(6)]) for names in (whole, part)]
    for full, few in zip(*found, strict=True):
        for row, name in enumerate(part.objects):
            kept = few.scores[few.labels == row]
            np.testing.assert_array_equal(full.scores[full.labels == whole.objects.index(name)], kept)
        assert set(few.labels.tolist()) <= {0, 1}
    assert any((few.labels == 1).any() for few in found[1])


@pytest.mark.parametrize("name", ["nothing.safetensors", "clip/open_clip_model.safetensors", "MODEL_CARD.md"])
def test_a_missing_or_foreign_weight_file_is_named(name: str) -> None:
    error = refused(load_detector, WEIGHTS / name)
    what = "there is no such file" if name.startswith("nothing") else "no weight file of the world's detector"
    assert (what in error.what, str(WEIGHTS / name) in str(error.where)) == (True, True)


def test_a_detector_file_gives_back_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DetectorNet(("person", "kite"), DetectorShape((4, 4, 4, 4, 4), 4)).eval()
    for value in net.parameters():
        value.data = value.data.half().float()
    training.save_detector(net, tmp_path / "net.safetensors", {})
    again = load_detector(tmp_path / "net.safetensors")
    image = torch.rand(1, 3, 32, 64)
    assert again.class_names == ("person", "kite")
    for got, wanted in zip(again(image), net(image), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.fixture(scope="module")
def loaded_clip() -> Any:
    return load_model(TeacherConfig(model=f"local-dir:{WEIGHTS / 'clip'}"))


def test_it_starts_as_the_clip(loaded_clip: Any) -> None:
    model = captioner.build_captioner(
        captioner.model_config(replace(TINY_CAPTIONER, sizes_px=(96,)), loaded_clip.architecture)
    ).eval()
    captioner.start_from_clip(model, loaded_clip.model.state_dict())
    views = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    tokens = loaded_clip.tokenizer(["a person riding a horse", "a box"])
    with torch.inference_mode():
        embedding, image_tokens = image_states(model.visual, views)
        torch.testing.assert_close(embedding, loaded_clip.model.encode_image(views), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(image_tokens[:, 0], embedding)
        assert image_tokens.shape == (2, 1 + 3 * 3, 128)
        assert image_states(model.visual, torch.zeros(1, 3, 160, 160))[1].shape == (1, 1 + 5 * 5, 128)
        pooled, states = model.text(tokens)
        torch.testing.assert_close(pooled, loaded_clip.model.encode_text(tokens), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(captioner.token_states(model, tokens[:, :9]), states[:, :9], atol=1e-5, rtol=1e-4)


def test_of_a_question_only_the_answer_is_learned(loaded_clip: Any) -> None:
    texts = captioner.Texts(["a man riding a horse", "a man holding a horse", "a man in a hat"], loaded_clip.tokenizer)
    tokens, labels = texts.questions(torch.tensor([0, 2]), 2, torch.Generator().manual_seed(0))
    decode = loaded_clip.tokenizer.decode
    read = [decode([t for t in row.tolist() if 0 < t < texts.end - 1]).strip() for row in tokens]
    learned = [decode([t for t in row.tolist() if t not in (captioner.IGNORED, texts.end)]).strip() for row in labels]
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
    figures = measure.measure_captioner(model, world_vocabulary(), 1.15, scenes, [draw(scene) for scene in scenes])
    assert figures.perplexity < 4
    assert min(figures.top1_within_object[way] for way in ("likelihood", "sum", "mean", "yes_no")) > 0.75
    assert figures.image_map["likelihood"] > figures.chance_map + 0.1
    assert model.captions([np.full((50, 60, 3), 128, np.uint8)])[0]
