"""Measure the embedded world: its statistics beside HICO-DET's, and how good its CLIP, detector and captioner are.

Models are measured through the pipeline's own parts. No training imports this module: annotation is for measuring.

Shapes: K interactions, N boxes, P pairs.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hoi.boxes import union_boxes
from hoi.crops import CropStyle, crop_windows, cut_crop, whole_image_window
from hoi.detectors import Detector
from hoi.prompts import interaction_prompts
from hoi.teachers import Teacher
from hoi.vlm import VisionLanguageModel
from hoi.vlm.scoring import candidate_rows, confidences_by_likelihood, confidences_by_text, confidences_by_yes
from hoi.vocabulary import Vocabulary
from hoi.world import SceneAnnotation, annotate, caption, render, sample_scene
from hoi.world.models.captioner import QUESTION, world_lexicon
from hoi.world.models.clip import MEAN
from hoi.world.scene import Scene
from hoi.world.vocabulary import INTERACTIONS, NO_INTERACTION, SIZE_PX, SPLITS

BATCH = 64
"""Crops per forward pass."""

DrawnScene = tuple[np.ndarray, SceneAnnotation]


@dataclass(frozen=True)
class ClipFigures:
    """Figures of a teacher; `top1*` are shares of pairs whose best text names one of their interactions."""

    num_pairs: int
    top1: float  # of all K texts
    top1_single: float  # the same over the `num_single` pairs of one interaction
    num_single: int
    top1_within_object: float  # of the texts of the pair's object
    image_map: float  # mean AP of ranking whole images by each interaction that occurs


def measure_clip(teacher: Teacher, vocabulary: Vocabulary, margin: float, scenes: Sequence[DrawnScene]) -> ClipFigures:
    """Measure a teacher on whole images, and on the squares about annotated union boxes, enlarged by `margin`."""
    bank = teacher.text_bank(vocabulary)
    texts = torch.from_numpy(bank.text_embedding)
    style = teacher.crop_style
    crops, wholes, pairs = [], [], []
    for pixels, annotation in scenes:
        image, size_hw = torch.from_numpy(pixels).permute(2, 0, 1), pixels.shape[:2]
        wholes.append(cut_crop(image, whole_image_window(size_hw), teacher.image_size_px, style))
        for window in _union_windows(annotation, annotation.pairs, margin, size_hw, style):
            crops.append(cut_crop(image, window, style.size_px, style))
        for *_, interactions in annotation.pairs:
            pairs.append(np.isin(np.arange(len(vocabulary)), interactions))
    truth, images = np.array(pairs), _truth(vocabulary, [annotation for _, annotation in scenes])
    regions = [teacher.encode_crops(torch.stack(crops[at : at + BATCH])) for at in range(0, len(crops), BATCH)]
    cosine = (torch.cat(regions).cpu() @ texts.T).numpy()
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


def _union_windows(
    annotation: SceneAnnotation, pairs: Sequence[tuple], margin: float, size_hw: tuple[int, int], style: CropStyle
) -> np.ndarray:
    rows = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)
    unions = union_boxes(annotation.boxes_xyxy.astype(np.float32), rows)
    return crop_windows(unions, margin, "square", size_hw, style.resize_mode)


def _best_is_true(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.asarray(truth[np.arange(len(truth)), scores.argmax(1)])


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean precision at the rank of each positive, of which there must be one; ties keep their order."""
    ranked = truth[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def measure_detector(detector: Detector, vocabulary: Vocabulary, scenes: Sequence[DrawnScene]) -> dict[str, float]:
    """Return the AP of every object class at IoU 0.5, by pycocotools; -1 for a class that does not occur."""
    detected = detector.detect([image for image, _ in scenes], [str(row) for row in range(len(scenes))])
    truth: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for row, ((_, annotation), detections) in enumerate(zip(scenes, detected, strict=True)):
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
"""How captions begin, and what follows; the last is for `no_interaction`, which is never a candidate here."""
MAX_WORDS = 20
"""Longer captions (3 %) may exceed the model's context and are left out of the perplexity."""
CROP = CropStyle(192, tuple(round(255 * value) for value in MEAN), "bilinear", "shortest")  # type: ignore[arg-type]


@dataclass(frozen=True)
class CaptionerFigures:
    """Figures of a vision language model, by way of scoring."""

    perplexity: float
    """Per token of whole-image captions that it was not trained with."""
    image_map: dict[str, float]
    """Mean AP of ranking whole images by each verb interaction that occurs. Candidates are those of the objects
    annotated in the image: what it knows beyond a perfect detector."""
    chance_map: float
    """The same with 1 / (number of the object's verbs) as score."""
    top1_within_object: dict[str, float]
    """Share of pairs whose best text of their object names one of their interactions, given the union crop; without
    pairs of `no_interaction`."""


def measure_captioner(
    model: VisionLanguageModel,
    vocabulary: Vocabulary,
    margin: float,
    scenes: Sequence[Scene],
    drawn: Sequence[DrawnScene],
) -> CaptionerFigures:
    """Measure a vision language model on captions, whole images and union crops of scenes it was not trained with.

    `drawn` are the same scenes; crops are squares about the union boxes, enlarged by `margin`.
    """
    images = [image for image, _ in drawn]
    truth = _truth(vocabulary, [annotation for _, annotation in drawn])
    present = [np.isin(np.arange(len(vocabulary.objects)), annotation.labels) for _, annotation in drawn]
    texts = [caption(scene, 0) for scene in scenes]
    short = [[text] if len(text.split()) <= MAX_WORDS else [] for text in texts]
    written = model.log_likelihoods(images, short)
    tokens = sum(int(likelihoods.num_tokens.sum()) for likelihoods in written)
    nats = -sum(float(likelihoods.log_likelihood.sum()) for likelihoods in written)
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
        windows = _union_windows(annotation, pairs, margin, size_hw, CROP)
        for window, (_, obj, interactions) in zip(windows, pairs, strict=True):
            side = int(window[2] - window[0])
            crops.append(cut_crop(pixels, window, side, CROP).permute(1, 2, 0).contiguous().numpy())
            one = np.arange(len(vocabulary.objects)) == annotation.labels[obj]
            crop_rows.append(candidate_rows(vocabulary, one))
            crop_truth.append(np.isin(np.arange(len(vocabulary)), interactions))
    hits = np.array(crop_truth)
    crop_scores = _scores(model, vocabulary, crops, crop_rows)
    return CaptionerFigures(
        perplexity=float(np.exp(nats / tokens)),
        image_map=image_map,
        chance_map=mean_precision(chance),
        top1_within_object={way: float(_best_is_true(scores, hits).mean()) for way, scores in crop_scores.items()},
    )


def _scores(
    model: VisionLanguageModel, vocabulary: Vocabulary, images: Sequence[np.ndarray], rows: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Score the candidates of each image by every way of scoring: [images, K] each.

    `likelihood` is the sum itself; `sum` and `mean` are shares among the candidates of one object.
    """
    texts = [prompts[0] for prompts in interaction_prompts(vocabulary, [PHRASE], [NOTHING])]
    questions = [prompts[0] for prompts in interaction_prompts(vocabulary, [QUESTION], [NOTHING])]
    lexicon = world_lexicon()
    likely = model.log_likelihoods(images, [[texts[row] for row in candidates] for candidates in rows], BEGINNING)
    yes = model.yes_probabilities(images, [[questions[row] for row in candidates] for candidates in rows])
    said = model.captions(images)
    ways: dict[str, list[np.ndarray]] = defaultdict(list)
    for candidates, likelihoods, share, text in zip(rows, likely, yes, said, strict=True):
        confidences = {
            "likelihood": confidences_by_likelihood(likelihoods, candidates, vocabulary, length="sum", group="none"),
            "sum": confidences_by_likelihood(likelihoods, candidates, vocabulary, length="sum"),
            "mean": confidences_by_likelihood(likelihoods, candidates, vocabulary, length="mean"),
            "yes_no": confidences_by_yes(share, candidates, vocabulary),
            "free_text": confidences_by_text(text, candidates, vocabulary, lexicon),
        }
        for way, by_way in confidences.items():
            ways[way].append(by_way.scores)
    return {way: np.stack(scores) for way, scores in ways.items()}


def _truth(vocabulary: Vocabulary, annotations: Sequence[SceneAnnotation]) -> np.ndarray:
    """Return the interactions that are annotated in each image, bool [images, K]."""
    truth = np.zeros((len(annotations), len(vocabulary)), bool)
    for row, annotation in enumerate(annotations):
        for *_, interactions in annotation.pairs:
            truth[row, list(interactions)] = True
    return truth


RARE = "rare interactions (< 10 pairs), %"
RARE_BELOW = 10
"""An interaction with fewer pairs in `train` is rare, as in HICO-DET."""

REFERENCE: dict[str, str] = {
    "pairs per image": "2.28",
    "images of 1 / 2 / 3 / 4 / 5+ pairs, %": "62 / 19 / 6 / 4 / 9",
    "interactions per pair": "1.53",
    "pairs of 1 / 2 / 3 / 4+ interactions, %": "66 / 21 / 10 / 3",
    "distinct interactions per image": "2.1",
    "humans in pairs per image": "1.87",
    "images of one such human, %": "70",
    "objects in pairs per image": "1.56",
    "images of one such object, %": "77",
    "human sqrt(relative area), quantiles": "0.07 / 0.14 / 0.31 / 0.51 / 0.71",
    "object sqrt(relative area), quantiles": "0.07 / 0.14 / 0.30 / 0.55 / 0.72",
    "pairs with overlapping boxes, %": "83",
    "no_interaction among labels, %": "13",
    RARE: "23",
    "fewest pairs of an interaction": "1",
}
"""HICO-DET's column: test2015 annotations, pairs merged at IoU >= 0.5 of both boxes, rare classes of its training set.
Quantiles are the 10, 25, 50, 75 and 90th percentiles."""


def _shares(counts: list[int], top: int) -> str:
    images = Counter(min(count, top) for count in counts)
    return " / ".join(str(round(100 * images[n] / len(counts))) for n in range(1, top + 1))


def _quantiles(boxes_xyxy: np.ndarray) -> str:
    sides = np.sqrt((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])) / SIZE_PX
    return " / ".join(f"{q:.2f}" for q in np.percentile(sides, (10, 25, 50, 75, 90)))


def statistics(annotations: list[SceneAnnotation]) -> dict[str, str]:
    """Return the statistics of annotated scenes, under the keys of REFERENCE."""
    scenes = [a for a in annotations if a.pairs]
    pairs = [(a.boxes_xyxy[h], a.boxes_xyxy[o], rows) for a in scenes for h, o, rows in a.pairs]
    humans = [{h for h, _, _ in a.pairs} for a in scenes]
    objects = [{o for _, o, _ in a.pairs} for a in scenes]
    human_boxes = np.array([a.boxes_xyxy[row] for a, rows in zip(scenes, humans, strict=True) for row in rows])
    object_boxes = np.array([a.boxes_xyxy[row] for a, rows in zip(scenes, objects, strict=True) for row in rows])
    touching = [bool((np.maximum(h[:2], o[:2]) < np.minimum(h[2:], o[2:])).all()) for h, o, _ in pairs]
    labels = Counter(row for _, _, rows in pairs for row in rows)
    none = sum(count for row, count in labels.items() if INTERACTIONS[row][0] == NO_INTERACTION)
    rare = sum(labels[row] < RARE_BELOW for row in range(len(INTERACTIONS)))
    values = (
        f"{len(pairs) / len(scenes):.2f}",
        _shares([len(a.pairs) for a in scenes], 5),
        f"{sum(labels.values()) / len(pairs):.2f}",
        _shares([len(rows) for _, _, rows in pairs], 4),
        f"{np.mean([len({row for _, _, rows in a.pairs for row in rows}) for a in scenes]):.1f}",
        f"{np.mean([len(rows) for rows in humans]):.2f}",
        f"{round(100 * np.mean([len(rows) == 1 for rows in humans]))}",
        f"{np.mean([len(rows) for rows in objects]):.2f}",
        f"{round(100 * np.mean([len(rows) == 1 for rows in objects]))}",
        _quantiles(human_boxes),
        _quantiles(object_boxes),
        f"{round(100 * np.mean(touching))}",
        f"{round(100 * none / sum(labels.values()))}",
        f"{round(100 * rare / len(INTERACTIONS))}",
        f"{min(labels[row] for row in range(len(INTERACTIONS)))}",
    )
    return dict(zip(REFERENCE, values, strict=True))


def statistics_table(seed: int = 0) -> str:
    """Return the world's statistics by split, and HICO-DET's, as a Markdown table."""
    columns = {
        split: statistics([annotate(sample_scene(seed, split, index)) for index in range(size)])
        for split, size in SPLITS.items()
    }
    lines = [f"| | {' | '.join(SPLITS)} | HICO-DET |", "|" + "---|" * (len(SPLITS) + 2)]
    for key, reference in REFERENCE.items():
        cells = [columns[split][key] if split == "train" or key != RARE else "" for split in SPLITS]
        lines.append(f"| {key} | {' | '.join(cells)} | {reference} |")
    return "\n".join(lines)


def contact_sheet(seed: int, split: str, num_scenes: int) -> np.ndarray:
    """Return the first scenes of a split side by side, uint8 [rows * SIZE_PX, columns * SIZE_PX, 3]."""
    columns = max(isqrt(num_scenes * 3 // 2), 1)
    rows = -(-num_scenes // columns)
    sheet = np.full((rows * SIZE_PX, columns * SIZE_PX, 3), 255, np.uint8)
    for index in range(num_scenes):
        y, x = index // columns * SIZE_PX, index % columns * SIZE_PX
        sheet[y : y + SIZE_PX, x : x + SIZE_PX] = render(sample_scene(seed, split, index))
    return sheet
