"""How good the embedded world's CLIP and detector are, measured on annotated scenes through the pipeline's own parts.

Annotation serves measuring only: no training imports this module. Letters: K interactions, N boxes, P pairs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hoi.boxes import union_boxes
from hoi.crops import crop_windows, cut_crop, whole_image_window
from hoi.detectors import Detector
from hoi.teachers import Teacher
from hoi.vocabulary import Vocabulary
from hoi.world import SceneAnnotation, draw, sample_scene

BATCH = 64
"""Crops of one forward pass."""

DrawnScene = tuple[np.ndarray, SceneAnnotation]


@dataclass(frozen=True)
class ClipFigures:
    """Of a teacher; shares of 1.

    Args:
        num_pairs: Annotated pairs.
        top1: Pairs whose best text, of all K, names one of their interactions.
        top1_single: The same over pairs of one interaction.
        num_single: How many those are.
        top1_within_object: The best text among those of the pair's object.
        image_map: Mean average precision of ranking whole images by each interaction, over interactions that occur.
    """

    num_pairs: int
    top1: float
    top1_single: float
    num_single: int
    top1_within_object: float
    image_map: float


def drawn_scenes(seed: int, split: str, num_scenes: int) -> list[DrawnScene]:
    """The first scenes of a split, with their annotation."""
    return [draw(sample_scene(seed, split, index)) for index in range(num_scenes)]


def measure_clip(teacher: Teacher, vocabulary: Vocabulary, margin: float, scenes: Sequence[DrawnScene]) -> ClipFigures:
    """Teacher to its figures on ground-truth union crops and whole images.

    Args:
        teacher: Under test.
        vocabulary: The world's.
        margin: Factor on the union box; the crop is the square about it.
        scenes: To measure on.
    """
    bank = teacher.text_bank(vocabulary)
    texts = torch.from_numpy(bank.text_embedding)
    style = teacher.crop_style
    crops, wholes, pairs, images = [], [], [], np.zeros((len(scenes), len(vocabulary)), bool)
    for row, (pixels, annotation) in enumerate(scenes):
        image, size_hw = torch.from_numpy(pixels).permute(2, 0, 1), pixels.shape[:2]
        wholes.append(cut_crop(image, whole_image_window(size_hw), teacher.image_size_px, style))
        rows = np.array([pair[:2] for pair in annotation.pairs], np.int64).reshape(-1, 2)
        unions = union_boxes(annotation.boxes_xyxy.astype(np.float32), rows)
        for window in crop_windows(unions, margin, "square", size_hw, style.resize_mode):
            crops.append(cut_crop(image, window, style.size_px, style))
        for *_, interactions in annotation.pairs:
            pairs.append(np.isin(np.arange(len(vocabulary)), interactions))
            images[row] |= pairs[-1]
    truth = np.array(pairs)
    found = [teacher.encode_crops(torch.stack(crops[at : at + BATCH])) for at in range(0, len(crops), BATCH)]
    cosine = (torch.cat(found).cpu() @ texts.T).numpy()
    hits = _best_is_true(cosine, truth)
    single = truth.sum(1) == 1
    same_object = truth.astype(int) @ vocabulary.object_mask.T @ vocabulary.object_mask > 0
    whole = [teacher.encode_images(torch.stack(wholes[at : at + BATCH])) for at in range(0, len(wholes), BATCH)]
    image_cosine = torch.cat([w.embedding for w in whole]).cpu() @ texts.T
    image_scores = (bank.logit_scale * image_cosine).softmax(1).numpy()
    present = np.flatnonzero(images.any(0))
    return ClipFigures(
        num_pairs=len(truth),
        top1=float(hits.mean()),
        top1_single=float(hits[single].mean()),
        num_single=int(single.sum()),
        top1_within_object=float(_best_is_true(np.where(same_object, cosine, -2), truth).mean()),
        image_map=float(np.mean([average_precision(image_scores[:, k], images[:, k]) for k in present])),
    )


def _best_is_true(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.asarray(truth[np.arange(len(truth)), scores.argmax(1)])


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision at the rank of each positive; at least one is needed.

    Args:
        scores: [N]; equal scores keep their order.
        truth: bool [N].
    """
    ranked = truth[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def measure_detector(detector: Detector, vocabulary: Vocabulary, scenes: Sequence[DrawnScene]) -> dict[str, float]:
    """Detector to its AP at IoU 0.5 of every object class, by pycocotools.

    Args:
        detector: Under test.
        vocabulary: The world's; its objects are in the order of the annotation's labels.
        scenes: To measure on; every class must occur.
    """
    found = detector.detect([image for image, _ in scenes], [str(row) for row in range(len(scenes))])
    truth: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for row, ((_, annotation), detections) in enumerate(zip(scenes, found, strict=True)):
        for box, label in zip(annotation.boxes_xyxy.tolist(), annotation.labels.tolist(), strict=True):
            size = {"bbox": _xywh(box), "area": (box[2] - box[0]) * (box[3] - box[1])}
            truth.append({"id": len(truth) + 1, "image_id": row, "category_id": label, "iscrowd": 0, **size})
        columns = (detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist())
        for box, score, label in zip(*columns, strict=True):
            results.append({"image_id": row, "category_id": label, "bbox": _xywh(box), "score": score})
    categories = [{"id": row, "name": name} for row, name in enumerate(vocabulary.objects)]
    # pycocotools prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": row} for row in range(len(scenes))]
        coco.dataset = {"info": {}, "images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
    # [IoU thresholds, recalls, classes, areas, detection limits]: IoU 0.5, all areas, 100 detections.
    precision = run.eval["precision"][0, :, :, 0, 2]
    return {name: float(precision[:, row].mean()) for row, name in enumerate(vocabulary.objects)}


def _xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
