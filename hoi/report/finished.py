"""A finished evaluation, opened again: triplets scored from the cache as stage three scored them, and table lines.

Lines come from what stage three and sweeps wrote (plain JSON data). Figures are in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig, parse_student
from hoi.evaluation.baselines import ABOUT, PLAIN, TUNED, DetectorPrior, DirectClip, DirectSetting, direct_settings
from hoi.evaluation.evaluate import BATCH_IMAGES, STUDENT, labels_of
from hoi.evaluation.hico import Matches, match
from hoi.evaluation.rows import COLUMNS
from hoi.evaluation.written import read_written
from hoi.records import HoiLabels, Triplets
from hoi.scoring import Scorer, extra_of, score_split
from hoi.students.base import Student
from hoi.training.train import choose_student, run_folder
from hoi.vocabulary import NO_OBJECT, Vocabulary

Plain = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A row of the result table; all methods have the same triplets, in the same order, with other scores."""

    name: str
    triplets: Triplets


@dataclass(frozen=True)
class FinishedEvaluation:
    """What the report draws and compares."""

    config: PipelineConfig
    split: CacheSplit
    device: torch.device
    labels: HoiLabels | None  # None without annotations
    matches: Matches | None  # of the triplets with the labels
    student: Method  # of the first seed
    teacher: Method
    others: list[Method]  # for the curves: the detector alone and the bound
    networks: dict[int, Student]  # the shown student by seed; the first is the one that is drawn
    exponent: float  # γ of the student's detection prior

    @property
    def seed(self) -> int:
        return next(iter(self.networks))

    @property
    def columns(self) -> list[str]:
        """Methods of the tables by class."""
        return [self.teacher.name, self.student.name, *(m.name for m in self.others if m.name in self.config.students)]

    @property
    def variants(self) -> list[str]:
        """Other ways in which the shown student can be scored."""
        return list(self.networks[self.seed].variants())

    def rescored(self, variant: str | None) -> list[Triplets]:
        """Return the shown student's triplets seed by seed, scored as one of `variants`, or None for as it is."""
        networks = (net if variant is None else net.variants()[variant] for net in self.networks.values())
        return [_score(self.split, network, self.exponent, self.device)[STUDENT] for network in networks]


def open_finished(
    config: PipelineConfig, summary: dict[str, Any], results: list[dict[str, Any]], device: torch.device
) -> FinishedEvaluation:
    """Open the cache and the runs that results were made with; without annotations there are no `results`.

    Raises UserError: the cache or a run is gone or another one.
    """
    split = open_split(config, config.evaluation.split, same_images=False, fingerprint=summary["fingerprint"])
    made_by = {(row["name"], row["seed"]): row["knobs"] for row in results}
    name, first = choose_student(config), config.train.seeds[0]

    def load(student: str, seed: int) -> Student:
        folder = run_folder(config, student, seed, split.fingerprint)
        return folder.load_student(split.text_bank, split.vocabulary, split.axes).to(device)

    networks = {seed: load(name, seed) for seed in config.train.seeds}
    exponent = made_by.get((name, first), {}).get("score_exponent", config.students[name].score_exponent)
    student = Method(name, _score(split, networks[first], exponent, device)[STUDENT])

    tuned = made_by.get((TUNED, None))
    scorer = _teacher(config, split, tuned)
    teacher_exponent = tuned["score_exponent"] if tuned else 1.0
    teacher = Method(scorer.name, _score(split, scorer, teacher_exponent, device)[scorer.name])
    labels, matches, others = None, None, []
    if results:
        labels = labels_of(config, config.evaluation.split)
        matches = match(student.triplets, labels, len(split.vocabulary), protocol="official")
        prior = _score(split, DetectorPrior(split.vocabulary), 1.0, device)
        others = [Method(row, triplets) for row, triplets in prior.items()]
        for bound in [n for n, s in config.students.items() if s.supervision == "labels" and n != name][:1]:
            triplets = _score(split, load(bound, first), made_by[bound, first]["score_exponent"], device)[STUDENT]
            others.append(Method(bound, triplets))
    return FinishedEvaluation(config, split, device, labels, matches, student, teacher, others, networks, exponent)


def _teacher(config: PipelineConfig, split: CacheSplit, tuned: dict[str, Any] | None) -> DirectClip:
    # Direct CLIP as its row says that it was tuned; as it comes where there is no such row.
    setting, name = direct_settings(split.text_bank, split.axes["M"])[0], PLAIN
    if tuned is not None:
        margin = None if tuned["margin"] == "mean" else config.teacher.crop.margins.index(tuned["margin"])
        setting, name = DirectSetting(tuned["form"], tuned["temperature"], margin), TUNED
    return DirectClip(split.text_bank, split.vocabulary, setting, name)


def _score(split: CacheSplit, scorer: Scorer, exponent: float, device: torch.device) -> dict[str, Triplets]:
    return score_split(scorer, split.batches(BATCH_IMAGES, extra=extra_of(scorer)), split.vocabulary, exponent, device)


@dataclass(frozen=True)
class ResultLine:
    """One row of the result table or of a sweep."""

    name: str
    about: str
    num_seeds: int | None  # None where nothing is trained
    cells: dict[str, tuple[float, float] | None]  # mean and standard deviation over seeds, by COLUMNS
    difference: tuple[float, float, float] | None  # of `full` to the row compared with, and its interval
    is_part: bool = False  # part of a student, not a method of its own
    labels: str = ""  # splits whose labels made or tuned it
    seeds: list[float] = field(default_factory=list)  # `full` of each seed


@dataclass(frozen=True)
class SweepLines:
    name: str
    against: str  # the row that differences are to
    notes: list[str]  # what must be known to read it, such as failed runs
    lines: list[ResultLine]


@dataclass(frozen=True)
class ClassLine:
    """One interaction, or all interactions of one verb."""

    name: str
    is_rare: bool | None  # None for a verb
    num_positives: int
    ap: dict[str, float]  # mean over seeds, by method; of a verb, the mean over its interactions that have truth


def in_words(name: str) -> str:
    """Return a name of the vocabulary as words: `sit_on bench` as `sit on bench`."""
    return " ".join(name.removesuffix(f" {NO_OBJECT}").replace("_", " ").split())


def result_lines(summary: Plain, results: Sequence[Plain]) -> list[ResultLine]:
    """Return the result table of summary.json and results.json."""
    differences = {record["better"]: record for record in summary["against_direct"]}
    students = summary["config"]["students"]
    lines = []
    for mean in summary["means"]:
        name = mean["name"]
        rows = [row for row in results if row["name"] == name]
        # Splits that were read for more than grading, each once.
        read = rows[0]["audit"]["labels_read"].items()
        labels = ", ".join(sorted({split for use, split in read if use != "grading" and split is not None}))
        lines.append(
            ResultLine(
                name,
                _about(name, rows[0], students),
                mean["num_seeds"],
                *_figures(mean, differences.get(name)),
                is_part=name not in ABOUT and name not in students,
                labels=labels,
                seeds=[row["full"] for row in rows if row["full"] is not None],
            )
        )
    return lines


def _figures(
    means: Plain, difference: Plain | None
) -> tuple[dict[str, tuple[float, float] | None], tuple[float, float, float] | None]:
    cells = {c: None if means[c] is None else (means[c]["mean"], means[c]["sd"]) for c in COLUMNS}
    return cells, None if difference is None else (difference["observed"], difference["low"], difference["high"])


def _about(name: str, row: Plain, students: Mapping[str, Any]) -> str:
    if name in ABOUT:
        tried = f" ({row['knobs']['num_tried']} settings tried)" if "num_tried" in row["knobs"] else ""
        return ABOUT[name] + tried
    if name not in students:
        owner, _, part = name.rpartition("/")
        owner = owner or STUDENT
        return f"{owner}: {parse_student(students[owner], f'student {owner}').ROWS.get(part, part)}"
    settings = parse_student(students[name], f"student {name}")
    default, given = parse_student({"method": settings.method}, "its defaults").by_key(), settings.by_key()
    changed = [f"{key}: {value}" for key, value in given.items() if value != default[key] and key != "supervision"]
    kind = "learned from the teacher's scores alone, no HOI label"
    if settings.supervision == "labels":
        kind = "the bound: the same kind of network, trained with labels on the same features"
    return "; ".join([kind, *filter(None, [", ".join(changed)])])


def sweep_lines(path: Path, summary: Plain) -> SweepLines:
    """Return the table of a sweep's table.json. Raises UserError: the file is none."""
    sweep = read_written(path, kind="table.json")
    lines = []
    for row in (*sweep["baselines"], *sweep["rows"]):
        start = [f"from {row['from']}"] if row.get("from") else []
        changes = ", ".join([*start, *(f"{key}: {value}" for key, value in row.get("changes", {}).items())])
        lines.append(ResultLine(row["name"], changes, row["num_seeds"], *_figures(row["means"], row["difference"])))
    notes = [f"failed: {run['name']}, seed {run['seed']}: {run['reason']}" for run in sweep["failed"]]
    made_by, here = ((of["fingerprint"], of["split"]) for of in (sweep, summary))
    if made_by != here:
        notes.append(f"Another cache or split than the rest of this page: {made_by[0]}, {made_by[1]}.")
    return SweepLines(sweep["name"], sweep["against"], notes, lines)


def class_lines(per_class: Sequence[Plain], vocabulary: Vocabulary, methods: Sequence[str]) -> list[ClassLine]:
    """Return one line for each interaction of per_class.json that has truth; the others are in no mean."""
    return [
        ClassLine(in_words(name), record["rare"], record["num_positives"], _mean_ap(record, methods))
        for name, record in zip(vocabulary.names, per_class, strict=True)
        if record["num_positives"] > 0
    ]


def verb_lines(per_class: Sequence[Plain], vocabulary: Vocabulary, methods: Sequence[str]) -> list[ClassLine]:
    """Return one line a verb, over its interactions that have truth."""
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
    return {m: float(np.mean([row["percent"] for row in record["ap"] if row["name"] == m])) for m in methods}


def largest_differences(
    lines: Sequence[ClassLine], better: str, than: str, number: int
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the classes in which `better` leads most, and those in which it trails most, with the difference."""
    ranked = sorted(((line.name, line.ap[better] - line.ap[than]) for line in lines), key=lambda pair: -pair[1])
    ahead = [(name, value) for name, value in ranked[:number] if value > 0]
    behind = [(name, value) for name, value in ranked[::-1][:number] if value < 0]
    return ahead, behind
