"""Signals for scenes of the embedded world without a network: annotated boxes, and noisy texts for a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hoi.config import PipelineConfig, parse_config
from hoi.datasets.world import scene_of
from hoi.records import Detections, ImageSignals, TextBank
from hoi.vocabulary import Vocabulary
from hoi.world import annotate

LEVELS, MARGINS, WIDTH = 2, 1, 16
NOISE = 0.3


class DrawnSignals:
    """In the place of detector and teacher: every annotated box is found, every pair looks like what it does."""

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> None:
        rng = np.random.default_rng(0)
        texts = _unit(rng.normal(size=(len(vocabulary), WIDTH)))
        self.text_bank = TextBank(texts, 20.0, None, tuple((name,) for name in vocabulary.names))
        self.axes = {"K": len(vocabulary), "D": WIDTH, "M": MARGINS, "L": LEVELS}
        self.person = vocabulary.person_idx
        self.min_score = config.pairs.min_score

    def provenance(self) -> dict[str, Any]:
        return {"drawn": NOISE, "pairs": {"min_score": self.min_score}}

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        return [self._extract(image_id, image) for image_id, image in zip(image_ids, images, strict=True)]

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        return [self._extract(image_id, image) for image_id, image in images]

    def _extract(self, image_id: str, image: np.ndarray) -> ImageSignals:
        annotation = annotate(scene_of(image_id))
        rng = np.random.default_rng(annotation.boxes_xyxy.astype(np.int64).ravel())
        scores = rng.uniform(0.5, 1, len(annotation.labels)).astype(np.float32)
        detections = Detections(annotation.boxes_xyxy.astype(np.float32), scores, annotation.labels.astype(np.int64))
        humans = [row for row in range(len(scores)) if annotation.labels[row] == self.person]
        pairs = [(h, o) for h in humans for o in range(len(scores)) if h != o and scores[h] >= self.min_score]
        done = {(h, o): interactions for h, o, interactions in annotation.pairs}
        texts = self.text_bank.text_embedding
        looks = np.array([texts[list(done[p])].mean(0) if p in done else rng.normal(size=WIDTH) / 4 for p in pairs])
        looks = looks.reshape(len(pairs), WIDTH)
        whole = looks.mean(0) if len(pairs) else rng.normal(size=WIDTH)

        def near(rows: np.ndarray, *axes: int) -> np.ndarray:
            spread = rows.reshape(len(rows), *([1] * len(axes)), WIDTH)
            return _unit(spread + NOISE / 4 * rng.normal(size=(len(rows), *axes, WIDTH)))

        image_embedding, union = near(whole[None])[0], near(looks, MARGINS)
        return ImageSignals(
            image_id=image_id,
            size_hw=np.array(image.shape[:2], np.int32),
            detections=detections,
            pairs_ho=np.array(pairs, np.int32).reshape(-1, 2),
            image_embedding=image_embedding.astype(np.float16),
            image_similarity=(texts @ image_embedding).astype(np.float16),
            union_embedding=union.astype(np.float16),
            union_similarity=(union @ texts.T).astype(np.float16),
            detection_feature=near(rng.normal(size=(len(scores), WIDTH)), LEVELS).astype(np.float16),
            union_feature=near(looks, LEVELS).astype(np.float16),
        )


def small_pipeline(folder: Path, **sections: Any) -> PipelineConfig:
    """A pipeline on a handful of scenes, with its cache and outputs below the folder."""
    plain: dict[str, Any] = {
        "name": "small",
        "output": str(folder / "outputs"),
        "dataset": {"name": "world", "splits": {"train": 24, "validation": 10, "test": 6}},
        "detector": {"name": "world"},
        "teacher": {"model": "local-dir:hoi/world/weights/clip"},
        "cache": {"folder": str(folder / "cache"), "scheduler": "synchronous", "device": "cpu"},
        "students": {"student": {"width": 32}, "supervised": {"width": 32, "supervision": "labels"}},
        "train": {"seeds": [0, 1], "epochs": 4, "batch_images": 8, "checkpoint_every": 2, "device": "cpu"},
    }
    return parse_config({**plain, **sections}, "small pipeline")


def write_pipeline(config: PipelineConfig, path: Path) -> Path:
    """The pipeline file of a config."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def _unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
