"""Detectors by name. A further one is a module here and a section in `hoi.config`."""

from __future__ import annotations

from hoi.config import DatasetConfig, DetectorConfig
from hoi.detectors.base import Detector
from hoi.vocabulary import Vocabulary

__all__ = ["Detector", "build_detector"]


def build_detector(config: DetectorConfig, vocabulary: Vocabulary, device: str, dataset: DatasetConfig) -> Detector:
    """Config section to a detector that is ready to run.

    Args:
        device: `cpu` or `cuda`; detectors that only look boxes up ignore it.
        dataset: Where the ground truth comes from; others ignore it.

    Raises:
        UserError: an unknown model, weights that are missing or do not fit, or no class in common with the vocabulary.
    """
    # Each detector is imported when it is used: a look-up in a JSON file needs neither torchvision nor weights.
    if config.name == "world":
        from hoi.detectors.world import WorldDetector

        return WorldDetector(config, vocabulary, device)
    if config.name == "torchvision":
        from hoi.detectors.torchvision import TorchvisionDetector

        return TorchvisionDetector(config, vocabulary, device)
    if config.name == "detectron2":
        from hoi.detectors.detectron2 import Detectron2Detector

        return Detectron2Detector(config, vocabulary, device)
    if config.name == "precomputed":
        from hoi.detectors.precomputed import PrecomputedDetector

        return PrecomputedDetector(config, vocabulary)
    if config.name == "open_vocabulary":
        from hoi.detectors.open_vocabulary import OpenVocabularyDetector

        return OpenVocabularyDetector(config, vocabulary, device)
    from hoi.detectors.ground_truth import GroundTruthDetector

    return GroundTruthDetector(config, vocabulary, dataset)
