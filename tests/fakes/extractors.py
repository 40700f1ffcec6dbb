"""Extractors and a VLM pass without models: their signals follow from image id, pixels and settings alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi.config import PipelineConfig, VlmConfig
from hoi.datasets.world import scene_of
from hoi.records import Detections, ImageSignals, TextBank
from hoi.vlm import PhraseBank, VlmSignals
from hoi.vocabulary import Vocabulary
from hoi.world import annotate

AXES = {"K": 3, "D": 4, "M": 2, "L": 2}
MAP_AXES = {"C": 2, "H": 3, "W": 1}
"""Of `random_signals`, without and with a spatial map."""
DRAWN_LEVELS, DRAWN_MARGINS, DRAWN_WIDTH, DRAWN_NOISE = 2, 1, 16, 0.3
"""Of `DrawnSignals`."""
PASS = {"backend": "coca", "model": "coca_ViT-B-32", "pretrained": "random", "pair_scores": True, "max_sentences": 2}
"""A section of `vlms`. The model is never made: `RandomVlmSignals` stands in for it."""


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def random_signals(
    image_id: str, num_detections: int, num_pairs: int, seed: int = 0, with_map: bool = False
) -> ImageSignals:
    """Return a record with the given numbers of rows."""
    rng = np.random.default_rng([seed, int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16)])
    k, d, m, levels = (AXES[axis] for axis in "KDML")

    def features(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float16)

    corners = rng.uniform(0, 50, (num_detections, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (num_detections, 2))], axis=1)
    return ImageSignals(
        image_id=image_id,
        size_hw=np.array([100, 120], np.int32),
        detections=Detections(
            boxes.astype(np.float32),
            np.sort(rng.uniform(size=num_detections))[::-1].astype(np.float32),
            rng.integers(0, 2, num_detections),
        ),
        pairs_ho=rng.integers(0, max(1, num_detections), (num_pairs, 2)).astype(np.int32),
        image_embedding=features(d),
        image_similarity=features(k),
        union_embedding=features(num_pairs, m, d),
        union_similarity=features(num_pairs, m, k),
        detection_feature=features(num_detections, levels, d),
        union_feature=features(num_pairs, levels, d),
        spatial_map=features(*MAP_AXES.values()) if with_map else None,
    )


class RandomSignals:
    """In the place of `hoi.extraction.Extractor`. The first pixel of an image is its number of pairs."""

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> None:
        self.with_map = config.teacher.spatial_map
        self.axes = {**AXES, **(MAP_AXES if self.with_map else {})}
        texts = np.random.default_rng(1).normal(size=(AXES["K"], AXES["D"])).astype(np.float32)
        self.text_bank = TextBank(texts, 50.0, None, tuple((name,) for name in vocabulary.names))
        self.teacher = config.teacher.model_dump(mode="json", include={"prompts", "precision"})

    def provenance(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "versions": {"random": "1"}}

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        records = []
        for image_id, image in zip(image_ids, images, strict=True):
            num_pairs = int(image[0, 0, 0])
            seed = int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16)
            records.append(random_signals(image_id, num_pairs and num_pairs + 1, num_pairs, seed, self.with_map))
        return records

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        pairs = list(images)
        return self.extract([image_id for image_id, _ in pairs], [image for _, image in pairs])


class FailingSignals(RandomSignals):
    """Raises on the image whose first pixel is 13."""

    error: BaseException = RuntimeError("thirteen")

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        if any(image[0, 0, 0] == 13 for image in images):
            raise self.error
        return super().extract(image_ids, images)


class RandomVlmSignals:
    """In the place of `hoi.vlm.extractor.VlmExtractor`."""

    def __init__(self, settings: VlmConfig, vocabulary: Vocabulary) -> None:
        self._settings, number = settings, len(vocabulary)
        texts = tuple(f"a person {name}" for name in vocabulary.names)
        self.phrases = PhraseBank(texts, np.full(number, 4, np.int32), np.full(number, -2.0, np.float32))
        self.axes = {"K": number, "Q": number, "S": settings.max_sentences, "D": AXES["D"]}

    def provenance(self) -> dict[str, Any]:
        return {"vlm": self._settings.model_dump(mode="json"), "versions": {"answers": "1"}}

    def extract(
        self, images: Iterable[tuple[ImageSignals, np.ndarray]], teacher: Mapping[str, Any]
    ) -> list[VlmSignals]:
        return [self._answer(signals, image) for signals, image in images]

    def _answer(self, signals: ImageSignals, image: np.ndarray) -> VlmSignals:
        seed = int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16)
        rng = np.random.default_rng([seed, len(signals.pairs_ho), round(100 * self._settings.temperature)])
        axes = self.axes
        asked = rng.integers(0, 2, axes["K"]).astype(np.uint8)
        mask = np.arange(axes["S"]) < 1
        return VlmSignals(
            image_id=signals.image_id,
            caption=f"a person in {signals.image_id}",
            context_embedding=(rng.normal(size=(axes["S"], axes["D"])) * mask[:, None]).astype(np.float16),
            context_mask=mask.astype(np.uint8),
            vlm_scores=(rng.uniform(size=axes["K"]) * asked).astype(np.float16),
            vlm_asked=asked,
            vlm_log_likelihood=(-rng.uniform(1, 9, axes["K"]) * asked).astype(np.float32),
            vlm_pair_scores=rng.uniform(size=(len(signals.pairs_ho), axes["Q"])).astype(np.float16),
        )


@dataclass(frozen=True)
class VlmSignalsOf:
    """A factory of `RandomVlmSignals` for one section of `vlms`."""

    name: str

    def __call__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> RandomVlmSignals:
        return RandomVlmSignals(config.vlms[self.name], vocabulary)


class DrawnSignals:
    """An extractor for world scenes: it detects every annotated box, and each pair looks like its texts."""

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> None:
        rng = np.random.default_rng(0)
        texts = unit(rng.normal(size=(len(vocabulary), DRAWN_WIDTH)))
        self.text_bank = TextBank(texts, 20.0, None, tuple((name,) for name in vocabulary.names))
        self.axes = {"K": len(vocabulary), "D": DRAWN_WIDTH, "M": DRAWN_MARGINS, "L": DRAWN_LEVELS}
        self.person = vocabulary.person_idx
        self.min_score = config.pairs.min_score

    def provenance(self) -> dict[str, Any]:
        return {"drawn": DRAWN_NOISE, "pairs": {"min_score": self.min_score}}

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        return [self._extract(image_id, image) for image_id, image in zip(image_ids, images, strict=True)]

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        return [self._extract(image_id, image) for image_id, image in images]

    def _extract(self, image_id: str, image: np.ndarray) -> ImageSignals:
        annotation = annotate(scene_of(image_id))
        rng = np.random.default_rng(annotation.boxes_xyxy.astype(np.int64).ravel())
        scores = np.sort(rng.uniform(0.5, 1, len(annotation.labels)))[::-1].astype(np.float32)
        detections = Detections(annotation.boxes_xyxy.astype(np.float32), scores, annotation.labels.astype(np.int64))
        humans = [row for row in range(len(scores)) if annotation.labels[row] == self.person]
        pairs = [(h, o) for h in humans for o in range(len(scores)) if h != o and scores[h] >= self.min_score]
        done = {(h, o): interactions for h, o, interactions in annotation.pairs}
        texts = self.text_bank.text_embedding
        rows = [texts[list(done[p])].mean(0) if p in done else rng.normal(size=DRAWN_WIDTH) / 4 for p in pairs]
        looks = np.array(rows).reshape(len(pairs), DRAWN_WIDTH)
        whole = looks.mean(0) if len(pairs) else rng.normal(size=DRAWN_WIDTH)

        def near(rows: np.ndarray, *axes: int) -> np.ndarray:
            spread = rows.reshape(len(rows), *([1] * len(axes)), DRAWN_WIDTH)
            return unit(spread + DRAWN_NOISE / 4 * rng.normal(size=(len(rows), *axes, DRAWN_WIDTH)))

        image_embedding, union = near(whole[None])[0], near(looks, DRAWN_MARGINS)
        return ImageSignals(
            image_id=image_id,
            size_hw=np.array(image.shape[:2], np.int32),
            detections=detections,
            pairs_ho=np.array(pairs, np.int32).reshape(-1, 2),
            image_embedding=image_embedding.astype(np.float16),
            image_similarity=(texts @ image_embedding).astype(np.float16),
            union_embedding=union.astype(np.float16),
            union_similarity=(union @ texts.T).astype(np.float16),
            detection_feature=near(rng.normal(size=(len(scores), DRAWN_WIDTH)), DRAWN_LEVELS).astype(np.float16),
            union_feature=near(looks, DRAWN_LEVELS).astype(np.float16),
        )
