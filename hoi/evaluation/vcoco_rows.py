"""Scored triplets of V-COCO's vocabulary to the rows that its evaluation takes, and its figures beside the others.

Letters: R triplets, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hoi.datasets.vcoco_actions import KEYS
from hoi.evaluation.rows import ResultRow
from hoi.evaluation.summaries import summarise_vcoco
from hoi.evaluation.table import NO_SPREAD, rows_by_name
from hoi.evaluation.vcoco import VcocoPredictions, VcocoTruth, evaluate
from hoi.records import Triplets
from hoi.vocabulary import Vocabulary

FIGURES = {
    "agent_ap": "agent",
    "role_ap_s1_24": "S1",
    "role_ap_s2_24": "S2",
    "role_ap_s1": "S1, 25 roles",
    "role_ap_s2": "S2, 25 roles",
}
"""Printed figures, by name and heading."""


def vcoco_rows(triplets: Triplets, vocabulary: Vocabulary) -> VcocoPredictions:
    """Triplets to one row for each human and object, and one without object for each human that acts alone.

    A key for which a row has no triplet, because its object does not admit it, scores 0. A row without object scores
    the four actions that have no role, and nothing else: no role is ever said to be unseen. [choice]

    Args:
        triplets: In any order.
        vocabulary: Its verbs are names out of the evaluation's `KEYS`.

    Returns:
        Rows by image, those without object first, then by boxes.
    """
    key = np.array([KEYS.index(verb) for verb in vocabulary.verbs], np.int64)[vocabulary.verb_of]
    has_object = np.array([name != vocabulary.no_object_idx for name in vocabulary.object_of.tolist()])
    columns = np.column_stack(
        [triplets.image, has_object[triplets.interaction], triplets.boxes_h, triplets.boxes_o]
    ).astype(np.float64)
    # A pair's triplets mostly follow each other: finding the runs first leaves a tenth of the rows to sort.
    is_first = np.ones(len(columns), bool)
    is_first[1:] = (columns[1:] != columns[:-1]).any(1)
    rows, row_of_run = np.unique(columns[is_first], axis=0, return_inverse=True)
    row_of = row_of_run.reshape(-1)[np.cumsum(is_first) - 1]
    scores = np.zeros((len(rows), len(KEYS)))
    # Two detections of one box may both admit a key: the likelier one counts.
    np.maximum.at(scores, (row_of, key[triplets.interaction]), triplets.score.astype(np.float64))
    return VcocoPredictions(
        image=rows[:, 0].astype(np.int64),
        boxes_h=rows[:, 2:6],
        boxes_o=rows[:, 6:10],
        has_object=rows[:, 1] == 1,
        scores=scores,
    )


def vcoco_examiner(truth: VcocoTruth, num_images: int, vocabulary: Vocabulary) -> Callable[[Triplets], dict[str, Any]]:
    """A split's truth to what every method's triplets are asked: `vcoco`, its figures as fractions."""

    def examine(triplets: Triplets) -> dict[str, Any]:
        rows = vcoco_rows(triplets, vocabulary)
        return {"vcoco": summarise_vcoco(evaluate(rows, truth), num_images, len(rows.image)).content}

    return examine


def vcoco_means(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Result rows to one plain record a method: mean and standard deviation over its seeds, in percent."""
    records = []
    for name, seeds in rows_by_name(rows).items():
        values = {figure: [100 * row.further["vcoco"][figure] for row in seeds] for figure in FIGURES}
        record: dict[str, Any] = {"name": name, "num_seeds": len(seeds) if seeds[0].seed is not None else None}
        for figure, of_seeds in values.items():
            sd = float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else 0.0
            record[figure] = {"mean": round(float(np.mean(of_seeds)), 4), "sd": round(sd, 4)}
        records.append(record)
    return records


def format_vcoco(means: Sequence[dict[str, Any]]) -> str:
    """`vcoco_means` to a heading and one line a method."""
    heading = "V-COCO's evaluation in percent, over 24 roles where no number is said, ± sd over seeds"
    lines = [["", *(name + NO_SPREAD for name in FIGURES.values())]]
    for record in means:
        lines.append([record["name"], *(_cell(record[figure], record["num_seeds"]) for figure in FIGURES)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([n.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for n, *cells in lines]
    return "\n".join([heading, *table])


def _cell(figure: dict[str, float], num_seeds: int | None) -> str:
    spread = f" ± {figure['sd']:.2f}" if (num_seeds or 1) > 1 else NO_SPREAD
    return f"{figure['mean']:.2f}{spread}"
