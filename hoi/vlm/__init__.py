"""Vision language models as teachers: what they say of an image, and how likely they find a text.

Another backend is one more module and a line in `hoi.registry.VLM_BACKENDS`.

Shapes: K interactions, P pairs, n candidates of one image in the order given, S sentences at most, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int32

from hoi.config import VlmConfig
from hoi.registry import VLM_BACKENDS


@dataclass(frozen=True)
class Likelihoods:
    """How likely a model finds each candidate text, given an image and a question."""

    log_likelihood: Float32[np.ndarray, " n"]  # sum over the tokens in nats, with the end where a backend ends texts
    num_tokens: Int32[np.ndarray, " n"]  # how many were summed, so that `log_likelihood / num_tokens` is the mean


class VisionLanguageModel(Protocol):
    """A frozen model that reads images and writes text. Images are uint8 [H, W, 3] RGB, upright; sizes may differ."""

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        """Return one caption for each image, decoded greedily."""

    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        """Return how likely each image's candidates are, after a question if one is asked; one pass over an image."""

    def yes_probabilities(
        self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]
    ) -> list[Float32[np.ndarray, " n"]]:
        """Return p(yes) / (p(yes) + p(no)) for each image's questions."""

    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        """Return free text for each image, decoded greedily."""

    def provenance(self) -> dict[str, Any]:
        """Return what decides the outputs, in plain JSON types."""


@dataclass(frozen=True)
class PhraseBank:
    """The candidates, and what a vision language model makes of them without an image."""

    phrases: tuple[str, ...]  # K texts; empty for interactions that are never asked
    num_tokens: np.ndarray  # int32 [K] of each phrase; 0 where no likelihood is taken
    prior_log_likelihood: np.ndarray  # float32 [K], the phrase's on a blank image, in nats; 0 where none is taken


@dataclass(frozen=True)
class VlmSignals:
    """One record of an extra pass; None for what was not asked for."""

    image_id: str
    caption: str = ""
    # float16 [S, D], the teacher's embeddings of the caption's sentences, unit norm; 0 beyond the last one
    context_embedding: np.ndarray | None = None
    context_mask: np.ndarray | None = None  # uint8 [S], 1 where there is a sentence
    vlm_scores: np.ndarray | None = None  # float16 [K], confidence in [0, 1]; 0 where not asked
    vlm_asked: np.ndarray | None = None  # uint8 [K], 1 where the interaction was asked of the image
    vlm_log_likelihood: np.ndarray | None = None  # float32 [K], sum over the phrase's tokens in nats; 0 where not taken
    vlm_pair_scores: np.ndarray | None = None  # float16 [P, K], confidence asked of the union crops


def build_vlm(config: VlmConfig, device: str) -> VisionLanguageModel:
    """Return the model of a section of `vlms`, ready to run on `cpu` or `cuda`; only its own backend is imported.

    Raises UserError: an unknown model, weights that are missing or do not fit, or a package that is not installed.
    """
    return VLM_BACKENDS[config.backend](config, device)
