"""OWLv2 and Grounding DINO at random weights: small architectures with tokenizers built here, saved to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hoi.cache.plan import files_as_hashes
from hoi.config import OpenVocabularyDetectorConfig, WorldDataset
from hoi.detectors import Detector, build_detector
from hoi.detectors.open_vocabulary import _captions
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

transformers = pytest.importorskip("transformers", reason="transformers (extra open-vocabulary) is not installed")

OBJECTS = ("person", "kick_scooter", "hammer", "no_object")
VOCABULARY = Vocabulary(OBJECTS, ("use", "walk"), (("use", "kick_scooter"), ("use", "hammer"), ("walk", "no_object")))
FULL_STOP = 1012
"""BERT's own id, which Grounding DINO takes for granted."""


def write_owlv2(folder: Path) -> None:
    """Owlv2 of width 16 on images of 32 pixels, and a tokenizer of single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=16
    )
    text = {"vocab_size": len(tokens), "max_position_embeddings": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Owlv2Config(
        text_config={**tower, **text}, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    images = transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    save(folder, transformers.Owlv2ForObjectDetection(config), transformers.Owlv2Processor(images, tokenizer))


def write_grounding_dino(folder: Path) -> None:
    """Grounding DINO of width 32 with a small Swin and BERT, and a tokenizer of whole words."""
    words = ["person", "kick", "scooter", "hammer", "[PAD]", "[UNK]"]
    tokens = {100: "[UNK]", 101: "[CLS]", 102: "[SEP]", FULL_STOP: "."} | dict(enumerate(words[:5]))
    folder.mkdir(parents=True)
    lines = [tokens.get(row, f"[unused{row}]") for row in range(FULL_STOP + 1)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    text = transformers.BertConfig(
        vocab_size=len(lines), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    swin = transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], out_indices=[2, 3, 4], window_size=4
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        max_text_len=12,
    )
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    model = transformers.GroundingDinoForObjectDetection(config)
    save(folder, model, transformers.GroundingDinoProcessor(images, tokenizer))


def save(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module", params=["owlv2", "grounding-dino"])
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (write_owlv2 if request.param == "owlv2" else write_grounding_dino)(folder)
    return folder


def build(folder: Path, **changes: Any) -> Detector:
    config = OpenVocabularyDetectorConfig(name="open_vocabulary", model=f"local-dir:{folder}", **changes)
    return build_detector(config, VOCABULARY, "cpu", WorldDataset(name="world"))


def test_any_words_are_found_and_neighbours_change_nothing(model_folder: Path) -> None:
    rng = np.random.default_rng(0)
    wide, tall = (rng.integers(0, 255, size, dtype=np.uint8) for size in ((40, 70, 3), (90, 30, 3)))
    detector = build(model_folder, min_score=0.0)
    together, alone = detector.detect([wide, tall], ["a", "b"]), detector.detect([tall], ["b"])[0]
    for found, (height, width) in zip(together, ((40, 70), (90, 30)), strict=True):
        assert 0 < len(found) <= 100
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert (found.scores > 0).all()
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= [width, height] * 2).all()
        assert (np.diff(found.scores) <= 0).all()
    for field in ("boxes_xyxy", "scores", "labels"):
        np.testing.assert_array_equal(getattr(together[1], field), getattr(alone, field))


def test_boxes_and_scores_are_those_of_transformers_own_reading(model_folder: Path) -> None:
    image = np.random.default_rng(1).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    processor = transformers.AutoProcessor.from_pretrained(model_folder)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(model_folder).eval()
    is_owl = model_folder.name == "owlv2"
    text = ["a photo of a person", "a photo of a kick scooter", "a photo of a hammer"]
    # All that fits into one caption of twelve tokens: a class more, and there would be two.
    caption = "person . kick scooter . hammer ."
    fixed: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 16} if is_owl else {}
    inputs = processor(images=image, text=[text] if is_owl else caption, return_tensors="pt", **fixed)
    with torch.inference_mode():
        outputs = model(**inputs)
    sizes = [image.shape[:2]]
    if is_owl:
        [theirs] = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        scores = theirs["scores"]
    else:
        of_tokens = outputs.logits[0].sigmoid()
        scores = torch.stack([of_tokens[:, 1], of_tokens[:, 3:5].mean(1), of_tokens[:, 6]], 1).amax(1)
        ids = inputs["input_ids"]
        [theirs] = processor.post_process_grounded_object_detection(outputs, ids, threshold=0.0, target_sizes=sizes)
    boxes = np.clip(theirs["boxes"].numpy(), 0, [80, 48, 80, 48])
    # Boxes without an area inside the image are none of ours.
    scores = scores.numpy() * ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    found = build(model_folder, min_score=0.0).detect([image], ["a"])[0]
    assert found.scores[0] == pytest.approx(float(scores.max()), abs=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy[0], boxes[scores.argmax()], atol=1e-2)


def test_the_provenance_names_weights_and_words_and_no_path(model_folder: Path) -> None:
    first = build(model_folder).provenance()
    assert first == build(model_folder).provenance()
    assert str(model_folder) not in json.dumps(first)
    assert len(str(first["weights_sha256"])) == 64
    section = {"model": f"local-dir:{model_folder}"}
    assert files_as_hashes(section) != section


def test_long_vocabularies_take_several_captions() -> None:
    captions = _captions([[1, 9], [2, 3, 9], [4, 9]], cls_id=7, sep_id=8, longest=7)
    assert captions == [([7, 1, 9, 2, 3, 9, 8], [(0, 1, 2), (1, 3, 5)]), ([7, 4, 9, 8], [(2, 1, 2)])]


def test_missing_models_and_a_missing_package_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(build, tmp_path).what == "this is no folder of a transformers model"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert refused(build, tmp_path).what == "the open-vocabulary detector cannot be loaded"
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refused(build, tmp_path).fix == "pip install 'hoi-distill[open-vocabulary]'"
