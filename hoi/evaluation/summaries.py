"""Evaluators' results to what `hoi.evaluation.score` writes and prints. Fractions are written, percents printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.evaluation.hico import HicoResult
from hoi.evaluation.rows import ResultRow
from hoi.evaluation.table import NO_SPREAD, rows_by_name
from hoi.evaluation.vcoco import VcocoPredictions, VcocoResult, evaluate
from hoi.labels.vcoco_files import VcocoTruth
from hoi.records import Triplets
from hoi.vocabulary import Vocabulary

MEANS = ("full", "rare", "non_rare", "without_no_interaction")


@dataclass
class Score:
    """What was found.

    Args:
        content: What goes into the JSON file.
        lines: What is printed.
        notices: What a reader of the figures should know; printed and written.
    """

    content: dict[str, Any]
    lines: list[str]
    notices: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*self.lines, *(f"note: {notice}" for notice in self.notices)])


def summarise_hico(
    settings: Mapping[str, HicoResult], protocol: str, num_images: int, num_predictions: int, num_elsewhere: int = 0
) -> Score:
    """Results by setting, the last of them the one that was asked for, to a score.

    Args:
        settings: `default` and, where it was asked for, `known_object`.
        protocol: Whose rule.
        num_images: Those that count.
        num_predictions: Those in images that count.
        num_elsewhere: Predictions in other images.
    """
    setting, result = list(settings.items())[-1]
    num_with_truth = int((result.num_positives > 0).sum())
    content = {
        **_means(result),
        "ap": result.ap.tolist(),
        "num_positives": result.num_positives.tolist(),
        "num_interactions_with_truth": num_with_truth,
        "protocol": protocol,
        "setting": setting,
        "num_images": num_images,
        "num_predictions": num_predictions,
        "num_predictions_elsewhere": num_elsewhere,
    }
    if setting != "default":
        content["default"] = _means(settings["default"])
    lines = [
        f"{protocol} rule: {num_images} images, {int(result.num_positives.sum())} annotated interactions of "
        f"{num_with_truth} kinds, {num_predictions} predictions",
        f"{'':14}{'full':>8}{'rare':>8}{'non-rare':>10}{'without no_interaction':>24}",
    ]
    for name, found in settings.items():
        full, rare, non_rare, without = (_percent(value) for value in _means(found).values())
        lines.append(f"{name:14}{full:>8}{rare:>8}{non_rare:>10}{without:>24}")
    return Score(content, lines)


def summarise_vcoco(result: VcocoResult, num_images: int, num_predictions: int) -> Score:
    """V-COCO's result to a score; `role_ap_s1` and `role_ap_s2` are over all 25 roles, `..._24` without `point`."""
    role_ap = np.stack([result.role_ap_s1, result.role_ap_s2], axis=1).tolist()
    content: dict[str, Any] = {
        "agent_ap": result.agent,
        "role_ap_s1": result.role("scenario_1", 25),
        "role_ap_s2": result.role("scenario_2", 25),
        "role_ap_s1_24": result.role("scenario_1", 24),
        "role_ap_s2_24": result.role("scenario_2", 24),
        "per_role": {
            f"{action}_{role}": {"s1": s1, "s2": s2}
            for (action, role), (s1, s2) in zip(ACTION_ROLES, role_ap, strict=True)
        },
        "per_agent": dict(zip(ACTIONS, result.agent_ap.tolist(), strict=True)),
        "num_positives": dict(zip(ACTIONS, result.num_positives.tolist(), strict=True)),
        "num_images": num_images,
        "num_predictions": num_predictions,
    }
    lines = [
        f"vsrl_eval's rule: {num_images} images, {num_predictions} predictions",
        f"{'':19}{'scenario 1':>12}{'scenario 2':>12}",
    ]
    for num_roles, suffix in ((25, ""), (24, "_24")):
        s1, s2 = (_percent(content[f"role_ap_{scenario}{suffix}"]) for scenario in ("s1", "s2"))
        lines.append(f"role AP, {num_roles} roles  {s1:>12}{s2:>12}")
    return Score(content, [*lines, f"{'agent AP':19}{_percent(result.agent):>12}"])


def _means(result: HicoResult) -> dict[str, float | None]:
    return {name: getattr(result, name) for name in MEANS}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


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
