"""Detectors by name, and how raw boxes become detections. A new one is a module and a line in `hoi.registry`."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Protocol, runtime_checkable

import numpy as np

from hoi.boxes import clip_boxes, suppress
from hoi.config import DatasetSettings, DetectorSettings
from hoi.errors import UserError
from hoi.prompts import spaced
from hoi.records import Detections
from hoi.registry import load_target
from hoi.vocabulary import NO_OBJECT, Vocabulary

RAW_DETECTIONS = 1000
"""Boxes that a model itself may keep: those of classes outside the vocabulary must not use up `max_detections`."""
MAX_CANDIDATES = 10_000
"""Boxes of one image that suppression compares, best first, so that no image makes it work without end."""
OPEN_VOCABULARY = "detector.name open_vocabulary, with pip install 'hoi-distill[open-vocabulary]'"


@runtime_checkable
class Detector(Protocol):
    """Finds the vocabulary's objects in images."""

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        """Return the detections of images, uint8 [H, W, 3] RGB; an image's do not depend on its neighbours."""

    def provenance(self) -> dict[str, object]:
        """Return everything that changes what is detected, in plain JSON types and free of paths."""


@runtime_checkable
class ListsImages(Protocol):
    """A detector that knows some images only."""

    listed_in: str
    """The file that names them."""

    def lists(self, image_id: str) -> bool:
        """Return whether an image of the dataset is among them."""

    def notices(self, image_ids: Sequence[str]) -> list[str]:
        """Return what is odd about how these images of the dataset are found. Raises UserError: none of them is."""
        ...


def match_classes(class_names: Sequence[str], vocabulary: Vocabulary, where: str) -> np.ndarray:
    """Return the vocabulary's row of each of a detector's classes, int64, -1 where it has none.

    Spaces, underscores and case do not matter. A UserError if the detector does not know some of the objects, which it
    would silently never find.
    """
    rows = {spaced(name).lower(): row for row, name in enumerate(vocabulary.objects)}
    matched = np.array([rows.get(spaced(name).lower(), -1) for name in class_names], dtype=np.int64)
    missing = [name for row, name in enumerate(vocabulary.objects) if row not in matched and name != NO_OBJECT]
    if missing:
        known = sorted({spaced(name) for name in class_names if name not in ("__background__", "N/A")})
        close = {name: get_close_matches(spaced(name).lower(), known, n=3, cutoff=0.5) for name in missing}
        alike = {name: f"nearest: {', '.join(names)}" if names else "nothing like it" for name, names in close.items()}
        raise UserError(
            f"the detector does not know {len(missing)} of the vocabulary's {len(vocabulary.objects)} objects",
            where=where,
            expected="; ".join(f"{name} ({like})" for name, like in alike.items()),
            got=", ".join(known),
            fix="say what each is seen as ('NAME = CLASS' in a file of phrases, detector_class in YAML), take it out, "
            f"or use a detector for any words: {OPEN_VOCABULARY}",
        )
    return matched


def keep_detections(
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    size_hw: tuple[int, int],
    config: DetectorSettings,
    *,
    nms: bool,
    image_id: str = "an image",
) -> Detections:
    """Return the Detections of one image: clipped, thresholded, suppressed class by class if `nms`, best first.

    Of more than `MAX_CANDIDATES` boxes the best are looked at, with a notice (`tell_of_cut`).
    Labels [N] are rows of the vocabulary's objects, of which negative ones are dropped; equal scores [N] keep their
    order; boxes [N, 4] are in pixels.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[(scores[order] >= config.min_score) & (labels[order] >= 0)]
    if len(order) > MAX_CANDIDATES:
        _cut[image_id] = None
        order = order[:MAX_CANDIDATES]
    found = Detections(
        clip_boxes(boxes_xyxy[order].astype(np.float32), size_hw),
        scores[order].astype(np.float32),
        labels[order].astype(np.int64),
    )
    if nms:
        found = found.select(suppress(found.boxes_xyxy, found.labels, config.nms_iou))
    return found.select(np.arange(min(len(found), config.max_detections)))


_cut: dict[str, None] = {}


def take_cut() -> list[str]:
    """Return, and forget, the ids of the images with too many boxes that this process has met."""
    taken = list(_cut)
    _cut.clear()
    return taken


@atexit.register
def tell_of_cut(image_ids: Sequence[str] | None = None) -> None:
    """Say once how many images had too many boxes: these ones, or all of this process."""
    if cut := dict.fromkeys(take_cut() if image_ids is None else image_ids):
        most = f"boxes of at least detector.min_score: of each, the best {MAX_CANDIDATES} are looked at"
        what = f"{len(cut)} images, the first of them '{next(iter(cut))}'"
        print(f"note: {what}, have more than {MAX_CANDIDATES} {most}", file=sys.stderr)


def kept_settings(config: DetectorSettings) -> dict[str, object]:
    return {"min_score": config.min_score, "max_detections": config.max_detections, "nms_iou": config.nms_iou}


def build_detector(config: DetectorSettings, vocabulary: Vocabulary, device: str, dataset: DatasetSettings) -> Detector:
    """Return the detector of a pipeline file, ready to run on `cpu` or `cuda`; annotated boxes come from `dataset`.

    Raises UserError: an unknown model, weights that are missing or do not fit, or objects that the model does not know.
    """
    return load_target(config.IMPLEMENTATION)(config, vocabulary, device, dataset)
