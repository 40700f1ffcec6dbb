"""torchvision's detectors: names, weights, classes; random weights stand in for a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from hoi.config import TorchvisionDetectorConfig, WorldDataset
from hoi.detectors import Detector, build_detector
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

VOCABULARY = Vocabulary(("person", "sports_ball"), ("hold",), (("hold", "sports_ball"),))
SMALL = "ssdlite320_mobilenet_v3_large"
PERSON_CLASS, BICYCLE_CLASS, BALL_CLASS = 1, 2, 37
"""Slots of torchvision's 91 COCO classes."""


def build(
    model: str = SMALL, weights: str = "random", vocabulary: Vocabulary = VOCABULARY, min_score: float = 0.05
) -> Detector:
    config = TorchvisionDetectorConfig(name="torchvision", model=model, weights=weights, min_score=min_score)
    return build_detector(config, vocabulary, "cpu", WorldDataset(name="world"))


@pytest.fixture(scope="module")
def biased_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a detector that sees bicycles, people and balls everywhere, in this order."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_model(SMALL, weights=None, weights_backbone=None)
    for head in model.head.classification_head.module_list:
        bias = head[-1].bias.data.view(-1, 91)
        bias[:] = -5.0
        bias[:, PERSON_CLASS], bias[:, BALL_CLASS], bias[:, BICYCLE_CLASS] = 4.0, 3.0, 5.0
    path = tmp_path_factory.mktemp("weights") / "biased.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_a_weight_file_gives_the_vocabularys_classes_by_name(biased_weights: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    large = np.random.default_rng(1).integers(0, 255, (90, 50, 3), dtype=np.uint8)
    detector = build(weights=str(biased_weights))
    found, other = detector.detect([noise, large], ["a", "b"])
    assert set(found.labels.tolist()) == {0, 1}
    assert 0 < len(found) <= 100
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes_xyxy[:, [1, 3]].max() <= 40
    alone = detector.detect([large], ["b"])[0]
    for field in ("boxes_xyxy", "scores", "labels"):
        np.testing.assert_array_equal(getattr(other, field), getattr(alone, field))


def test_random_weights_are_always_the_same() -> None:
    first = build().provenance()
    torch.manual_seed(5)
    assert build().provenance() == first


def test_two_stage_models_take_the_thresholds_too() -> None:
    detector = build("fasterrcnn_mobilenet_v3_large_320_fpn", min_score=1.0)
    assert len(detector.detect([np.zeros((32, 32, 3), np.uint8)], ["a"])[0]) == 0


def test_unknown_models_and_weights_are_named_with_the_nearest(tmp_path: Path) -> None:
    error = refused(build, "fasterrcnn_resnet50_v2")
    assert "no such detector" in error.what
    assert "fasterrcnn_resnet50_fpn_v2" in str(error.expected)
    assert "COCO_V1" in str(refused(build, weights="COCO_V7").expected)
    assert str(refused(build, weights="nowhere.pth").where) == "nowhere.pth"
    save_file({"head": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "the weights do not fit a SSD" in refused(build, weights=str(tmp_path / "other.safetensors")).what


def test_no_network_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    error = refused(build, weights="DEFAULT")
    assert "cannot be downloaded" in error.what
    assert error.got == "no route to host"
    assert str(error.fix).startswith("put https://")
