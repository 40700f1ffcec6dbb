"""A sample of images, looked at in other ways with the same boxes: does a scorer say the same?

Letters: P pairs, K interactions, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float

from hoi.boxes import box_iou
from hoi.detectors import Detector
from hoi.extraction import Extractor
from hoi.prediction.batch import batch_of
from hoi.quality.views import VIEWS, CarriedDetections, compared_pairs, look
from hoi.records import Detections, PairBatch
from hoi.vocabulary import Vocabulary

SAME_IOU = 0.5

ScoreBatch = Callable[[PairBatch], torch.Tensor]
"""A batch to [P, K] scores, without the detection prior."""


@dataclass
class Looks:
    """Scores of the sample's pairs: as they were, and in one view.

    Args:
        before, after: By scorer, lists of [P, K].
        admitted: Of bool [P, K], which interactions a pair's object admits.
    """

    before: dict[str, list[np.ndarray]] = field(default_factory=dict)
    after: dict[str, list[np.ndarray]] = field(default_factory=dict)
    admitted: list[np.ndarray] = field(default_factory=list)

    def of(self, scorer: str) -> tuple[Float[np.ndarray, "P K"], Float[np.ndarray, "P K"], Bool[np.ndarray, "P K"]]:
        """All that one scorer said: before, after, and where it counts."""
        return np.concatenate(self.before[scorer]), np.concatenate(self.after[scorer]), np.concatenate(self.admitted)


@dataclass(frozen=True)
class SampledImage:
    """An image of the sample.

    Args:
        image_id: Its key.
        pixels: uint8 [H, W, 3].
        detections: As cached.
        scores: [P, K] by scorer, of its cached pairs.
    """

    image_id: str
    pixels: np.ndarray
    detections: Detections
    scores: Mapping[str, np.ndarray]


def look_again(
    images: Sequence[SampledImage],
    extractor: Extractor,
    carried: CarriedDetections,
    scorers: Mapping[str, ScoreBatch],
    extra: Sequence[str],
    vocabulary: Vocabulary,
    seen: Callable[[], object],
) -> dict[str, Looks]:
    """Scores every image's pairs again in each view.

    Args:
        images: The sample.
        extractor: Of the cache's settings, with `carried` as its detector.
        carried: What hands the moved boxes on.
        scorers: By name.
        extra: Further fields that they read.
        vocabulary: Which interactions an object admits.
        seen: Called after each image.
    """
    looks: dict[str, Looks] = {view: Looks() for view in VIEWS}
    for image in images:
        views = [look(image.pixels, image.detections, name) for name in VIEWS]
        for name, view in zip(VIEWS, views, strict=True):
            carried.expect(name, view.detections)
        signals = extractor.extract(VIEWS, [view.image for view in views])
        for name, view, seen_so in zip(VIEWS, views, signals, strict=True):
            batch = batch_of([seen_so], extra, vocabulary.no_object_idx)
            rows = compared_pairs(view, seen_so.pairs_ho)
            looks[name].admitted.append(vocabulary.object_mask[batch.labels_o.numpy()][rows])
            for scorer, score in scorers.items():
                with torch.inference_mode():
                    after = score(batch).double().cpu().numpy()
                looks[name].before.setdefault(scorer, []).append(image.scores[scorer][rows])
                looks[name].after.setdefault(scorer, []).append(after[rows])
        seen()
    return looks


def found_again(images: Sequence[SampledImage], detector: Detector, min_score: float) -> float | None:
    """Share of the detections that pair up which the detector finds in the mirrored image as well.

    Args:
        images: The sample.
        detector: The config's own.
        min_score: Of detections that pair up.

    Returns:
        By class and IoU 0.5; None without a detection.
    """
    hits: list[bool] = []
    for image in images:
        there = image.detections.select(image.detections.scores >= min_score)
        mirrored = look(image.pixels, there, "flip")
        [found] = detector.detect([mirrored.image], [image.image_id])
        same = box_iou(mirrored.detections.boxes_xyxy, found.boxes_xyxy) >= SAME_IOU
        same &= mirrored.detections.labels[:, None] == found.labels[None]
        hits += [bool(row.any()) for row in same]
    return float(np.mean(hits)) if hits else None
