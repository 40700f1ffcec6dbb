"""Boxes of known images: detections from a COCO result file, and annotated boxes. No pair is read."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hoi.config import DatasetSettings, GroundTruthDetectorConfig, PrecomputedDetectorConfig
from hoi.datasets import dataset_of
from hoi.detectors import keep_detections, kept_settings, match_classes
from hoi.errors import UserError
from hoi.files import file_sha256
from hoi.json_lines import read_json_file
from hoi.prompts import spaced
from hoi.records import Detections
from hoi.vocabulary import Vocabulary


class PrecomputedDetector:
    """Finds detections by image: file name as in the dataset, bare file name, or image id.

    An image that `instances` lists and `results` does not has no detections; one that `instances` does not list is an
    error, because nobody looked at it.
    """

    def __init__(self, config: PrecomputedDetectorConfig, vocabulary: Vocabulary, *_: object) -> None:
        self._config, self.listed_in = config, config.instances
        instances = read_json_file(Path(config.instances), "COCO instances (detector.instances)")
        images, categories = _listed(instances, config.instances)
        labels = match_classes(list(categories.values()), vocabulary, f"detector precomputed, {config.instances}")
        label_of = dict(zip(categories, labels.tolist(), strict=True))
        self._image_of = _image_keys(images)
        results = read_json_file(Path(config.results), "COCO results (detector.results)")
        self._found = _group(results, config.results, images, label_of)
        content = {"images": sorted(images.items()), "categories": sorted(categories.items())}
        self._digests = {
            "results_sha256": file_sha256(Path(config.results)),
            "instances_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        }

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        return [self._detect(image.shape[:2], image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        return {"name": "precomputed", **self._digests, **kept_settings(self._config)}

    def lists(self, image_id: str) -> bool:
        return self._number(image_id) is not None

    def _number(self, image_id: str) -> Any:
        return self._image_of.get(image_id, self._image_of.get(PurePosixPath(image_id).name))

    def _detect(self, size_hw: tuple[int, int], image_id: str) -> Detections:
        number = self._number(image_id)
        if number is None:
            problem, where = "the precomputed detections do not list an image", f"{self.listed_in}, images"
            expected = f"an entry with file_name or id '{image_id}'"
            fix = "run the detector on this image too, or take the image out of the dataset"
            raise UserError(problem, where=where, expected=expected, fix=fix)
        rows = self._found.get(number)
        if rows is None:
            return Detections.empty()
        boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
        return keep_detections(boxes, scores, labels, size_hw, self._config, nms=True)


def _listed(instances: Any, path: str) -> tuple[dict[Any, str], dict[Any, str]]:
    try:
        images = {entry["id"]: str(entry["file_name"]) for entry in instances["images"]}
        return images, {entry["id"]: str(entry["name"]) for entry in instances["categories"]}
    except (KeyError, TypeError) as error:
        expected = "images [{id, file_name}] and categories [{id, name}]"
        got = f"no {error}" if isinstance(error, KeyError) else type(instances).__name__
        raise UserError("this is no COCO instances file", where=path, expected=expected, got=got) from None


def _image_keys(images: dict[Any, str]) -> dict[str, Any]:
    """Return the image id of every unambiguous name; a full file name wins over a bare one or an id."""
    bare: dict[str, list[Any]] = defaultdict(list)
    for number, file_name in images.items():
        bare[PurePosixPath(file_name).name].append(number)
    keys = {str(number): number for number in images}
    keys |= {name: numbers[0] for name, numbers in bare.items() if len(numbers) == 1}
    return keys | {file_name: number for number, file_name in images.items()}


def _group(results: Any, path: str, images: dict[Any, str], label_of: dict[Any, int]) -> dict[Any, np.ndarray]:
    """Return the detections of each image, float64 [N, 6]: xyxy, score, label."""
    if not isinstance(results, list):
        raise UserError("this is no COCO result file", where=path, expected="a list", got=type(results).__name__)
    rows: dict[Any, list[list[float]]] = defaultdict(list)
    for position, entry in enumerate(results):
        where = f"{path}, entry {position}"
        try:
            number, category = entry["image_id"], entry["category_id"]
            x, y, width, height = (float(side) for side in entry["bbox"])
            score = float(entry["score"])
            is_known = {"image_id": number in images, "category_id": category in label_of}
        except (KeyError, TypeError, ValueError):
            expected, got = "{image_id, category_id, bbox: [x, y, width, height], score}", json.dumps(entry)[:160]
            raise UserError("a detection is not understood", where=where, expected=expected, got=got) from None
        for kind in (kind for kind, known in is_known.items() if not known):
            what, expected = f"a detection has a foreign {kind}", "one of instances'"
            raise UserError(what, where=where, expected=expected, got=entry[kind])
        if not (np.isfinite([x, y, width, height]).all() and width >= 0 and height >= 0 and 0 <= score <= 1):
            expected = "a finite box of width and height >= 0, a score in [0, 1]"
            raise UserError("a detection is impossible", where=where, expected=expected, got=json.dumps(entry)[:160])
        rows[number].append([x, y, x + width, y + height, score, label_of[category]])
    return {number: np.array(found) for number, found in rows.items()}


class GroundTruthDetector:
    """Annotated boxes of the vocabulary's objects at score 1, with noise that is drawn from the image's id."""

    def __init__(
        self, config: GroundTruthDetectorConfig, vocabulary: Vocabulary, device: str, dataset: DatasetSettings
    ) -> None:
        self._config, self._dataset = config, dataset_of(dataset)
        self._rows = {spaced(name).lower(): row for row, name in enumerate(vocabulary.objects)}

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        return [self._detect(image.shape[:2], image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        return {"name": "ground_truth", "jitter": self._config.jitter, **kept_settings(self._config)}

    def _detect(self, size_hw: tuple[int, int], image_id: str) -> Detections:
        boxes, names = self._dataset.boxes(image_id)
        labels = np.array([self._rows.get(spaced(name).lower(), -1) for name in names], dtype=np.int64)
        if self._config.jitter > 0:
            seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
            sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
            boxes = boxes + np.random.default_rng(seed).normal(0.0, self._config.jitter, boxes.shape) * sides
            # Noise may have swapped two edges.
            boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        scores = np.ones(len(boxes), np.float32)
        return keep_detections(boxes, scores, labels, size_hw, self._config, nms=False)
