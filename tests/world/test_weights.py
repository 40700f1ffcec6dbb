from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

import hoi.world
from hoi.config import TeacherConfig, WorldDetectorConfig
from hoi.datasets.world import world_vocabulary
from hoi.detectors.world import WorldDetector
from hoi.errors import UserError
from hoi.prompts import interaction_prompts
from hoi.teachers import build_teacher
from hoi.vocabulary import Vocabulary
from hoi.world import OBJECTS, clip, measure
from hoi.world import detector as detector_module
from hoi.world.clip import (
    BPE_FILE,
    ClipRecipe,
    captioned_images,
    contrastive_loss,
    cut_square,
    learn_merges,
    open_tokenizer,
    write_merges,
)
from hoi.world.detector import (
    DetectorNet,
    DetectorRecipe,
    DetectorShape,
    annotated_images,
    boxes_at,
    detector_loss,
    load_detector,
    make_targets,
    peaks,
    save_detector,
)

WEIGHTS = Path(hoi.world.__file__).parent / "weights"
TINY_CLIP = ClipRecipe(
    stored_px=40, image_px=32, width=8, joint_width=16, text_layers=1, text_width=32, steps=2, batch_size=4
)
TINY_DETECTOR = DetectorRecipe(shape=DetectorShape((4, 4, 4, 4, 4), 4), steps=2, batch_size=2, sizes_px=(96, 64))


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher_config() -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{WEIGHTS / 'clip'}")


@pytest.fixture(scope="module")
def detector() -> WorldDetector:
    config = WorldDetectorConfig(name="world", weights=str(WEIGHTS / "detector.safetensors"))
    return WorldDetector(config, world_vocabulary(), "cpu")


# What the trainings are fed


def test_clip_is_fed_images_and_captions_and_nothing_else() -> None:
    for item in captioned_images(seed=0, num_scenes=2, crops_per_scene=2, size_px=48):
        assert type(item) is tuple
        assert len(item) == 2
        image, text = item
        assert type(image) is np.ndarray
        assert image.dtype == np.uint8
        assert image.shape == (48, 48, 3)
        assert type(text) is str
        assert text.isascii()
        assert not any(character.isdigit() or character == "_" for character in text)


def test_the_detector_is_fed_images_boxes_and_object_classes_and_nothing_else() -> None:
    for item in annotated_images(seed=0, num_scenes=3):
        assert type(item) is tuple
        assert len(item) == 3
        image, boxes, labels = item
        assert (image.dtype, boxes.dtype, labels.dtype) == (np.uint8, np.float32, np.int64)
        assert image.shape == (192, 192, 3)
        assert boxes.shape == (len(labels), 4)
        assert set(labels.tolist()) <= set(range(len(OBJECTS)))


def test_neither_training_can_reach_an_interaction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # `draw` and `annotate` are the only ways to pairs: CLIP's training gets neither, the detector's drops the pairs.
    for name in ("annotate", "draw", "INTERACTIONS", "VERBS"):
        assert not hasattr(clip, name)
    for name in ("annotate", "INTERACTIONS", "VERBS"):
        assert not hasattr(detector_module, name)
    annotation = hoi.world.annotate(hoi.world.sample_scene(0, "detector", 0))
    without_pairs = hoi.world.SceneAnnotation(annotation.boxes_xyxy, annotation.labels, pairs=[])
    expected = next(annotated_images(0, 1))
    monkeypatch.setattr(detector_module, "draw", lambda scene: (hoi.world.render(scene), without_pairs))
    for got, wanted in zip(next(annotated_images(0, 1)), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_trainings_see_splits_that_no_pipeline_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    def spy(seed: int, split: str, index: int) -> hoi.world.Scene:
        seen.add(split)
        return hoi.world.sample_scene(seed, split, index)

    monkeypatch.setattr(clip, "sample_scene", spy)
    monkeypatch.setattr(detector_module, "sample_scene", spy)
    next(captioned_images(0, 1, 0, 32))
    next(annotated_images(0, 1))
    assert seen == {"clip", "detector"}
    assert not seen & set(hoi.world.SPLITS)


# The trainings run


def test_clip_training_is_repeatable_and_open_clip_loads_what_it_writes(tmp_path: Path) -> None:
    written = []
    for run in ("a", "b"):
        pairs = captioned_images(0, 4, 1, TINY_CLIP.stored_px)
        clip.train_clip(pairs, TINY_CLIP, 3, tmp_path / run, lambda line: None)
        written.append({file.name: file.read_bytes() for file in (tmp_path / run).iterdir()})
    assert sorted(written[0]) == [BPE_FILE, "open_clip_config.json", "open_clip_model.safetensors"]
    assert written[0] == written[1]
    model = open_clip.create_model(f"local-dir:{tmp_path / 'a'}")
    assert model.encode_text(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 16)


def test_detector_training_is_repeatable_and_its_file_names_the_classes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        detector_module.train_detector(
            annotated_images(0, 3), OBJECTS, TINY_DETECTOR, 3, tmp_path / run, lambda line: None
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_detector(tmp_path / "a").class_names == OBJECTS


def test_one_seed_is_not_another(tmp_path: Path) -> None:
    for seed in (0, 1):
        detector_module.train_detector(
            annotated_images(0, 3), OBJECTS, TINY_DETECTOR, seed, tmp_path / str(seed), lambda line: None
        )
    assert (tmp_path / "0").read_bytes() != (tmp_path / "1").read_bytes()


# Parts, by hand


def test_merges_join_the_most_frequent_pairs_first_and_stop_at_whole_words(tmp_path: Path) -> None:
    captions = ["to to to", "ta"]
    assert learn_merges(captions, 9) == [("t", "o</w>"), ("t", "a</w>")]
    assert learn_merges(captions, 1) == [("t", "o</w>")]
    write_merges(learn_merges(captions, 9), tmp_path / "merges.gz")
    tokenizer = open_tokenizer(tmp_path / "merges.gz", 6)
    assert tokenizer.vocab_size == 2 * 256 + 2 + 2
    assert tokenizer.encode("to ta") == [512, 513]
    assert tokenizer("to ta").tolist() == [[514, 512, 513, 515, 0, 0]]


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    # Two images of one caption and one of another; every cosine is 0, so each softmax is over what is left of three.
    image, text = torch.zeros(3, 4), torch.zeros(3, 4)
    loss = contrastive_loss(image, text, torch.tensor(10.0), torch.tensor([7, 7, 8]))
    expected = (np.log(2) + np.log(2) + np.log(3)) / 3
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_a_square_beyond_the_image_is_padded() -> None:
    image = np.full((4, 4, 3), 9, np.uint8)
    square = cut_square(image, left=-1, top=2, side=4, pad=5)
    assert square[:, :, 0].tolist() == [[5, 9, 9, 9], [5, 9, 9, 9], [5, 5, 5, 5], [5, 5, 5, 5]]


def test_targets_decode_to_the_boxes_they_were_made_of() -> None:
    # A rider and a bicycle share their centre, and a ball of 4 pixels lies apart.
    boxes = torch.tensor([[20.0, 10.0, 60.0, 90.0], [10.0, 30.0, 70.0, 70.0], [100.0, 100.0, 104.0, 104.0]])
    labels = torch.tensor([0, 1, 4])
    groups = torch.tensor([0] + [1] * 12)
    targets = make_targets([boxes], [labels], groups, (128, 128))
    x = (torch.arange(32) + 0.5) * 4
    wanted = targets.boxes[0]
    distances = torch.stack(
        [x - wanted[:, 0], x[:, None] - wanted[:, 1], wanted[:, 2] - x, wanted[:, 3] - x[:, None]], 1
    )
    # Only a centre cell has a logit above 0.
    logits = torch.logit(targets.heat[0].clamp(0.001, 0.999)) - 6
    found, _, classes = peaks(logits, distances, groups, (128, 128), min_score=0.5)
    assert classes.tolist() == [0, 1, 4]
    torch.testing.assert_close(found, boxes)
    torch.testing.assert_close(boxes_at(distances), wanted)
    perfect = detector_loss(torch.where(targets.heat == 1, 12.0, -12.0)[None, 0], distances[None], targets)
    assert float(perfect) < 1e-3


def test_average_precision_by_hand() -> None:
    # Ranks 1 and 3 of four are positive: (1/1 + 2/3) / 2.
    scores, truth = np.array([0.9, 0.5, 0.4, 0.1]), np.array([True, False, True, False])
    assert measure.average_precision(scores, truth) == pytest.approx(5 / 6)


# The committed weights


def test_the_committed_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 12_000_000


def test_open_clip_loads_the_committed_clip_and_its_word_list_fits() -> None:
    folder = WEIGHTS / "clip"
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / BPE_FILE))
    assert tokenizer.vocab_size == config["text_cfg"]["vocab_size"]
    assert not config["quick_gelu"]
    model = open_clip.create_model(f"local-dir:{folder}")
    assert sum(value.numel() for value in model.parameters()) < 4_000_000
    assert all(torch.isfinite(value).all() for value in load_file(folder / "open_clip_model.safetensors").values())


def test_every_prompt_fits_the_context_at_one_token_a_word(teacher_config: TeacherConfig) -> None:
    tokenizer = open_tokenizer(WEIGHTS / "clip" / BPE_FILE, 32)
    vocabulary = world_vocabulary()
    for texts in interaction_prompts(vocabulary, teacher_config.prompts, teacher_config.no_interaction_prompts):
        for text in texts:
            assert len(tokenizer.encode(text)) == len(text.split()) + 1  # and the full stop


def test_the_committed_weights_know_the_world(teacher_config: TeacherConfig, detector: WorldDetector) -> None:
    # Looser than the bars of `python -m stages.world_weights --check`, for few scenes say little.
    scenes = measure.drawn_scenes(seed=0, split="validation", num_scenes=40)
    figures = measure.measure_clip(build_teacher(teacher_config, "cpu"), world_vocabulary(), 1.15, scenes)
    assert figures.top1 > 0.8
    assert figures.top1_within_object >= figures.top1
    precision = measure.measure_detector(detector, world_vocabulary(), scenes)
    assert np.mean([value for value in precision.values() if value >= 0]) > 0.85


def test_detections_do_not_depend_on_neighbours(detector: WorldDetector) -> None:
    scenes = measure.drawn_scenes(seed=0, split="validation", num_scenes=3)
    images = [image for image, _ in scenes]
    odd = np.ascontiguousarray(images[2][:150, :101])
    together = detector.detect([images[0], odd, images[1], images[2]], ["a", "b", "c", "d"])
    for image, found in zip((images[0], odd, images[1], images[2]), together, strict=True):
        (alone,) = detector.detect([image], ["x"])
        np.testing.assert_array_equal(alone.labels, found.labels)
        np.testing.assert_allclose(alone.boxes_xyxy, found.boxes_xyxy, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-5)
        assert (found.boxes_xyxy[:, 2:] <= image.shape[1::-1]).all()


def test_classes_are_matched_by_name(detector: WorldDetector) -> None:
    vocabulary = Vocabulary(("dog", "person"), ("pet",), (("pet", "dog"),))
    config = WorldDetectorConfig(name="world", weights=str(WEIGHTS / "detector.safetensors"))
    images = [image for image, _ in measure.drawn_scenes(seed=0, split="validation", num_scenes=8)]
    names = [str(row) for row in range(len(images))]
    full_vocabulary = world_vocabulary()
    people = 0
    for full, few in zip(
        detector.detect(images, names), WorldDetector(config, vocabulary, "cpu").detect(images, names), strict=True
    ):
        for name in vocabulary.objects:
            np.testing.assert_array_equal(
                full.scores[full.labels == full_vocabulary.objects.index(name)],
                few.scores[few.labels == vocabulary.objects.index(name)],
            )
        people += int((few.labels == 1).sum())
        assert len(few) == np.isin(full.labels, [full_vocabulary.objects.index(n) for n in vocabulary.objects]).sum()
    assert people > 0


def test_a_missing_or_foreign_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file"):
        load_detector(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="no weight file of the world's detector"):
        load_detector(WEIGHTS / "clip" / "open_clip_model.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(UserError, match="no weight file of the world's detector"):
        load_detector(tmp_path / "text.safetensors")


def test_a_detector_file_gives_back_the_same_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DetectorNet(("person", "kite"), DetectorShape((4, 4, 4, 4, 4), 4)).eval()
    for value in net.parameters():
        value.data = value.data.half().float()
    save_detector(net, tmp_path / "net.safetensors", {})
    again = load_detector(tmp_path / "net.safetensors")
    image = torch.rand(1, 3, 32, 64)
    assert again.class_names == ("person", "kite")
    for got, wanted in zip(again(image), net(image), strict=True):
        torch.testing.assert_close(got, wanted)
