"""What stage three wrote (plain JSON data) to the lines of the page's tables. Figures are in percent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi.config import StudentSettings, parse_student
from hoi.evaluation.table import COLUMNS
from hoi.vocabulary import NO_OBJECT, Vocabulary

Plain = dict[str, Any]

BASELINES = {
    "detector_prior": "boxes and classes alone; every interaction of an object is equally likely",
    "direct_clip": "the frozen teacher asked about each pair's union crop, as it comes",
    "direct_clip_image": "the frozen teacher's scores of the whole image, given to each of its pairs",
    "direct_clip_product": "union crop times whole image",
    "direct_clip_tuned": "the frozen teacher on union crops, read as labels say is best for it",
    "direct_clip_gated": "the same, with the students' training-free gate on top",
    "vlm_image": "the vision language model's confidences in the whole image, given to each of its pairs",
    "vlm_pairs": "the vision language model asked about each pair's union crop",
}
PARTS = {
    "global": "its branch on the whole image, alone",
    "union": "its branch on union boxes, alone",
    "human_object": "its branch on the human and the object, alone",
    "interaction": "its pairs' own scores, before their chance to interact at all",
    "spatial": "its branch on boxes and classes, alone",
    "ungated": "its branches together, before the gate",
}


@dataclass(frozen=True)
class ResultLine:
    """One method of the result table.

    Args:
        name: As everywhere.
        about: What it is, in one line.
        is_part: Whether it is part of a student, not a method of its own.
        labels: Splits whose labels made or tuned it; empty for none.
        seeds: `full` of each seed; one value where nothing is trained.
        num_seeds: Of its training; None where nothing is trained.
        cells: Mean and standard deviation over seeds, by the names in `COLUMNS`; None where there is no such mean.
        difference: Of `full` to the row compared with, and its interval.
    """

    name: str
    about: str
    is_part: bool
    labels: str
    seeds: list[float]
    num_seeds: int | None
    cells: dict[str, tuple[float, float] | None]
    difference: tuple[float, float, float] | None


@dataclass(frozen=True)
class ClassLine:
    """One interaction, or all interactions of one verb.

    Args:
        name: In words.
        is_rare: None for a verb.
        num_positives: Annotated in the evaluated split.
        ap: Mean over seeds, by method; of a verb, the mean over its interactions that have truth.
    """

    name: str
    is_rare: bool | None
    num_positives: int
    ap: dict[str, float]


def in_words(name: str) -> str:
    """A name of the vocabulary to words, as `sit_on bench` to `sit on bench`."""
    return " ".join(name.removesuffix(f" {NO_OBJECT}").replace("_", " ").split())


def result_lines(summary: Plain, results: Sequence[Plain]) -> list[ResultLine]:
    """summary.json and results.json to the result table."""
    differences = {found["better"]: found for found in summary["against_direct"]}
    students = summary["config"]["students"]
    lines = []
    for mean in summary["means"]:
        name = mean["name"]
        rows = [row for row in results if row["name"] == name]
        found = differences.get(name)
        lines.append(
            ResultLine(
                name,
                _about(name, rows[0], students),
                is_part=name not in BASELINES and name not in students,
                labels=_labels(rows[0]["audit"]["labels_read"]),
                seeds=[row["full"] for row in rows if row["full"] is not None],
                num_seeds=mean["num_seeds"],
                cells={c: None if mean[c] is None else (mean[c]["mean"], mean[c]["sd"]) for c in COLUMNS},
                difference=None if found is None else (found["observed"], found["low"], found["high"]),
            )
        )
    return lines


def _about(name: str, row: Plain, students: Mapping[str, Any]) -> str:
    knobs = row["knobs"]
    if name in BASELINES:
        tried = f" ({knobs['num_tried']} settings tried)" if "num_tried" in knobs else ""
        return BASELINES[name] + tried
    if name not in students:
        owner, _, part = name.rpartition("/")
        return f"{owner or 'student'}: {PARTS.get(part, part)}"
    settings = parse_student(students[name], f"student {name}")
    changed = departures(settings)
    if settings.supervision == "labels":
        kind = "the bound: the same kind of network, trained with labels on the same features"
    else:
        kind = "learned from the teacher's scores alone, no HOI label"
    return f"{kind}; {', '.join(changed)}" if changed else kind


def departures(settings: StudentSettings) -> list[str]:
    """Return the settings that are not their method's defaults, as `key: value`."""
    default = parse_student({"method": settings.method}, "its defaults").by_key()
    return [
        f"{key}: {value}" for key, value in settings.by_key().items() if value != default[key] and key != "supervision"
    ]


def _labels(read: Mapping[str, str | None]) -> str:
    """Splits that were read for more than grading, each once."""
    return ", ".join(sorted({split for use, split in read.items() if use != "grading" and split is not None}))


def class_lines(per_class: Sequence[Plain], vocabulary: Vocabulary, methods: Sequence[str]) -> list[ClassLine]:
    """per_class.json to one line an interaction that has truth; the others are in no mean."""
    return [
        ClassLine(in_words(name), record["rare"], record["num_positives"], _mean_ap(record, methods))
        for name, record in zip(vocabulary.names, per_class, strict=True)
        if record["num_positives"] > 0
    ]


def verb_lines(per_class: Sequence[Plain], vocabulary: Vocabulary, methods: Sequence[str]) -> list[ClassLine]:
    """per_class.json to one line a verb, over its interactions that have truth."""
    lines = []
    for verb, name in enumerate(vocabulary.verbs):
        records = [per_class[k] for k in np.flatnonzero(vocabulary.verb_of == verb).tolist()]
        records = [record for record in records if record["num_positives"] > 0]
        if records:
            aps = [_mean_ap(record, methods) for record in records]
            ap = {method: float(np.mean([of_class[method] for of_class in aps])) for method in methods}
            lines.append(ClassLine(in_words(name), None, sum(record["num_positives"] for record in records), ap))
    return lines


def _mean_ap(record: Plain, methods: Sequence[str]) -> dict[str, float]:
    return {m: float(np.mean([found["percent"] for found in record["ap"] if found["name"] == m])) for m in methods}


def largest_differences(
    lines: Sequence[ClassLine], better: str, than: str, number: int
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Classes to those in which `better` leads most, and those in which it trails most, with the difference."""
    found = sorted(((line.name, line.ap[better] - line.ap[than]) for line in lines), key=lambda pair: -pair[1])
    ahead = [(name, value) for name, value in found[:number] if value > 0]
    behind = [(name, value) for name, value in found[::-1][:number] if value < 0]
    return ahead, behind
