"""Detectors that are asked for objects by words: OWLv2 and Grounding DINO, through transformers.

One image at a time, so that nothing depends on its neighbours; boxes are read from the raw outputs, for classes of the
vocabulary instead of pieces of text.

Shapes: Q queries, C classes, T tokens of the caption.

Source: boxes and scores as transformers' own post-processing reads them; classes of Grounding DINO as in its
demo/test_ap_on_coco.py: the mean of sigmoid over the tokens of a class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoi.boxes import clip_boxes
from hoi.config import OpenVocabularyDetectorConfig
from hoi.detectors import keep_detections, kept_settings
from hoi.errors import UserError
from hoi.files import HF_HUB, LOCAL_DIR, check_folder, find_local
from hoi.prompts import a_object, spaced
from hoi.records import Detections
from hoi.vocabulary import NO_OBJECT, Vocabulary
from hoi.weights import weights_sha256

KINDS = ("owlv2", "grounding-dino")
"""transformers' names of the architectures."""


class OpenVocabularyDetector:
    """A `Detector` for which every object of the vocabulary is a class, whatever its name."""

    def __init__(self, config: OpenVocabularyDetectorConfig, vocabulary: Vocabulary, device: str, *_: object) -> None:
        self._config, self._device = config, device
        rows = [row for row, name in enumerate(vocabulary.objects) if name != NO_OBJECT]
        self._rows = np.array(rows, np.int64)
        model, processor = _load(config.model)
        self._kind = str(model.config.model_type)
        self._sha256 = weights_sha256(model)
        model = model.eval().requires_grad_(False).to(device)
        names = [vocabulary.objects[row] for row in rows]
        reader = GroundingDino if self._kind == "grounding-dino" else Owlv2
        self._model: Owlv2 | GroundingDino = reader(model, processor, names, device)

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        return [self._detect(image, image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        return {
            "name": "open_vocabulary",
            "kind": self._kind,
            "weights_sha256": self._sha256,
            **self._model.asked,
            **kept_settings(self._config),
        }

    def _detect(self, image: np.ndarray, image_id: str) -> Detections:
        boxes, scores, classes = (value.cpu().numpy() for value in self._model.read(np.ascontiguousarray(image)))
        size_hw = (image.shape[0], image.shape[1])
        # Boxes of random or far-off queries may lie outside the image altogether.
        boxes = clip_boxes(boxes, size_hw)
        has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        found = (boxes[has_area], scores[has_area], self._rows[classes[has_area]])
        return keep_detections(*found, size_hw, self._config, nms=True, image_id=image_id)


class Owlv2:
    """OWLv2: a text for each class, an image padded to a square."""

    def __init__(self, model: Any, processor: Any, names: Sequence[str], device: str) -> None:
        self._model, self._images, self._device = model, processor.image_processor, device
        texts = [f"a photo of {a_object(name)}" for name in names]
        longest = model.config.text_config.max_position_embeddings
        tokens = processor.tokenizer(
            texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        self._tokens = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        self.asked = _asked(self._images, texts, tokens["input_ids"])

    def read(self, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes [Q, 4] (xyxy, pixels), their best classes' scores [Q] and rows [Q]."""
        pixels = _prepared(self._images, image)["pixel_values"].to(self._device)
        found = self._model(pixel_values=pixels, **self._tokens)
        scores, classes = found.logits[0].sigmoid().max(-1)
        return _xyxy(found.pred_boxes[0]) * max(image.shape[:2]), scores, classes


class GroundingDino:
    """Grounding DINO: one caption of all classes, "person . bicycle .", or several if one is too long."""

    def __init__(self, model: Any, processor: Any, names: Sequence[str], device: str) -> None:
        self._model, self._images, self._device = model, processor.image_processor, device
        tokenizer, texts = processor.tokenizer, [spaced(name).lower() for name in names]
        pieces = [tokenizer(f"{text} .", add_special_tokens=False)["input_ids"] for text in texts]
        self._captions = _captions(pieces, tokenizer.cls_token_id, tokenizer.sep_token_id, model.config.max_text_len)
        ids = torch.tensor([token for tokens, _ in self._captions for token in tokens])
        self.asked = _asked(self._images, texts, ids)

    def read(self, image: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        prepared = _prepared(self._images, image).to(self._device)
        boxes, scores, classes = [], [], []
        for tokens, spans in self._captions:
            ids = torch.tensor([tokens], device=self._device)
            found = self._model(
                pixel_values=prepared["pixel_values"],
                pixel_mask=prepared["pixel_mask"],
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                token_type_ids=torch.zeros_like(ids),
            )
            of_tokens = found.logits[0].sigmoid()
            of_classes = torch.stack([of_tokens[:, start:end].mean(1) for _, start, end in spans], 1)
            best, place = of_classes.max(-1)
            height, width = image.shape[:2]
            boxes.append(_xyxy(found.pred_boxes[0]) * torch.tensor([width, height] * 2, device=self._device))
            scores.append(best)
            classes.append(torch.tensor([row for row, _, _ in spans], device=self._device)[place])
        return torch.cat(boxes), torch.cat(scores), torch.cat(classes)


Caption = tuple[list[int], list[tuple[int, int, int]]]
"""Tokens, and for each class in it its row, its first token and the one after its last, without the full stop."""


def _captions(pieces: Sequence[Sequence[int]], cls_id: int, sep_id: int, longest: int) -> list[Caption]:
    """Join the tokens of the classes, each followed by a full stop, into as few captions as possible."""
    captions: list[Caption] = []
    for row, piece in enumerate(pieces):
        if len(piece) + 2 > longest:
            raise UserError("the name of an object is too long", where="the vocabulary", got=f"{len(piece)} tokens")
        if not captions or len(captions[-1][0]) + len(piece) + 1 > longest:
            captions.append(([cls_id], []))
        tokens, spans = captions[-1]
        spans.append((row, len(tokens), len(tokens) + len(piece) - 1))
        tokens += piece
    return [([*tokens, sep_id], spans) for tokens, spans in captions]


def _load(name: str) -> tuple[Any, Any]:
    where = f"detector open_vocabulary, model {name}"
    try:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
    except ImportError as error:
        problem, fix = "the open-vocabulary detectors need transformers", "pip install 'hoi-distill[open-vocabulary]'"
        raise UserError(problem, where=where, got=error, fix=fix) from None
    source = str(find_local(name)) if name.startswith(LOCAL_DIR) else name.removeprefix(HF_HUB)
    if name.startswith(LOCAL_DIR):
        if not (Path(source) / "config.json").is_file():
            raise UserError("this is no folder of a transformers model", where=source, expected="config.json")
        check_folder(Path(source))
    try:
        # Never pickled weights and never code out of a repository.
        load = AutoModelForZeroShotObjectDetection.from_pretrained
        model = load(source, use_safetensors=True, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError) as error:
        expected, got = "OWLv2 or Grounding DINO with safetensors weights", " ".join(str(error).split())[:300]
        fix = "check detector.model and the network, or download the repository and use local-dir:"
        problem = "the open-vocabulary detector cannot be loaded"
        raise UserError(problem, where=where, expected=expected, got=got, fix=fix) from None
    kind = model.config.model_type
    if kind not in KINDS:
        raise UserError("this open-vocabulary detector is not known", where=where, expected=KINDS, got=kind)
    return model, processor


def _prepared(image_processor: Any, image: np.ndarray) -> Any:
    # Said outright, since an image of three rows looks like one with its channels first.
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return image_processor(images=[pixels], input_data_format="channels_first", return_tensors="pt")


def _asked(image_processor: Any, texts: Sequence[str], tokens: Tensor) -> dict[str, object]:
    plain = {key: value for key, value in image_processor.to_dict().items() if "name_or_path" not in key}
    prepared = json.dumps(plain, sort_keys=True, default=str)
    return {
        "classes": list(texts),
        "tokens_sha256": hashlib.sha256(tokens.cpu().numpy().astype(np.int64).tobytes()).hexdigest(),
        "preparation_sha256": hashlib.sha256(prepared.encode()).hexdigest(),
    }


def _xyxy(boxes_cxcywh: Tensor) -> Tensor:
    centre, sides = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    return torch.cat([centre - sides / 2, centre + sides / 2], 1)
