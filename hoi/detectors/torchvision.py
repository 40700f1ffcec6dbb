"""torchvision's COCO detectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
import torchvision

from hoi.config import TorchvisionDetectorConfig
from hoi.detectors import RAW_DETECTIONS, keep_detections, kept_settings, match_classes
from hoi.errors import UserError, nearest
from hoi.records import Detections
from hoi.vocabulary import Vocabulary
from hoi.weights import RANDOM, RANDOM_SEED, load_weights, read_weights, weights_sha256


class TorchvisionDetector:
    """Any detection model of torchvision; one image at a time, since padding to a neighbour changes boxes."""

    def __init__(self, config: TorchvisionDetectorConfig, vocabulary: Vocabulary, device: str, *_: object) -> None:
        self._config, self._device = config, device
        where = f"detector torchvision, model {config.model}"
        names = torchvision.models.list_models(module=torchvision.models.detection)
        if config.model not in names:
            known, got = nearest(config.model, names), config.model
            raise UserError("torchvision has no such detector", where="detector.model", expected=known, got=got)
        published = torchvision.models.get_model_weights(config.model)
        state, categories = _weights(config.weights, published, where)
        self._labels = match_classes(categories, vocabulary, where)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model = torchvision.models.get_model(config.model, weights=None, weights_backbone=None)
        if state is not None:
            load_weights(model, state, f"{where}, weights {config.weights}")
        # Two-stage models keep these settings in their heads, one-stage models in themselves.
        settings = getattr(model, "roi_heads", model)
        settings.score_thresh, settings.nms_thresh = config.min_score, config.nms_iou
        settings.detections_per_img = RAW_DETECTIONS
        self._sha256 = weights_sha256(model)
        self._model = model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        detections = []
        for image, image_id in zip(images, image_ids, strict=True):
            pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1).float() / 255
            found = {name: value.cpu().numpy() for name, value in self._model([pixels])[0].items()}
            kept = (found["boxes"], found["scores"], self._labels[found["labels"]], image.shape[:2])
            detections.append(keep_detections(*kept, self._config, nms=True, image_id=image_id))
        return detections

    def provenance(self) -> dict[str, object]:
        return {
            "name": "torchvision",
            "model": self._config.model,
            "weights_sha256": self._sha256,
            **kept_settings(self._config),
        }


def _weights(name: str, published: Any, where: str) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
    """Return the state dict (None for random) and the class names of a weight name, a file or `random`."""
    usual: list[str] = published.DEFAULT.meta["categories"]
    if name == RANDOM:
        return None, usual
    if name == "DEFAULT" or name in published.__members__:
        return _download(published[name], name, where), published[name].meta["categories"]
    if Path(name).suffix in (".safetensors", ".pth", ".pt"):
        return read_weights(Path(name)), usual
    expected = f"{nearest(name, ['DEFAULT', *published.__members__])}; a weight file; or {RANDOM}"
    raise UserError("torchvision has no such weights", where=where, expected=expected, got=name)


def _download(weights: Any, name: str, where: str) -> dict[str, torch.Tensor]:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, TimeoutError, ConnectionError) as error:
        fix = f"put {weights.url} into {folder}, or set detector.weights to a file"
        got = getattr(error, "reason", error)
        raise UserError(f"the weights {name} cannot be downloaded", where=where, got=got, fix=fix) from None
    except RuntimeError as error:
        where = str(folder / Path(weights.url).name)
        raise UserError(f"the weights {name} are damaged", where=where, got=error, fix="delete the file") from None


def find_absent_weights(config: TorchvisionDetectorConfig) -> tuple[str, str] | None:
    """Return URL and folder of published weights that are not on this machine yet; None otherwise."""
    if config.model not in torchvision.models.list_models(module=torchvision.models.detection):
        return None
    published = torchvision.models.get_model_weights(config.model)
    if config.weights != "DEFAULT" and config.weights not in published.__members__:
        return None
    url = published[config.weights].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return None if (folder / Path(url).name).is_file() else (url, str(folder))
