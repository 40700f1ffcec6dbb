"""What the cache asks of a vision language model; each backend is one file beside this one.

Letters: n candidates of one image, in the order in which they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int32


@dataclass(frozen=True)
class Likelihoods:
    """How likely a model finds each candidate text, given an image and a question.

    Args:
        log_likelihood: Sum of the log-probabilities of the candidate's tokens, its end included where a backend ends
            texts, in nats.
        num_tokens: How many were summed, so that `log_likelihood / num_tokens` is the mean.
    """

    log_likelihood: Float32[np.ndarray, " n"]
    num_tokens: Int32[np.ndarray, " n"]


class VisionLanguageModel(Protocol):
    """A frozen model that reads images and writes text. Images are uint8 [H, W, 3] RGB, upright; sizes may differ."""

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        """Images to one caption each, decoded greedily."""
        ...

    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        """Images and the texts that are candidates for each, to how likely each text is; one pass over an image.

        Args:
            images: Any number.
            candidates: Texts of each image; may be none.
            question: Put before every candidate, for models that take instructions; None for those that only caption.
        """
        ...

    def yes_probabilities(
        self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]
    ) -> list[Float32[np.ndarray, " n"]]:
        """Images and yes-no questions to p(yes) / (p(yes) + p(no)) of each."""
        ...

    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        """Images and one question to free text, decoded greedily."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What decides its outputs, in plain JSON types: model, hash of the weights, prompts, decoding, precision."""
        ...
