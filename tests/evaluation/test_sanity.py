"""Sanity gates: figures by hand, and each thing that is commonly wrong stops or warns, with what to look at."""

from __future__ import annotations

import numpy as np
import pytest

from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.evaluation.sanity import Boxes, SanityGate, detector_gate, images_gate, mean_ap, teacher_gate, vlm_gate
from hoi.records import HoiLabels
from hoi.vocabulary import Vocabulary

VOCABULARY = hicodet_vocabulary()
NUM_IMAGES, NUM_CLASSES = 400, 40
SCALE = 100.0


def test_map_of_ranked_images_is_as_by_hand() -> None:
    present = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
    scores = np.array([[0.9, 0.3, 0.5], [0.8, 0.9, 0.4], [0.7, 0.8, 0.3], [0.1, 0.7, 0.2]])
    order = np.argsort(-scores, axis=0, kind="stable")
    # Interaction 0: hits at ranks 1 and 3, so six levels (0 to 0.5) at 1 and five at 2/3. Interaction 1: one hit at
    # rank 2, eleven levels at 1/2. Interaction 2 is in no image and counts for nothing.
    assert mean_ap(order, present) == pytest.approx(((6 + 5 * 2 / 3) / 11 + 1 / 2) / 2)


def labelled(num_images: int = NUM_IMAGES) -> HoiLabels:
    """One pair an image, at a place of its own, of the first interactions in turn."""
    rows = np.arange(num_images)
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 400, (num_images, 2))
    boxes_h = np.concatenate([corner, corner + rng.uniform(20, 60, (num_images, 2))], 1).astype(np.float32)
    return HoiLabels(rows, boxes_h, boxes_h + 30, rows % NUM_CLASSES)


def cosines(labels: HoiLabels, noise: float, num_images: int = NUM_IMAGES) -> np.ndarray:
    similarity = np.random.default_rng(2).normal(0, noise, (num_images, len(VOCABULARY))).astype(np.float32)
    similarity[labels.image, labels.interaction] += 0.1
    return similarity


def teacher(similarity: np.ndarray, labels: HoiLabels) -> SanityGate:
    return teacher_gate(similarity, SCALE, np.ones(len(similarity), bool), labels, VOCABULARY)


def test_a_teacher_that_knows_its_classes_passes() -> None:
    labels = labelled()
    gate = teacher(cosines(labels, 0.04), labels)
    assert gate.level == "ok"
    assert gate.figures["image_level_map"]["value"] > 0.5 > 0.355 > 4 * gate.figures["image_level_map"]["chance"]
    assert "published for HICO-DET: 35.5 (CLIP on HICO's test images, Wan & Tuytelaars, WACV 2024)" in str(gate)


def test_classes_in_another_order_stop_the_run() -> None:
    labels = labelled()
    shifted = teacher(np.roll(cosines(labels, 0.02), 7, axis=1), labels)
    assert (shifted.level, "mixed up" in shifted.said) == ("stop", True)
    assert "order of the annotated classes" in str(shifted)
    weak = teacher(cosines(labels, 0.12), labels)
    assert weak.level == "warning"
    assert "far too low" in weak.said


def test_a_few_images_cannot_stop_a_run() -> None:
    labels = labelled(5)
    gate = teacher(-cosines(labels, 0.02, 5), labels)
    assert gate.level == "warning"
    assert "too few images to tell" in gate.said


def test_images_that_could_not_be_read_are_left_out() -> None:
    labels = labelled()
    similarity = cosines(labels, 0.04)
    is_readable = np.arange(NUM_IMAGES) % 2 == 0
    similarity[~is_readable] = 0
    gate = teacher_gate(similarity, SCALE, is_readable, labels, VOCABULARY)
    assert (gate.figures["num_images"], gate.level) == (NUM_IMAGES // 2, "ok")
    unlabelled = np.arange(NUM_IMAGES + 9) >= NUM_IMAGES
    gate = teacher_gate(np.zeros((NUM_IMAGES + 9, 600)), SCALE, unlabelled, labels, VOCABULARY)
    assert (gate.figures["image_level_map"]["value"], gate.level) == (0, "stop")


def detector(labels: HoiLabels, scale: float = 1.0, kept: slice = slice(None)) -> SanityGate:
    """The gate of a detector that finds the annotated boxes of some images, in a frame of another scale."""
    image, objects = labels.image[kept], VOCABULARY.object_of[labels.interaction[kept]]
    people = np.full(len(image), VOCABULARY.person_idx)
    boxes_h, boxes_o = scale * labels.boxes_h[kept], scale * labels.boxes_o[kept]
    both = [np.concatenate(pair) for pair in ((image, image), (people, objects), (boxes_h, boxes_o))]
    detections, pairs = Boxes(both[0], both[1], both[2], both[2]), Boxes(image, objects, boxes_h, boxes_o)
    return detector_gate(detections, pairs, labels, VOCABULARY, NUM_IMAGES)


def test_recall_is_the_share_of_annotated_boxes_that_are_met() -> None:
    labels = labelled()
    twice = HoiLabels(*(np.concatenate([rows, rows]) for rows in vars(labels).values()))
    gate = detector(twice, kept=slice(0, 300))
    # What is annotated twice is one box.
    assert gate.figures["num_annotated"] == {"human": 400, "object": 400, "pair": 400}
    for name, found in gate.figures["recall"].items():
        assert (found["value"], name) == (pytest.approx(0.75), name)
    assert gate.level == "ok"


def test_boxes_in_another_frame_stop_the_run() -> None:
    other = detector(labelled(), scale=3.0)
    assert (other.level, other.figures["recall"]["human"]["value"]) == ("stop", pytest.approx(0, abs=0.02))
    assert "frame of precomputed boxes" in str(other)
    assert detector(labelled(), kept=slice(0, 100)).level == "warning"
    assert detector(labelled(), kept=slice(0, 0)).level == "stop"


def test_what_a_person_does_alone_needs_no_object() -> None:
    vocabulary = Vocabulary(("person", "no_object"), ("stand",), (("stand", "no_object"),))
    box = np.array([[0, 0, 9, 9]], np.float32)
    labels = HoiLabels(np.array([3]), box, box, np.array([0]))
    found = Boxes(np.array([3]), np.array([0]), box, box)
    gate = detector_gate(found, found, labels, vocabulary, 50)
    assert gate.figures["num_annotated"] == {"human": 1, "object": 0, "pair": 0}
    assert gate.figures["recall"]["human"]["value"] == 1
    assert gate.level == "ok"


def test_unreadable_images_and_images_without_pairs_are_counted() -> None:
    readable, pairs = np.ones(10, bool), np.full(10, 4)
    assert images_gate({"test": (readable, pairs)}).level == "ok"
    unreadable = images_gate({"test": (np.arange(10) > 0, pairs)})
    assert (unreadable.level, unreadable.figures["test"]["unreadable"]) == ("warning", pytest.approx(0.1))
    few = images_gate({"test": (readable, np.where(np.arange(10) < 4, 0, 5))})
    assert (few.level, few.figures["test"]["pairs_per_image"]) == ("warning", 3)
    nothing = images_gate({"test": (readable, pairs), "train": (readable, 0 * pairs)})
    assert nothing.level == "stop"
    assert "pairs.min_score" in str(nothing)


def test_a_vlm_is_ranked_where_it_was_asked_beside_clip() -> None:
    labels = labelled()
    present = cosines(labels, 0.0) > 0
    clip, scale, readable = cosines(labels, 2.0), 50.0, np.ones(NUM_IMAGES, bool)
    asked = present.copy()
    asked[:, 0] = False
    knows_all = vlm_gate("coca", asked * 0.7, asked, clip, scale, readable, labels, VOCABULARY)
    figures = knows_all.figures["image_level_map"]
    assert figures["by_reading"]["coca"] == figures["by_reading"]["clip_where_asked"] == 1.0
    assert figures["by_reading"]["clip"] < 0.9
    assert knows_all.figures["num_interactions"] == present[:, 1:].any(0).sum()
    assert knows_all.level == "ok"
    mixed_up = np.roll(asked, NUM_IMAGES // 3, axis=0)
    lost = vlm_gate("coca", mixed_up * 0.7, mixed_up, clip, scale, readable, labels, VOCABULARY)
    assert lost.level != "ok"
    assert "vlms.coca" in str(lost)
