"""Is a cache sane? Detector and teacher against the labels of the evaluated split, before anything is trained on them.

Labels judge here and choose nothing: no threshold, setting or checkpoint follows from a sanity gate. One warns far
below what is published, and stops where a figure is no better than with the images mixed up: boxes in another frame,
classes in another order, or weights that are not the model's.

Letters: I images, K interactions, N boxes, P pairs.

Source: the average precision of images is HICO's own (ywchao/hico_benchmark, utils/eval_pr_score_label.m), but here
each image without an annotated pair of an interaction is a negative.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hoi.evaluation.hico import PROTOCOLS, match
from hoi.evaluation.ranking import Ranking, average_precision
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import Vocabulary

PUBLISHED = 0.355
SOURCE = "CLIP on HICO's test images, Wan & Tuytelaars, WACV 2024"
TEACHER_FLOOR = PUBLISHED / 2
HUMAN_FLOOR, OBJECT_FLOOR = 0.5, 0.3
"""Of recall at IoU 0.5. Ours, as nothing is published; COCO detectors find most people and things that they handle."""
MOST_UNREADABLE, MOST_WITHOUT_PAIR = 0.01, 0.25
"""Shares of the images above which a gate warns."""
NUM_SHUFFLES = 20
"""Times that images are mixed up; the largest figure among them is what chance may give."""

Level = Literal["ok", "warning", "stop"]


@dataclass(frozen=True)
class SanityGate:
    """One thing that was looked at.

    Args:
        name: `images`, `detector`, `teacher`, or that of a pass of `vlms`.
        level: `stop` where nothing that is trained on this cache could mean anything.
        said: The figures, for people.
        figures: The same for machines; shares are fractions.
        fix: What to look at; None where all is well.
    """

    name: str
    level: Level
    said: str
    figures: dict[str, Any]
    fix: str | None = None

    def __str__(self) -> str:
        line = f"{self.level:<8}{self.name}: {self.said}"
        return line if self.fix is None else f"{line} · next: {self.fix}"

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Figure:
    """A share with what it is to be compared with.

    Args:
        value: Measured.
        chance: The largest with the images mixed up.
        floor: Far below what a sane cache has.
    """

    value: float
    chance: float
    floor: float

    @property
    def level(self) -> Level:
        """`stop` only where chance itself is far from sane, so that the two can be told apart."""
        if self.chance < self.floor and self.value <= self.chance:
            return "stop"
        return "warning" if self.value < self.floor or self.chance >= self.floor else "ok"


@dataclass(frozen=True)
class Boxes:
    """Boxes or pairs of a split, laid flat.

    Args:
        image: int64 [N], row of the split.
        label: int64 [N], row of the vocabulary's objects; of a pair, its object's.
        first, second: float32 [N, 4], of a pair the human and the object, otherwise the same.
    """

    image: np.ndarray
    label: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def distinct(self) -> Boxes:
        """Without repetitions: a box is annotated anew for each of its interactions."""
        table = np.column_stack([self.image, self.label, self.first.astype(np.float64), self.second])
        _, rows = np.unique(table, axis=0, return_index=True)
        return Boxes(self.image[rows], self.label[rows], self.first[rows], self.second[rows])


def images_gate(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> SanityGate:
    """Shares of unreadable images and of images without a pair, and pairs per image.

    Args:
        splits: By name: bool [I], whether an image could be read, and int64 [I], its pairs.
    """
    figures = {
        name: {
            "num_images": len(is_readable),
            "unreadable": float(1 - is_readable.mean()),
            "without_pair": float((num_pairs == 0).mean()),
            "pairs_per_image": float(num_pairs.mean()),
        }
        for name, (is_readable, num_pairs) in splits.items()
    }
    said = "; ".join(
        f"{name} {100 * of['unreadable']:.2f} % of {of['num_images']} unreadable, "
        f"{100 * of['without_pair']:.1f} % without a pair, {of['pairs_per_image']:.1f} pairs per image"
        for name, of in figures.items()
    )
    if any(of["without_pair"] == 1 for of in figures.values()):
        fix = "the detector's weights and classes, precomputed boxes, pairs.min_score"
        return SanityGate("images", "stop", f"{said}: nothing pairs up", figures, fix)
    if any(of["unreadable"] > MOST_UNREADABLE or of["without_pair"] > MOST_WITHOUT_PAIR for of in figures.values()):
        fix = "the reasons that hoi cache info lists, the detector's weights, pairs.min_score"
        return SanityGate("images", "warning", said, figures, fix)
    return SanityGate("images", "ok", said, figures)


def detector_gate(
    detections: Boxes, pairs: Boxes, labels: HoiLabels, vocabulary: Vocabulary, num_images: int
) -> SanityGate:
    """Shares of the annotated humans, objects and pairs that a cached box or pair of the class meets at IoU 0.5.

    Only what takes part in an interaction is annotated, so a box without annotation need not be wrong: recall can be
    measured, precision cannot. That of pairs bounds what any student can reach, and has no floor.
    """
    objects = vocabulary.object_of[labels.interaction]
    people = Boxes(labels.image, np.full(len(labels), vocabulary.person_idx), labels.boxes_h, labels.boxes_h)
    rows = np.flatnonzero(objects != vocabulary.no_object_idx)
    image, objects, boxes_h, boxes_o = labels.image[rows], objects[rows], labels.boxes_h[rows], labels.boxes_o[rows]
    measured = {
        "human": (people, detections, HUMAN_FLOOR),
        "object": (Boxes(image, objects, boxes_o, boxes_o), detections, OBJECT_FLOOR),
        "pair": (Boxes(image, objects, boxes_h, boxes_o), pairs, 0.0),
    }
    steps = np.unique(np.linspace(1, max(num_images - 1, 1), NUM_SHUFFLES).astype(int))
    figures = {}
    num_annotated = {}
    for name, (annotated, found, floor) in measured.items():
        truth = annotated.distinct()
        num_annotated[name] = len(truth)
        if not len(truth):
            continue
        others = (Boxes((found.image + step) % num_images, found.label, found.first, found.second) for step in steps)
        chance = max(_recall(truth, moved, vocabulary) for moved in others)
        figures[name] = Figure(_recall(truth, found, vocabulary), chance, floor)
    said = ", ".join(f"{100 * of.value:.1f} % of {num_annotated[name]} {name}s" for name, of in figures.items())
    plain = {"recall": {name: asdict(of) for name, of in figures.items()}, "num_annotated": num_annotated}
    fix = "the detector's weights and classes, the frame of precomputed boxes, images of another size than annotated"
    judged = [figures[name] for name in ("human", "object") if name in figures]
    return judge("detector", f"IoU 0.5 with a cached box or pair: {said}", judged, plain, fix)


def teacher_gate(
    similarity: np.ndarray, logit_scale: float, is_readable: np.ndarray, labels: HoiLabels, vocabulary: Vocabulary
) -> SanityGate:
    """Readable images ranked by the teacher for each interaction, against the image-level labels: mean AP.

    The published figure does not say how scores were read, so the better of two readings counts: the cosine, and its
    softmax over all interactions.

    Args:
        similarity: [I, K] cosine of whole images.
        logit_scale: Of the softmax.
        is_readable: bool [I].
        labels: At least one; an image is positive for the interactions of its annotated pairs.
        vocabulary: K interactions.
    """
    present = positives(labels, len(is_readable), vocabulary)[is_readable]
    logits = logit_scale * similarity[is_readable].astype(np.float64)
    readings = {"softmax": logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), "cosine": logits}
    orders = {name: np.argsort(-scores, axis=0, kind="stable") for name, scores in readings.items()}
    found = {name: mean_ap(order, present) for name, order in orders.items()}
    best = max(found, key=lambda name: found[name])
    dice = np.random.default_rng(0)
    chance = max(mean_ap(orders[best], dice.permutation(present)) for _ in range(NUM_SHUFFLES))
    figure = Figure(found[best], chance, TEACHER_FLOOR)
    plain = {
        "image_level_map": {**asdict(figure), "by_reading": found},
        "published": {"value": PUBLISHED, "source": SOURCE},
        "num_images": len(present),
        "num_interactions": int(present.any(0).sum()),
    }
    said = (
        f"image-level mAP {100 * figure.value:.1f} ({best}) over {plain['num_interactions']} interactions, by chance "
        f"{100 * chance:.1f}; published for HICO-DET: {100 * PUBLISHED:.1f} ({SOURCE})"
    )
    fix = "the teacher's weights, its activation (-quickgelu), crops and prompts, the order of the annotated classes"
    return judge("teacher", said, [figure], plain, fix)


def positives(labels: HoiLabels, num_images: int, vocabulary: Vocabulary) -> np.ndarray:
    """bool [I, K]: which interactions an image's annotated pairs do."""
    present = np.zeros((num_images, len(vocabulary)), bool)
    present[labels.image, labels.interaction] = True
    return present


def mean_ap(order: np.ndarray, present: np.ndarray) -> float:
    """Ranked images of each interaction to the mean average precision over those that are in any image, 0 without any.

    Args:
        order: int64 [I, K], rows of the images, best first.
        present: bool [I, K].
    """
    num_images, num_interactions = present.shape
    is_true = np.take_along_axis(present, order, axis=0).T.ravel()
    ranking = Ranking(order.T.ravel(), is_true, np.arange(num_interactions + 1) * num_images)
    num_positives = present.sum(0)
    ap = average_precision(ranking, num_positives, PROTOCOLS["official"].levels)
    return float(ap[num_positives > 0].mean()) if num_positives.any() else 0.0


def _recall(truth: Boxes, found: Boxes, vocabulary: Vocabulary) -> float:
    """Share of the true boxes or pairs that some found one of the same image and class meets."""
    asked = Triplets(truth.image, truth.first, truth.second, truth.label, np.zeros(len(truth)))
    there = HoiLabels(found.image, found.first, found.second, found.label)
    return float(match(asked, there, len(vocabulary.objects), protocol="official").is_hit.mean())


def judge(name: str, said: str, figures: list[Figure], plain: dict[str, Any], fix: str) -> SanityGate:
    """Figures to the gate that the worst of them gives.

    Args:
        name: Of the gate.
        said: The figures in words.
        figures: What is judged.
        plain: For machines.
        fix: What to look at where one is bad.
    """
    levels = {figure.level for figure in figures}
    if "stop" in levels:
        return SanityGate(name, "stop", f"{said}: no better than with the images mixed up", plain, fix)
    if "warning" not in levels:
        return SanityGate(name, "ok", said, plain)
    if all(figure.value >= figure.floor or figure.chance >= figure.floor for figure in figures):
        return SanityGate(name, "warning", f"{said}: too few images to tell from chance", plain)
    return SanityGate(name, "warning", f"{said}: far too low", plain, fix)


NOT_ASKED = -1.0
"""Below every score: an image where an interaction was no candidate comes last."""


def vlm_gate(
    name: str,
    scores: np.ndarray,
    asked: np.ndarray,
    similarity: np.ndarray,
    logit_scale: float,
    is_readable: np.ndarray,
    labels: HoiLabels,
    vocabulary: Vocabulary,
) -> SanityGate:
    """Readable images ranked by a pass's confidences, against the image-level labels: mean AP.

    Over the interactions that it was asked in any image. CLIP's cosines are ranked on the same interactions twice: as
    they are, and with the images last where the pass was not asked, which the detector alone has told it.

    Args:
        name: Of the pass.
        scores, asked: [I, K].
        similarity: [I, K], CLIP's cosines of whole images.
        logit_scale: Of CLIP's softmax.
        is_readable: bool [I].
        labels: At least one.
        vocabulary: K interactions.
    """
    asked = asked[is_readable] > 0
    columns = asked.any(0)
    present = positives(labels, len(is_readable), vocabulary)[is_readable][:, columns]
    asked = asked[:, columns]
    said = np.where(asked, scores[is_readable][:, columns].astype(np.float64), NOT_ASKED)
    logits = logit_scale * similarity[is_readable].astype(np.float64)
    clip = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))[:, columns]
    readings = {name: said, "clip": clip, "clip_where_asked": np.where(asked, clip, NOT_ASKED)}
    orders = {reading: np.argsort(-of, axis=0, kind="stable") for reading, of in readings.items()}
    found = {reading: mean_ap(order, present) for reading, order in orders.items()}
    dice = np.random.default_rng(0)
    chance = max(mean_ap(orders[name], dice.permutation(present)) for _ in range(NUM_SHUFFLES))
    figure = Figure(found[name], chance, TEACHER_FLOOR)
    plain = {
        "image_level_map": {**asdict(figure), "by_reading": found},
        "num_images": len(present),
        "num_interactions": int(present.any(0).sum()),
        "num_candidates": float(asked.sum(1).mean()),
    }
    text = (
        f"image-level mAP {100 * figure.value:.1f} over {plain['num_interactions']} interactions that it was asked, "
        f"{plain['num_candidates']:.1f} of an image, by chance {100 * chance:.1f}; CLIP on the same "
        f"{100 * found['clip']:.1f}, where asked {100 * found['clip_where_asked']:.1f}"
    )
    fix = f"the weights, phrases and scoring under vlms.{name}"
    return judge(name, text, [figure], plain, fix)
