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
from hoi.crops import CropStyle, crop_windows, cut_crop, whole_image_window
from hoi.detectors import Detector
from hoi.prompts import interaction_prompts
from hoi.teachers import Teacher
from hoi.vlm.base import Likelihoods, VisionLanguageModel
from hoi.vlm.scoring import (
    Confidences,
    candidate_rows,
    confidences_by_likelihood,
    confidences_by_text,
    confidences_by_yes,
)
from hoi.vocabulary import Vocabulary
from hoi.world import SceneAnnotation, caption, draw, sample_scene
from hoi.world.questions import QUESTION, world_lexicon
from hoi.world.scene import Scene
from hoi.world.train_clip import MEAN

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


BEGINNING, PHRASE, NOTHING = "a person", "{verb_ing} {a_object}", "and {a_object}"
"""How captions are to begin, and what may follow; the last is `no_interaction`'s, which is never asked here."""
MAX_WORDS = 20
"""Longer captions (3 % of them) may be beyond the model's context and do not enter the perplexity."""
WAYS = ("likelihood", "sum", "mean", "yes_no", "free_text")
"""`likelihood` is the sum itself; `sum` and `mean` are shares among the candidates of one object."""
CROP = CropStyle(192, tuple(round(255 * value) for value in MEAN), "bilinear", "shortest")  # type: ignore[arg-type]


@dataclass(frozen=True)
class CaptionerFigures:
    """Of a vision language model; shares of 1.

    Args:
        perplexity: Per token of whole-image captions that it was not trained with.
        image_map: Mean average precision of ranking whole images by each interaction, over verbs that occur, by way of
            scoring. Asked are the interactions of objects that are annotated in the image, so this is what the model
            knows beyond a perfect detector.
        chance_map: The same with 1 / (number of the object's verbs) as score.
        top1_within_object: Annotated pairs whose best text of their object, given the union crop, names one of their
            interactions, by way of scoring; pairs of `no_interaction` are left out.
    """

    perplexity: float
    image_map: dict[str, float]
    chance_map: float
    top1_within_object: dict[str, float]


def measure_captioner(
    model: VisionLanguageModel,
    vocabulary: Vocabulary,
    margin: float,
    scenes: Sequence[Scene],
    drawn: Sequence[DrawnScene],
) -> CaptionerFigures:
    """Vision language model to its figures on captions, whole images and ground-truth union crops.

    Args:
        model: Under test.
        vocabulary: The world's.
        margin: Factor on the union box; the crop is the square about it.
        scenes: Of a split that nothing was trained with.
        drawn: The same, drawn, with their annotation.
    """
    images = [image for image, _ in drawn]
    truth, present = _truth(vocabulary, [annotation.pairs for _, annotation in drawn]), []
    for _, annotation in drawn:
        present.append(np.isin(np.arange(len(vocabulary.objects)), annotation.labels))
    texts = [caption(scene, 0) for scene in scenes]
    short = [[text] if len(text.split()) <= MAX_WORDS else [] for text in texts]
    written = model.log_likelihoods(images, short)
    tokens = sum(int(found.num_tokens.sum()) for found in written)
    nats = -sum(float(found.log_likelihood.sum()) for found in written)
    rows = [candidate_rows(vocabulary, classes) for classes in present]
    kinds = np.flatnonzero(truth.any(0) & ~vocabulary.is_no_interaction)

    def mean_precision(scores: np.ndarray) -> float:
        return float(np.mean([average_precision(scores[:, k], truth[:, k]) for k in kinds]))

    verbs = vocabulary.object_mask @ (~vocabulary.is_no_interaction).astype(float)
    chance = np.stack(present)[:, vocabulary.object_of] / np.maximum(verbs[vocabulary.object_of], 1)
    image_map = {way: mean_precision(scores) for way, scores in _scores(model, vocabulary, images, rows).items()}

    crops, crop_rows, crop_truth = [], [], []
    for image, annotation in drawn:
        pixels, size_hw = torch.from_numpy(image).permute(2, 0, 1), (image.shape[0], image.shape[1])
        pairs = [pair for pair in annotation.pairs if not vocabulary.is_no_interaction[list(pair[2])].all()]
        boxes = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
        unions = union_boxes(annotation.boxes_xyxy.astype(np.float32), boxes)
        windows = crop_windows(unions, margin, "square", size_hw, CROP.resize_mode)
        for window, (_, thing, interactions) in zip(windows, pairs, strict=True):
            side = int(window[2] - window[0])
            crops.append(cut_crop(pixels, window, side, CROP).permute(1, 2, 0).contiguous().numpy())
            one = np.arange(len(vocabulary.objects)) == annotation.labels[thing]
            crop_rows.append(candidate_rows(vocabulary, one))
            crop_truth.append(np.isin(np.arange(len(vocabulary)), interactions))
    hits = np.array(crop_truth)
    found = _scores(model, vocabulary, crops, crop_rows)
    return CaptionerFigures(
        perplexity=float(np.exp(nats / tokens)),
        image_map=image_map,
        chance_map=mean_precision(chance),
        top1_within_object={
            way: float(hits[np.arange(len(hits)), scores.argmax(1)].mean()) for way, scores in found.items()
        },
    )


def _scores(
    model: VisionLanguageModel, vocabulary: Vocabulary, images: Sequence[np.ndarray], rows: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Images and their candidates to [images, K] by every way of scoring."""
    texts = [prompts[0] for prompts in interaction_prompts(vocabulary, [PHRASE], [NOTHING])]
    questions = [prompts[0] for prompts in interaction_prompts(vocabulary, [QUESTION], [NOTHING])]
    lexicon = world_lexicon()
    likely: list[Likelihoods] = model.log_likelihoods(images, [[texts[row] for row in own] for own in rows], BEGINNING)
    yes = model.yes_probabilities(images, [[questions[row] for row in own] for own in rows])
    said = model.captions(images)
    ways: dict[str, list[Confidences]] = {way: [] for way in WAYS}
    for own, likelihoods, share, text in zip(rows, likely, yes, said, strict=True):
        plain = confidences_by_likelihood(likelihoods, own, vocabulary, length="sum", group="none")
        ways["likelihood"].append(plain)
        ways["sum"].append(confidences_by_likelihood(likelihoods, own, vocabulary, length="sum"))
        ways["mean"].append(confidences_by_likelihood(likelihoods, own, vocabulary, length="mean"))
        ways["yes_no"].append(confidences_by_yes(share, own, vocabulary))
        ways["free_text"].append(confidences_by_text(text, own, vocabulary, lexicon))
    return {way: np.stack([found.scores for found in all_of]) for way, all_of in ways.items()}


def _truth(vocabulary: Vocabulary, pairs_of: Sequence[Sequence[tuple[int, int, tuple[int, ...]]]]) -> np.ndarray:
    """bool [images, K]: which interactions are annotated in each image."""
    truth = np.zeros((len(pairs_of), len(vocabulary)), bool)
    for row, pairs in enumerate(pairs_of):
        for *_, interactions in pairs:
            truth[row, list(interactions)] = True
    return truth
