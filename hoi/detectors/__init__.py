"""Detectors by name; a further one is a module and a line in `hoi.registry.DETECTORS`."""

from __future__ import annotations

from hoi.config import DatasetSettings, DetectorSettings
from hoi.detectors.base import Detector
from hoi.registry import load_target
from hoi.vocabulary import Vocabulary

__all__ = ["Detector", "build_detector"]


def build_detector(config: DetectorSettings, vocabulary: Vocabulary, device: str, dataset: DatasetSettings) -> Detector:
    """Return the detector of a pipeline file, ready to run.

    Args:
        device: `cpu` or `cuda`; detectors that only look boxes up ignore it.
        dataset: Where annotated boxes come from; others ignore it.

    Raises:
        UserError: an unknown model, weights that are missing or do not fit, or no class in common with the vocabulary.
    """
    detector: Detector = load_target(config.IMPLEMENTATION)(config, vocabulary, device, dataset)
    return detector
