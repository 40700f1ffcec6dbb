"""A further pass without a model, for tests of the cache: answers that follow from pixels, pairs and settings alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi.config import PipelineConfig, VlmConfig
from hoi.records import ImageSignals
from hoi.vlm.base import ImageAnswers, PhraseBank
from hoi.vocabulary import Vocabulary
from tests.fakes.random_signals import AXES

PASS = {"backend": "coca", "model": "coca_ViT-B-32", "pretrained": "random", "pair_scores": True, "max_sentences": 2}
"""A section of `vlms`. No such model is made: what asks here is `RandomAnswers`."""


class RandomAnswers:
    """See `hoi.cache.build.models.Asks`."""

    def __init__(self, settings: VlmConfig, vocabulary: Vocabulary) -> None:
        self._settings, number = settings, len(vocabulary)
        texts = tuple(f"a person {name}" for name in vocabulary.names)
        self.phrases = PhraseBank(texts, np.full(number, 4, np.int32), np.full(number, -2.0, np.float32))
        self.axes = {"K": number, "Q": number, "S": settings.max_sentences, "D": AXES["D"]}

    def provenance(self) -> dict[str, Any]:
        return {"vlm": self._settings.model_dump(mode="json"), "versions": {"answers": "1"}}

    def ask(self, images: Iterable[tuple[ImageSignals, np.ndarray]], teacher: Mapping[str, Any]) -> list[ImageAnswers]:
        return [self._answer(signals, image) for signals, image in images]

    def _answer(self, signals: ImageSignals, image: np.ndarray) -> ImageAnswers:
        seed = int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16)
        rng = np.random.default_rng([seed, len(signals.pairs_ho), round(100 * self._settings.temperature)])
        axes = self.axes
        asked = rng.integers(0, 2, axes["K"]).astype(np.uint8)
        mask = np.arange(axes["S"]) < 1
        return ImageAnswers(
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
class AnswersOf:
    """Makes `RandomAnswers` for a section of `vlms` by name."""

    name: str

    def __call__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> RandomAnswers:
        return RandomAnswers(config.vlms[self.name], vocabulary)
