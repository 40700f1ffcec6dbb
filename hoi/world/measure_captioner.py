"""How good the embedded world's captioner is, measured on annotated scenes as a vision language model of the pipeline.

Annotation serves measuring only: no training imports this module. Letters: K interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hoi.boxes import union_boxes
from hoi.crops import CropStyle, crop_windows, cut_crop
from hoi.prompts import interaction_prompts
from hoi.vllm.base import Likelihoods, VisionLanguageModel
from hoi.vllm.scoring import (
    Confidences,
    candidate_rows,
    confidences_by_likelihood,
    confidences_by_text,
    confidences_by_yes,
)
from hoi.vocabulary import Vocabulary
from hoi.world import caption
from hoi.world.captioned import MEAN
from hoi.world.measure import DrawnScene, average_precision
from hoi.world.questions import QUESTION, world_lexicon
from hoi.world.scene import Scene

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
