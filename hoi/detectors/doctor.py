"""Whether a detector can run on a data set: weights that are there and fit, class names, images that results list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hoi.config import DatasetConfig, DetectorConfig, TorchvisionDetectorConfig
from hoi.datasets.findings import Finding, first_of
from hoi.detectors import build_detector
from hoi.detectors.precomputed import PrecomputedDetector
from hoi.vocabulary import Vocabulary


def check_detector(
    config: DetectorConfig, vocabulary: Vocabulary, dataset: DatasetConfig, image_ids: Sequence[str], download: bool
) -> Iterator[Finding]:
    """Builds the detector as stage one would, on the CPU.

    Args:
        config: Its section.
        vocabulary: Whose objects it has to know.
        dataset: What it will run on.
        image_ids: Of all splits.
        download: Whether weights may be downloaded for it.

    Raises:
        UserError: it cannot be built; the message says why.
    """
    if config.name == "torchvision" and not download:
        absent = _not_downloaded(config)
        if absent is not None:
            yield absent
            return
    detector = build_detector(config, vocabulary, "cpu", dataset)
    yield Finding("ok", f"detector {config.name}: loads, and knows all {len(vocabulary.objects)} objects")
    if isinstance(detector, PrecomputedDetector) and config.name == "precomputed":
        unlisted = [image_id for image_id in image_ids if not detector.lists(image_id)]
        if unlisted:
            yield Finding(
                "error",
                "images of the data set are not in the precomputed detections",
                config.instances,
                f"all {len(image_ids)}",
                first_of(unlisted),
                "run the detector on these images too, or name the images in its file as the data set does",
            )
        else:
            yield Finding("ok", f"precomputed detections list all {len(image_ids)} images", config.instances)


def _not_downloaded(config: TorchvisionDetectorConfig) -> Finding | None:
    """What says that published weights are not on this machine yet."""
    # Imported here: torchvision takes seconds that other detectors need not spend.
    import torch
    import torchvision

    if config.model not in torchvision.models.list_models(module=torchvision.models.detection):
        return None
    published = torchvision.models.get_model_weights(config.model)
    if config.weights != "DEFAULT" and config.weights not in published.__members__:
        return None
    url = published[config.weights].url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if (folder / Path(url).name).is_file():
        return None
    fix = f"let the first run download {url}, or put it into {folder}"
    return Finding("warning", f"the detector's weights {config.weights} are not here yet", str(folder), fix=fix)
