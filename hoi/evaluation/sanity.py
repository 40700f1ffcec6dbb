"""Sanity gates between stages one and two: detector and teacher against the labels of the evaluated split.

Labels only judge here: no threshold, setting or checkpoint follows from a gate. A gate warns where a figure is far
below what is published, and stops where it is no better than with the images shuffled: boxes in another frame, classes
in another order, or weights that are not the model's. The result is written to sanity.json beside the results.

Shapes: I images, K interactions, N boxes or pairs.

Source: the average precision of images is HICO's own (ywchao/hico_benchmark, utils/eval_pr_score_label.m), but here
each image without an annotated pair of an interaction is a negative.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import Struct

from hoi.cache.plan import splits_of
from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.evaluation.hico import PROTOCOLS, Ranking, average_precision, match
from hoi.files import read_json, write_json
from hoi.labels import has_labels, load_labels
from hoi.records import HoiLabels, Triplets
from hoi.vocabulary import Vocabulary

FILE_NAME = "sanity.json"
PUBLISHED = 0.355
SOURCE = "CLIP on HICO's test images, Wan & Tuytelaars, WACV 2024"
TEACHER_FLOOR = PUBLISHED / 2
# Recall at IoU 0.5. Our own choice, as nothing is published; COCO detectors find most people and handled objects.
HUMAN_FLOOR, OBJECT_FLOOR = 0.5, 0.3
# Shares of the images above which a gate warns.
MOST_UNREADABLE, MOST_WITHOUT_PAIR = 0.01, 0.25
NUM_SHUFFLES = 20  # the largest figure over so many shuffles of the images is taken as chance
NOT_ASKED = -1.0  # below every score: an image in which an interaction was no candidate is ranked last

Level = Literal["ok", "warning", "stop"]


@dataclass(frozen=True)
class SanityGate:
    """The verdict on one part of the cache."""

    name: str  # images, detector, teacher, or the name of a pass of `vlms`
    level: Level  # stop: nothing that is trained on this cache could mean anything
    said: str
    figures: dict[str, Any]  # shares are fractions
    fix: str | None = None

    def __str__(self) -> str:
        line = f"{self.level:<8}{self.name}: {self.said}"
        return line if self.fix is None else f"{line} · next: {self.fix}"


@dataclass(frozen=True)
class SanityReport:
    """All gates, in the order of the flow."""

    split: str | None  # whose labels were read; None where there are none
    gates: tuple[SanityGate, ...]
    file: Path

    @property
    def stops(self) -> bool:
        """Whether a figure is at chance."""
        return any(gate.level == "stop" for gate in self.gates)

    def __str__(self) -> str:
        unjudged = [] if self.split else ["no annotations: detector and teacher are not judged"]
        return "\n".join([*map(str, self.gates), *unjudged])


@dataclass(frozen=True)
class Figure:
    """A share, the largest that shuffled images gave, and the floor below which a gate warns."""

    value: float
    chance: float
    floor: float

    @property
    def level(self) -> Level:
        """`stop` only where chance itself is below the floor, so that the two can be told apart."""
        if self.chance < self.floor and self.value <= self.chance:
            return "stop"
        return "warning" if self.value < self.floor or self.chance >= self.floor else "ok"


@dataclass(frozen=True)
class Boxes:
    """Boxes or pairs of a split, laid flat."""

    image: np.ndarray  # int64 [N], row of the split
    label: np.ndarray  # int64 [N], row of the vocabulary's objects; of a pair, its object's
    first: np.ndarray  # float32 [N, 4], the box, or the human's of a pair
    second: np.ndarray  # float32 [N, 4], the box again, or the object's of a pair

    def __len__(self) -> int:
        return len(self.image)

    def distinct(self) -> Boxes:
        """Drop repetitions: a box is annotated anew for each of its interactions."""
        table = np.column_stack([self.image, self.label, self.first.astype(np.float64), self.second])
        _, rows = np.unique(table, axis=0, return_index=True)
        return Boxes(self.image[rows], self.label[rows], self.first[rows], self.second[rows])


def check_sanity(config: PipelineConfig) -> SanityReport:
    """Judge detector and teacher on the evaluated split, and images and pairs on all splits; write sanity.json.

    Raises UserError: no cache, a cache of other settings, or wrong annotations.
    """
    splits = {name: open_split(config, name) for name in splits_of(config)}
    name, file = config.evaluation.split, Path(config.output) / FILE_NAME
    gates = [images_gate({key: (split.is_readable, np.diff(split.pair_offsets)) for key, split in splits.items()})]
    judged = None
    labels = load_labels(config.dataset, name) if has_labels(config.dataset, name) else None
    if labels is not None and len(labels):
        judged = name
        gates += _judge(splits[name], labels, [key for key, vlm in config.vlms.items() if vlm.image_scores])
    plain = [asdict(gate) for gate in gates]
    write_json(file, {"gates": plain, "labels_read": judged, "fingerprint": splits[name].fingerprint})
    return SanityReport(judged, tuple(gates), file)


def read_sanity(file: Path) -> SanityReport:
    content: _Written | None = read_json(file, _Written, fix=f"rm {file}, then run the same command again")
    if content is None:
        raise UserError("there is no such file of gates", where=file)
    return SanityReport(content.labels_read, content.gates, file)


class _Written(Struct):
    labels_read: str | None
    gates: tuple[SanityGate, ...]


def _judge(split: CacheSplit, labels: HoiLabels, passes: list[str]) -> list[SanityGate]:
    image = np.repeat(np.arange(split.num_images), np.diff(split.detection_offsets))
    detections = Boxes(image, split.labels, split.boxes_xyxy, split.boxes_xyxy)
    human, obj = split.pairs_ho.T
    pairs = Boxes(image[human], split.labels[obj], split.boxes_xyxy[human], split.boxes_xyxy[obj])
    similarity, scale, vocabulary = split.table("image_similarity"), split.text_bank.logit_scale, split.vocabulary
    gates = [
        detector_gate(detections, pairs, labels, vocabulary, split.num_images),
        teacher_gate(similarity, scale, split.is_readable, labels, vocabulary),
    ]
    for name in passes:
        scores, asked = (split.table(f"{name}/{table}") for table in ("vlm_scores", "vlm_asked"))
        gates.append(vlm_gate(name, scores, asked, similarity, scale, split.is_readable, labels, vocabulary))
    return gates


def images_gate(splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> SanityGate:
    """Judge, by split, whether images could be read (bool [I]) and how many pairs they have (int64 [I])."""
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
        fix = f"the reasons that {command('cache info')} lists, the detector's weights, pairs.min_score"
        return SanityGate("images", "warning", said, figures, fix)
    return SanityGate("images", "ok", said, figures)


def detector_gate(
    detections: Boxes, pairs: Boxes, labels: HoiLabels, vocabulary: Vocabulary, num_images: int
) -> SanityGate:
    """Judge recall: the shares of annotated humans, objects and pairs that a cached one of the class meets at IoU 0.5.

    Only boxes that take part in an interaction are annotated, so precision cannot be measured. Recall of pairs bounds
    what any student can reach, and has no floor.
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
    for name, (annotated, cached, floor) in measured.items():
        truth = annotated.distinct()
        num_annotated[name] = len(truth)
        if not len(truth):
            continue
        moved = (Boxes((cached.image + s) % num_images, cached.label, cached.first, cached.second) for s in steps)
        chance = max(_recall(truth, boxes, vocabulary) for boxes in moved)
        figures[name] = Figure(_recall(truth, cached, vocabulary), chance, floor)
    said = ", ".join(f"{100 * of.value:.1f} % of {num_annotated[name]} {name}s" for name, of in figures.items())
    plain = {"recall": {name: asdict(of) for name, of in figures.items()}, "num_annotated": num_annotated}
    fix = "the detector's weights and classes, the frame of precomputed boxes, images of another size than annotated"
    judged = [figures[name] for name in ("human", "object") if name in figures]
    return _gate("detector", f"IoU 0.5 with a cached box or pair: {said}", judged, plain, fix)


def _recall(truth: Boxes, cached: Boxes, vocabulary: Vocabulary) -> float:
    asked = Triplets(truth.image, truth.first, truth.second, truth.label, np.zeros(len(truth)))
    there = HoiLabels(cached.image, cached.first, cached.second, cached.label)
    return float(match(asked, there, len(vocabulary.objects), protocol="official").is_hit.mean())


def teacher_gate(
    similarity: np.ndarray, logit_scale: float, is_readable: np.ndarray, labels: HoiLabels, vocabulary: Vocabulary
) -> SanityGate:
    """Judge the teacher's cosines of whole images [I, K] by mean AP against image-level labels.

    The published figure does not say how scores were read, so the better of two readings counts: the cosine, and its
    softmax over all interactions. An image is positive for the interactions of its annotated pairs.
    """
    present = _present(labels, len(is_readable), vocabulary)[is_readable]
    logits = logit_scale * similarity[is_readable].astype(np.float64)
    figure, best, plain = _rank_images({"softmax": _log_softmax(logits), "cosine": logits}, present)
    plain["published"] = {"value": PUBLISHED, "source": SOURCE}
    said = (
        f"image-level mAP {100 * figure.value:.1f} ({best}) over {plain['num_interactions']} interactions, by chance "
        f"{100 * figure.chance:.1f}; published for HICO-DET: {100 * PUBLISHED:.1f} ({SOURCE})"
    )
    fix = "the teacher's weights, its activation (-quickgelu), crops and prompts, the order of the annotated classes"
    return _gate("teacher", said, [figure], plain, fix)


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
    """Judge a pass's confidences [I, K] like the teacher's, over the interactions that it was asked in any image.

    CLIP's scores are ranked on the same interactions twice: as they are, and with the images last in which the pass was
    not asked, which the detector alone has told it.
    """
    asked = asked[is_readable] > 0
    columns = asked.any(0)
    asked = asked[:, columns]
    present = _present(labels, len(is_readable), vocabulary)[is_readable][:, columns]
    confidence = np.where(asked, scores[is_readable][:, columns].astype(np.float64), NOT_ASKED)
    clip = np.exp(_log_softmax(logit_scale * similarity[is_readable].astype(np.float64)))[:, columns]
    readings = {name: confidence, "clip": clip, "clip_where_asked": np.where(asked, clip, NOT_ASKED)}
    figure, _, plain = _rank_images(readings, present, judged=name)
    plain["num_candidates"] = float(asked.sum(1).mean())
    by_reading = plain["image_level_map"]["by_reading"]
    said = (
        f"image-level mAP {100 * figure.value:.1f} over {plain['num_interactions']} interactions that it was asked, "
        f"{plain['num_candidates']:.1f} of an image, by chance {100 * figure.chance:.1f}; CLIP on the same "
        f"{100 * by_reading['clip']:.1f}, where asked {100 * by_reading['clip_where_asked']:.1f}"
    )
    return _gate(name, said, [figure], plain, f"the weights, phrases and scoring under vlms.{name}")


def _present(labels: HoiLabels, num_images: int, vocabulary: Vocabulary) -> np.ndarray:
    present = np.zeros((num_images, len(vocabulary)), bool)
    present[labels.image, labels.interaction] = True
    return present


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _rank_images(
    readings: dict[str, np.ndarray], present: np.ndarray, judged: str | None = None
) -> tuple[Figure, str, dict[str, Any]]:
    """Return the figure of the judged reading (None for the best one), its name, and all as it is written."""
    orders = {name: np.argsort(-scores, axis=0, kind="stable") for name, scores in readings.items()}
    by_reading = {name: mean_ap(order, present) for name, order in orders.items()}
    name = judged or max(by_reading, key=lambda name: by_reading[name])
    rng = np.random.default_rng(0)
    chance = max(mean_ap(orders[name], rng.permutation(present)) for _ in range(NUM_SHUFFLES))
    figure = Figure(by_reading[name], chance, TEACHER_FLOOR)
    counts = {"num_images": len(present), "num_interactions": int(present.any(0).sum())}
    return figure, name, {"image_level_map": {**asdict(figure), "by_reading": by_reading}, **counts}


def mean_ap(order: np.ndarray, present: np.ndarray) -> float:
    """Return the mean AP over the interactions that are in any image, 0 without any.

    `order` is int64 [I, K], rows of the images, best first; `present` is bool [I, K].
    """
    num_images, num_interactions = present.shape
    is_true = np.take_along_axis(present, order, axis=0).T.ravel()
    ranking = Ranking(order.T.ravel(), is_true, np.arange(num_interactions + 1) * num_images)
    num_positives = present.sum(0)
    ap = average_precision(ranking, num_positives, PROTOCOLS["official"].levels)
    return float(ap[num_positives > 0].mean()) if num_positives.any() else 0.0


def _gate(name: str, said: str, figures: list[Figure], plain: dict[str, Any], fix: str) -> SanityGate:
    levels = {figure.level for figure in figures}
    if "stop" in levels:
        return SanityGate(name, "stop", f"{said}: no better than with the images mixed up", plain, fix)
    if "warning" not in levels:
        return SanityGate(name, "ok", said, plain)
    if all(figure.value >= figure.floor or figure.chance >= figure.floor for figure in figures):
        return SanityGate(name, "warning", f"{said}: too few images to tell from chance", plain)
    return SanityGate(name, "warning", f"{said}: far too low", plain, fix)
