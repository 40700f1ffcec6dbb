"""Vision language models as teachers: what they say of an image, and how likely they find a text."""

from __future__ import annotations

from hoi.config import VlmConfig
from hoi.registry import VLM_BACKENDS
from hoi.vlm.base import Likelihoods, VisionLanguageModel

__all__ = ["Likelihoods", "VisionLanguageModel", "build_vlm"]


def build_vlm(config: VlmConfig, device: str) -> VisionLanguageModel:
    """Return the vision language model of a section of `vlms`, ready to run; only its own backend is imported.

    Args:
        config: One entry of `vlms`.
        device: `cpu` or `cuda`.

    Raises:
        UserError: an unknown model, weights that are missing or do not fit, or a package that is not installed.
    """
    model: VisionLanguageModel = VLM_BACKENDS[config.backend](config, device)
    return model
