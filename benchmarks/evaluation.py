"""Time the evaluators on synthetic sets of full size: HICO-DET's rule and a plain loop over predictions, and V-COCO's.

Reading and checking the same predictions as JSON lines takes longer than scoring them, and is measured, too.

python -m benchmarks.evaluation
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.side_by_side import ratio_table, run_in_turn
from hoi.boxes import min_pair_iou
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.evaluation import hico, vcoco
from hoi.evaluation.hico import PROTOCOLS
from hoi.evaluation.predictions import PredictionReader
from hoi.json_lines import read_json_lines
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import HoiLabels, Triplets

HICO_IMAGES, HICO_TRUTHS, HICO_PREDICTIONS, NUM_INTERACTIONS = 9_658, 33_405, 270_000, 600
VCOCO_IMAGES, VCOCO_PERSONS, VCOCO_ROWS = 4_946, 12_000, 44_000
NUM_ROUNDS = 3
SHARE_NEAR_TRUTH = 0.5
"""Share of predictions that are a truth, moved by a few pixels; the others are anywhere."""


def measure(num_rounds: int = NUM_ROUNDS) -> str:
    """Return the ratio table.

    Raises:
        ValueError: The plain loop and the evaluator disagree.
    """
    predictions, labels = hico_set()
    rare = np.zeros(NUM_INTERACTIONS, bool)
    matches = hico.match(predictions, labels, NUM_INTERACTIONS, protocol="official")
    rows, truth = vcoco_set()
    ap = hico.evaluate(predictions, labels, NUM_INTERACTIONS, rare).ap
    if not np.allclose(ap, plain_loop(predictions, labels), rtol=0, atol=1e-12):
        raise ValueError("the plain loop gives other average precisions")
    with tempfile.TemporaryDirectory() as folder:
        path, reader = _write_lines(predictions, Path(folder)), PredictionReader(_names(), _sizes(), clip=True)
        rounds = run_in_turn(
            {
                "hico.evaluate": lambda: hico.evaluate(predictions, labels, NUM_INTERACTIONS, rare),
                "a new score for matched predictions": lambda: hico.score_matches(
                    matches, predictions.score, rare, rare
                ),
                "plain loop": lambda: plain_loop(predictions, labels),
                "vcoco.evaluate": lambda: vcoco.evaluate(rows, truth),
                "reading JSON lines": lambda: reader.triplets(read_json_lines(path), NUM_INTERACTIONS),
            },
            num_rounds,
        )
    return ratio_table(
        f"evaluation, HICO-DET {HICO_IMAGES} images, {HICO_TRUTHS} truths, {HICO_PREDICTIONS} predictions; "
        f"V-COCO {VCOCO_IMAGES} images, {VCOCO_PERSONS} persons, {VCOCO_ROWS} rows",
        rounds,
        [
            ("plain loop", "hico.evaluate"),
            ("a new score for matched predictions", "hico.evaluate"),
            ("vcoco.evaluate", "hico.evaluate"),
            ("reading JSON lines", "hico.evaluate"),
        ],
    )


def _names() -> list[str]:
    return [f"HICO_test2015_{image + 1:08d}.jpg" for image in range(HICO_IMAGES)]


def _sizes() -> np.ndarray:
    return np.full((HICO_IMAGES, 2), 680)


def _write_lines(predictions: Triplets, folder: Path) -> Path:
    """Write triplets as JSON lines, 0-based inclusive."""
    names, inclusive = _names(), np.array([0, 0, 1, 1])
    columns = (predictions.image, predictions.boxes_h - inclusive, predictions.boxes_o - inclusive)
    rows = zip(*(column.tolist() for column in (*columns, predictions.interaction, predictions.score)), strict=True)
    keys = ("file_name", "human_xyxy", "object_xyxy", "interaction", "score")
    path = folder / "predictions.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for image, *rest in rows:
            file.write(json.dumps(dict(zip(keys, (names[image], *rest), strict=True))) + "\n")
    return path


def hico_set() -> tuple[Triplets, HoiLabels]:
    """Return predictions and truth of the size of HICO-DET's test split; a few interactions have most of the truth."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, NUM_INTERACTIONS + 1)
    interaction = rng.choice(NUM_INTERACTIONS, HICO_TRUTHS, p=popularity / popularity.sum())
    labels = HoiLabels(
        np.sort(rng.integers(0, HICO_IMAGES, HICO_TRUTHS)),
        _boxes(rng, HICO_TRUTHS),
        _boxes(rng, HICO_TRUTHS),
        interaction,
    )
    near = rng.integers(0, HICO_TRUTHS, round(SHARE_NEAR_TRUTH * HICO_PREDICTIONS))
    far = HICO_PREDICTIONS - len(near)
    predictions = Triplets(
        np.concatenate([labels.image[near], rng.integers(0, HICO_IMAGES, far)]),
        np.concatenate([_moved(rng, labels.boxes_h[near]), _boxes(rng, far)]),
        np.concatenate([_moved(rng, labels.boxes_o[near]), _boxes(rng, far)]),
        np.concatenate([labels.interaction[near], rng.integers(0, NUM_INTERACTIONS, far)]),
        rng.random(HICO_PREDICTIONS).astype(np.float32),
    )
    return predictions, labels


def vcoco_set() -> tuple[vcoco.VcocoPredictions, VcocoTruth]:
    """Return rows and persons of the size of V-COCO's test split."""
    rng = np.random.default_rng(1)
    num_actions, num_roles = len(ACTIONS), len(ACTION_ROLES)
    role_boxes = _boxes(rng, VCOCO_PERSONS * num_roles).reshape(VCOCO_PERSONS, num_roles, 4)
    truth = VcocoTruth(
        np.sort(rng.integers(0, VCOCO_IMAGES, VCOCO_PERSONS)),
        _boxes(rng, VCOCO_PERSONS),
        rng.random(VCOCO_PERSONS) < 0.8,
        rng.random((VCOCO_PERSONS, num_actions)) < 0.1,
        role_boxes,
        rng.random((VCOCO_PERSONS, num_roles)) < 0.8,
    )
    person = rng.integers(0, VCOCO_PERSONS, VCOCO_ROWS)
    role = rng.integers(0, num_roles, VCOCO_ROWS)
    rows = vcoco.VcocoPredictions(
        truth.image[person],
        _moved(rng, truth.boxes_h[person]),
        _moved(rng, role_boxes[person, role]),
        rng.random(VCOCO_ROWS) < 0.9,
        rng.random((VCOCO_ROWS, len(KEYS))),
    )
    return rows, truth


def plain_loop(predictions: Triplets, labels: HoiLabels) -> np.ndarray:
    """Return AP by the official rule, one prediction after the other, as evaluators usually do: float64 [K]."""
    truths: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(labels.image.tolist(), labels.interaction.tolist(), strict=True)):
        truths.setdefault(key, []).append(row)
    ap = np.zeros(NUM_INTERACTIONS)
    for k in range(NUM_INTERACTIONS):
        rows = np.flatnonzero(predictions.interaction == k)
        rows = rows[np.lexsort((predictions.image[rows], -predictions.score[rows]))]
        is_true, taken = np.zeros(len(rows), bool), set[int]()
        for position, row in enumerate(rows.tolist()):
            candidates = truths.get((int(predictions.image[row]), k))
            if candidates is None:
                continue
            iou = min_pair_iou(
                predictions.boxes_h[row][None].astype(np.float64),
                predictions.boxes_o[row][None].astype(np.float64),
                labels.boxes_h[candidates].astype(np.float64),
                labels.boxes_o[candidates].astype(np.float64),
            )
            best = int(iou.argmax())
            if iou[best] >= 0.5 and candidates[best] not in taken:
                taken.add(candidates[best])
                is_true[position] = True
        num_positives = int((labels.interaction == k).sum())
        if num_positives and len(rows):
            num_true = np.cumsum(is_true)
            precision, recall = num_true / np.arange(1, len(rows) + 1), num_true / num_positives
            ap[k] = np.mean([precision[recall >= level].max(initial=0) for level in PROTOCOLS["official"].levels])
    return ap


def _boxes(rng: np.random.Generator, num: int) -> np.ndarray:
    corner = rng.uniform(0, 400, (num, 2))
    return np.concatenate([corner, corner + rng.uniform(20, 240, (num, 2))], axis=1).astype(np.float32)


def _moved(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    corner = boxes[:, :2] + rng.normal(0, 10, (len(boxes), 2))
    sides = (boxes[:, 2:] - boxes[:, :2]) * rng.uniform(0.8, 1.25, (len(boxes), 2))
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


if __name__ == "__main__":
    print(measure())
