"""detectron2's detectors: what is said without it, and, where it is installed, a small model built from its config."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hoi.config import Detectron2DetectorConfig, WorldDataset
from hoi.datasets.coco import COCO_OBJECTS
from hoi.detectors import Detector, build_detector
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

VOCABULARY = Vocabulary(("person", "sports_ball"), ("hold",), (("hold", "sports_ball"),))
PERSON_CLASS, BALL_CLASS = 0, 32
"""Of detectron2's contiguous 80."""
is_absent = importlib.util.find_spec("detectron2") is None
needs_detectron2 = pytest.mark.skipif(is_absent, reason="detectron2 is not installed")
SMALL = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, STEM_OUT_CHANNELS: 16, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], POST_NMS_TOPK_TEST: 50}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
  MASK_ON: false
DATASETS: {TEST: [coco_2017_val]}
INPUT: {MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 160}
VERSION: 2
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def build(config_file: Path, vocabulary: Vocabulary = VOCABULARY, **settings: Any) -> Detector:
    settings = {"weights": "random", "min_score": 0.0, **settings}
    config = Detectron2DetectorConfig(name="detectron2", config_file=str(config_file), **settings)
    return build_detector(config, vocabulary, "cpu", WorldDataset(name="world"))


def test_without_detectron2_the_message_says_how_to_install_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("detectron2.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    error = refused(build, small)
    assert error.what == "detectron2 cannot be imported"
    assert str(error.fix).startswith("pip install --no-build-isolation git")


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def biased(small: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Weights of a detector that sees people and balls everywhere."""
    detector: Any = build(small)
    state = {name: value.clone() for name, value in detector._model.state_dict().items()}
    bias = state["roi_heads.box_predictor.cls_score.bias"]
    bias[:] = -5.0
    bias[PERSON_CLASS], bias[BALL_CLASS] = 3.0, 3.5
    return state


@needs_detectron2
def test_contiguous_classes_become_the_vocabularys_by_name(
    small: Path, tmp_path: Path, biased: dict[str, torch.Tensor]
) -> None:
    save_file(biased, tmp_path / "biased.safetensors")
    detector = build(small, weights=str(tmp_path / "biased.safetensors"), min_score=0.05)
    wide, tall = noise(0, 60, 90), noise(1, 120, 50)
    found, other = detector.detect([wide, tall], ["a", "b"])
    assert set(found.labels.tolist()) == {0, 1}
    assert found.scores[found.labels == 1].max() > found.scores[found.labels == 0].max() > 0.2
    assert found.boxes_xyxy[:, 2].max() > 85
    assert found.boxes_xyxy[:, [1, 3]].max() <= 60
    [alone] = detector.detect([tall], ["b"])
    for field in ("boxes_xyxy", "scores", "labels"):
        np.testing.assert_array_equal(getattr(other, field), getattr(alone, field))


@needs_detectron2
def test_an_image_is_treated_as_default_predictor_does(small: Path, tmp_path: Path) -> None:
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    detector: Any = build(small, max_detections=1000, nms_iou=0.5)
    torch.save(detector._model.state_dict(), tmp_path / "model.pth")
    cfg = get_cfg()
    cfg.merge_from_file(str(small))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", str(tmp_path / "model.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 0.0, 1000
    image = noise(2, 70, 150)
    theirs = DefaultPredictor(cfg)(image[:, :, ::-1])["instances"]
    of_person = theirs.pred_classes == PERSON_CLASS
    assert of_person.any()
    [ours] = detector.detect([image], ["a"])
    is_person = ours.labels == 0
    np.testing.assert_allclose(ours.scores[is_person], theirs.scores[of_person].numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.boxes_xyxy[is_person], theirs.pred_boxes.tensor[of_person].numpy(), atol=1e-3)
    [swapped] = detector.detect([image[:, :, ::-1]], ["a"])
    assert not np.array_equal(swapped.scores, ours.scores)
    assert "detectron2.model_zoo" not in sys.modules


@needs_detectron2
def test_weights_of_all_file_formats_hash_alike(small: Path, tmp_path: Path, biased: dict[str, torch.Tensor]) -> None:
    save_file(biased, tmp_path / "w.safetensors")
    torch.save({"model": biased, "iteration": 7}, tmp_path / "w.pth")
    arrays = {name: value.numpy() for name, value in biased.items()} | {"pixel_mean": np.zeros((3, 1, 1), np.float32)}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    found = [
        build(small, weights=str(tmp_path / name), trust_pickle=name == "w.pkl").provenance()
        for name in ("w.safetensors", "w.pth", "w.pkl")
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]["weights_sha256"] != build(small).provenance()["weights_sha256"]
    assert "set detector.trust_pickle: true" in str(refused(build, small, weights=str(tmp_path / "w.pkl")).fix)
    del biased["backbone.fpn_lateral2.weight"]
    save_file(biased, tmp_path / "w.safetensors")
    error = refused(build, small, weights=str(tmp_path / "w.safetensors"))
    assert "weights do not fit" in error.what
    assert "backbone.fpn_lateral2.weight" in str(error)


@needs_detectron2
def test_random_weights_and_config_hash_are_reproducible(small: Path, tmp_path: Path) -> None:
    first = build(small).provenance()
    torch.manual_seed(5)
    (tmp_path / "elsewhere.yaml").write_text(SMALL)
    assert build(tmp_path / "elsewhere.yaml").provenance() == first
    (tmp_path / "elsewhere.yaml").write_text(SMALL.replace("MAX_SIZE_TEST: 160", "MAX_SIZE_TEST: 150"))
    assert build(tmp_path / "elsewhere.yaml").provenance()["config_sha256"] != first["config_sha256"]


@needs_detectron2
def test_wrong_configs_are_named(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    assert refused(build, path).what == "there is no such YAML config of detectron2"
    for text in (SMALL.replace("INPUT:", "IMPUT:"), SMALL + "OUTPUT_DIR: !!python/object/apply:os.getcwd []\n"):
        path.write_text(text)
        assert refused(build, path).what == "this is no config of the installed detectron2"
    path.write_text(SMALL.replace("coco_2017_val", "my_data"))
    assert refused(build, path).got == "my_data"
    error = refused(build, path, classes=["person", "sports ball"])
    assert (error.expected, error.got) == ("80 names", 2)


@needs_detectron2
@pytest.mark.skipif(
    not {"HOI_CHECK_DATA", "DETECTRON2_CONFIGS"} <= set(os.environ),
    reason="needs HOI_CHECK_DATA and DETECTRON2_CONFIGS, the folder configs of detectron2's source",
)
def test_faster_rcnn_r50_fpn_3x_takes_photographs() -> None:
    config = Path(os.environ["DETECTRON2_CONFIGS"]) / "COCO-Detection" / "faster_rcnn_R_50_FPN_3x.yaml"
    every = Vocabulary(COCO_OBJECTS, ("hold",), (("hold", "sports ball"),))
    detector = build(config, every, max_detections=20)
    paths = sorted((Path(os.environ["HOI_CHECK_DATA"]) / "photos" / "images").iterdir())[:3]
    images = [np.array(Image.open(path).convert("RGB")) for path in paths]
    for image, found in zip(images, detector.detect(images, [path.name for path in paths]), strict=True):
        assert 0 < len(found) <= 20
        assert (found.boxes_xyxy >= 0).all()
        assert (found.boxes_xyxy <= np.tile(image.shape[1::-1], 2)).all()
        assert np.isfinite(found.boxes_xyxy).all()
        assert (np.diff(found.scores) <= 0).all()
