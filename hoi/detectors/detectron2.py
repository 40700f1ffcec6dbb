"""detectron2's detectors: any YAML config with its weights. detectron2 itself is imported when a detector is built.

`detectron2.model_zoo` is never imported: it needs `pkg_resources`, which setuptools no longer has.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from hoi.config import Detectron2DetectorConfig
from hoi.detectors import RAW_DETECTIONS, keep_detections, kept_settings, match_classes
from hoi.errors import UserError
from hoi.files import open_file
from hoi.records import Detections
from hoi.vocabulary import Vocabulary
from hoi.weights import RANDOM, RANDOM_SEED, load_weights, read_weights, weights_sha256

INSTALL = (
    "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git (it compiles against the "
    "installed torch; needs a C++ compiler and minutes), or use detector.name torchvision"
)
NOT_SAVED = r"^pixel_(mean|std)$|anchor_generator\.cell_anchors"
"""Old files hold these constants of the config; today's models make them and expect none."""


class Detectron2Detector:
    """A model of detectron2; images are treated as its `DefaultPredictor` does, one by one."""

    def __init__(self, config: Detectron2DetectorConfig, vocabulary: Vocabulary, device: str, *_: object) -> None:
        self._config, self._device = config, device
        cfg = _read_config(config)
        where = f"detector detectron2, {config.config_file}"
        self._labels = match_classes(_class_names(cfg, config, where), vocabulary, where)
        self._model = _build_model(cfg, config, where)
        from detectron2.data.transforms import ResizeShortestEdge

        shortest = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST]
        self._resize, self._format = ResizeShortestEdge(shortest, cfg.INPUT.MAX_SIZE_TEST), cfg.INPUT.FORMAT
        self._sha256 = weights_sha256(self._model)
        self._config_sha256 = hashlib.sha256(cfg.dump().encode()).hexdigest()
        self._model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        return [self._detect(image, image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        return {
            "name": "detectron2",
            "config_sha256": self._config_sha256,
            "weights_sha256": self._sha256,
            **kept_settings(self._config),
        }

    def _detect(self, image: np.ndarray, image_id: str) -> Detections:
        channels = image if self._format == "RGB" else image[:, :, ::-1]
        resized = self._resize.get_transform(channels).apply_image(channels)
        pixels = torch.from_numpy(np.ascontiguousarray(resized.astype(np.float32).transpose(2, 0, 1)))
        height, width = image.shape[:2]
        [found] = self._model([{"image": pixels.to(self._device), "height": height, "width": width}])
        instances = found["instances"].to("cpu")
        return keep_detections(
            instances.pred_boxes.tensor.numpy(),
            instances.scores.numpy(),
            self._labels[instances.pred_classes.numpy()],
            (height, width),
            self._config,
            nms=True,
            image_id=image_id,
        )


def _read_config(config: Detectron2DetectorConfig) -> Any:
    """Return detectron2's settings, with our thresholds instead of its own."""
    try:
        from detectron2.config import get_cfg
    except ImportError as error:
        where = "detector.name detectron2"
        raise UserError("detectron2 cannot be imported", where=where, got=error, fix=INSTALL) from None
    path = Path(config.config_file)
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        known = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
        fix = f"set detector.config_file to a YAML file of detectron2's folder configs, as {known}"
        raise UserError("there is no such YAML config of detectron2", where=path, fix=fix)
    cfg = get_cfg()
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except (yaml.YAMLError, KeyError, ValueError, AssertionError, OSError) as error:
        raise UserError("this is no config of the installed detectron2", where=path, got=error) from None
    # Built on the CPU, whatever the device: the generator of a GPU would draw other random weights.
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.TEST.DETECTIONS_PER_IMAGE = RAW_DETECTIONS
    for head in (cfg.MODEL.ROI_HEADS, cfg.MODEL.RETINANET):
        head.SCORE_THRESH_TEST, head.NMS_THRESH_TEST = config.min_score, config.nms_iou
    cfg.freeze()
    return cfg


def _class_names(cfg: Any, config: Detectron2DetectorConfig, where: str) -> list[str]:
    """Return the model's classes in order: the user's list, or the metadata of the config's test dataset."""
    from detectron2.data import MetadataCatalog

    names, fix = config.classes, "set detector.classes to the model's class names in order"
    if names is None:
        tested = list(cfg.DATASETS.TEST)
        names = MetadataCatalog.get(tested[0]).get("thing_classes") if tested else None
        if names is None:
            problem, expected = "the config's test dataset names no classes", "a known dataset, as coco_2017_val"
            raise UserError(problem, where=where, expected=expected, got=tested[0] if tested else "none", fix=fix)
    heads = {"GeneralizedRCNN": cfg.MODEL.ROI_HEADS, "RetinaNet": cfg.MODEL.RETINANET}
    head = heads.get(cfg.MODEL.META_ARCHITECTURE)
    if head is not None and len(names) != head.NUM_CLASSES:
        problem, expected = "the names of the classes do not fit the model", f"{head.NUM_CLASSES} names"
        raise UserError(problem, where=where, expected=expected, got=len(names), fix=fix)
    return list(names)


def _build_model(cfg: Any, config: Detectron2DetectorConfig, where: str) -> torch.nn.Module:
    from detectron2.modeling import build_model

    state = None if config.weights == RANDOM else _read_state(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = build_model(cfg)
    if state is not None:
        dropped = [name for name in state.keys() - model.state_dict().keys() if re.search(NOT_SAVED, name)]
        kept = {name: value for name, value in state.items() if name not in dropped}
        load_weights(model, kept, f"{where}, weights {config.weights}")
    return model


def _read_state(config: Detectron2DetectorConfig) -> dict[str, Tensor]:
    path = Path(config.weights)
    if path.suffix != ".pkl":
        return read_weights(path)
    if not config.trust_pickle:
        fix, expected = "set detector.trust_pickle: true if you trust its maker", "a .safetensors or .pth file"
        raise UserError("a .pkl file may run code when it is read", where=path, expected=expected, fix=fix)
    try:
        with open_file(path, "a weight file") as file:
            # The zoo's files hold NumPy arrays that Python 2 wrote.
            content = pickle.load(file, encoding="latin1")
        return {name: torch.from_numpy(np.array(value)) for name, value in content["model"].items()}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        problem, got = "the weight file is none of detectron2's model zoo", f"{type(error).__name__}: {error}"
        raise UserError(problem, where=path, expected="a pickled {model: arrays by name}", got=got) from None
