"""Stage three: baselines and trained students in one table of average precision, from the cache and the labels.

Labels evaluate one split and, on another split, tune `direct_clip_tuned` and the supervised bound in their favour;
nothing here changes an annotation-free student. Without annotations, only agreement with the teacher is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig, StudentSettings
from hoi.errors import UserError
from hoi.evaluation.audit import audit, audit_row
from hoi.evaluation.baselines import BASELINES, GATED, PLAIN, TUNED, Tuner, direct_vlms
from hoi.evaluation.predictions import prediction_lines
from hoi.evaluation.rows import (
    Comparison,
    Evaluator,
    ResultRow,
    best_of,
    compare,
    format_table,
    format_zero_shot,
    means_over_seeds,
    per_class,
    rows_by_name,
    zero_shot_of,
)
from hoi.files import sole_writer, write_atomically, write_json
from hoi.labels import has_labels, label_notices, load_labels, rare_mask
from hoi.labels.zero_shot import check_zero_shot, drop_unseen, split_names
from hoi.machine import choose_device
from hoi.matching import CEILING, LabelledPairs
from hoi.provenance import commit, library_versions
from hoi.records import HoiLabels, PairBatch, Triplets
from hoi.registry import METRICS
from hoi.scoring import Scorer, extra_of, score_split
from hoi.students.base import Student
from hoi.training.train import run_folder, zero_shot_unseen

BATCH_IMAGES = 64
STUDENT = "student"
LIBRARIES = ("torch", "numpy", "open_clip_torch", "h5py", "safetensors")
MOST_SHORT = 8


@dataclass(frozen=True)
class Run:
    """One trained student, in evaluation mode on the evaluation's device."""

    name: str
    seed: int
    settings: StudentSettings
    student: Student


class RunEvaluator:
    """The evaluated split with its labels, for every method; labels that only tune are read when first needed."""

    def __init__(self, config: PipelineConfig, split: CacheSplit, device: torch.device) -> None:
        self.config, self.split, self.device = config, split, device
        self._tuners: dict[str | None, Tuner] = {}
        self._evaluator = Evaluator(
            labels_of(config, config.evaluation.split),
            split.num_images,
            split.vocabulary,
            rare_mask(config.dataset, config.train.split),
            config.evaluation.bootstrap,
            {name: metric for name in config.dataset.METRICS if (metric := METRICS[name].open(config, split))},
            config.evaluation.intervals,
        )

    def baselines(self) -> Iterator[ResultRow]:
        """Evaluate what needs no training; baselines that labels tune only where there are labels."""
        can_tune = has_labels(self.config.dataset, self.config.evaluation.tune_split)
        for baseline in BASELINES:
            if can_tune or not baseline.is_tuned:
                for name, triplets, settings in baseline.score(self):
                    yield self._evaluator.evaluate(name, None, triplets, settings)

    def labels_on_detections(self) -> ResultRow:
        """Evaluate the labels themselves on the cached pairs: no score of these pairs does better."""
        scored = self.score(LabelledPairs(self._evaluator.labels, self.split.vocabulary), 0.0)
        return self._evaluator.evaluate(CEILING, None, scored[CEILING], {"score_exponent": 0.0})

    def run(self, run: Run, *, with_branches: bool = True) -> Iterator[ResultRow]:
        """Evaluate a trained student, after each of its branches alone where it learned from the teacher."""
        exponent, settings = run.settings.score_exponent, run.settings.model_dump(mode="json")
        by_labels = run.settings.supervision == "labels"
        if by_labels:
            best = self.tuner(run.settings.zero_shot).tune([run.student], STUDENT)
            exponent = best.exponent
            settings |= best.to_dict(self.config.evaluation.tune_split)
        scored = self.score(run.student, exponent)
        branches = [part for part in scored if part != STUDENT] if with_branches and not by_labels else []
        for part in (*branches, STUDENT):
            row_settings = {**settings, "score_exponent": exponent}
            yield self._evaluator.evaluate(row_name(run.name, part), run.seed, scored[part], row_settings)

    def score(self, scorer: Scorer, exponent: float) -> dict[str, Triplets]:
        """Return a scorer's triplets on the whole split, by row name."""
        batches = self.split.batches(BATCH_IMAGES, extra=extra_of(scorer))
        return score_split(scorer, batches, self.split.vocabulary, exponent, self.device)

    def tuner(self, zero_shot: str | None = None) -> Tuner:
        """Open the split whose labels tune, without what a zero-shot split hides; each is opened once."""
        if zero_shot in self._tuners:
            return self._tuners[zero_shot]
        name = self.config.evaluation.tune_split
        if name == self.config.evaluation.split:
            what = "tuning on the evaluated split would make its figures worthless"
            raise UserError(what, where="evaluation.tune_split", expected="another split", got=name)
        split = open_split(self.config, name)

        def batches(extra: Sequence[str]) -> Iterator[PairBatch]:
            return split.batches(BATCH_IMAGES, extra=extra)

        labels = labels_of(self.config, name)
        if zero_shot is not None:
            labels, _ = drop_unseen(labels, zero_shot_unseen(self.config, zero_shot))
        self._tuners[zero_shot] = Tuner(batches, labels, split.vocabulary, self.device)
        return self._tuners[zero_shot]


def row_name(student: str, part: str) -> str:
    """Return the row name of a part of a student: the student called `student` lends its parts no prefix."""
    return part if student == STUDENT else student if part == STUDENT else f"{student}/{part}"


def labels_of(config: PipelineConfig, split: str) -> HoiLabels:
    """Return the annotations of a split. Raises UserError: there are none."""
    labels = load_labels(config.dataset, split)
    if not len(labels):
        fix = "choose another evaluation.split or evaluation.tune_split, or set dataset.annotations: null"
        raise UserError(f"split '{split}' has no annotated interaction", where="evaluation", fix=fix)
    return labels


def zero_shot_splits(config: PipelineConfig) -> dict[str, np.ndarray]:
    """Return the zero-shot splits that are reported, each with the ids of its unseen interactions."""
    return {name: zero_shot_unseen(config, name) for name in split_names(config)}


@dataclass(frozen=True)
class EvaluationReport:
    title: str
    rows: list[ResultRow]  # the result table; empty without annotations
    comparisons: list[Comparison]
    agreement: dict[str, dict[str, float]]  # student → branch → share on which it and the teacher put the same first
    files: list[Path]
    zero_shot: dict[str, np.ndarray] = field(default_factory=dict)  # split → ids that it hides
    students: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.title}, no annotations: no average precision", format_agreement(self.agreement)]
        if self.rows:
            parts = [
                f"{self.title}\nmean average precision in percent by HICO-DET's official rule, ± sd over seeds",
                format_table(self.rows),
                "\n".join(map(str, self.comparisons)),
                *(METRICS[name].table(METRICS[name].summary(self.rows)) for name in self.rows[0].extra),
                format_zero_shot(self.rows, self.zero_shot) if self.zero_shot else "",
            ]
        return "\n\n".join([*filter(None, parts), "\n".join(f"wrote {path}" for path in self.files)])


def short_table(report: EvaluationReport) -> str:
    """Return at most eight rows, students and the strongest baselines, in the order of the whole table.

    Without annotations, the agreement of students and teacher.
    """
    if not report.rows:
        return f"{report.title}\n{format_agreement(report.agreement)}"
    full = {record["name"]: (record["full"] or {"mean": 0.0})["mean"] for record in means_over_seeds(report.rows)}
    students = [name for name in report.students if name in full][: MOST_SHORT - 2]
    baselines = [name for name, seeds in rows_by_name(report.rows).items() if seeds[0].seed is None]
    strongest = sorted(baselines, key=lambda name: -full[name])[: MOST_SHORT - len(students)]
    rows = [row for row in report.rows if row.name in {*students, *strongest}]
    return f"{report.title}\nmean average precision in percent, ± sd over seeds\n{format_table(rows)}"


def format_agreement(agreement: dict[str, dict[str, float]]) -> str:
    """Return agreement with the teacher, one line a student and branch."""
    lines = ["agreement with the teacher: how often both put the same interaction first"]
    width = max((len(f"{name}/{branch}") for name, shares in agreement.items() for branch in shares), default=0)
    for name, shares in agreement.items():
        lines += [f"  {f'{name}/{branch}'.ljust(width)}  {100 * share:6.2f} %" for branch, share in shares.items()]
    return "\n".join(lines)


def annotation_notices(config: PipelineConfig) -> list[str]:
    """Return what is odd about the annotations that results rest on, as repeated lines."""
    return label_notices(config.dataset)


def evaluate(config: PipelineConfig) -> EvaluationReport:
    """Evaluate all students and baselines that the config names, and write the results.

    Raises UserError: no cache or trained student, one of other settings, wrong annotations, or another run writes into
    this folder now.
    """
    check_zero_shot(config)
    torch.set_num_threads(config.train.threads)
    split = open_split(config, config.evaluation.split)
    device = choose_device(config.train.device)
    runs = []
    for name, seed in product(config.students, config.train.seeds):
        folder = run_folder(config, name, seed, split.fingerprint)
        student = folder.load_student(split.text_bank, split.vocabulary, split.axes)
        runs.append(Run(name, seed, config.students[name], student.to(device)))
    with sole_writer(Path(config.output)):
        agreement = _agreement(split, runs, device)
        rows: list[ResultRow] = []
        if has_labels(config.dataset, config.evaluation.split):
            evaluator = RunEvaluator(config, split, device)
            rows += evaluator.baselines()
            for run in tqdm(runs, desc="scoring students", unit="run", disable=None, leave=False):
                rows += evaluator.run(run)
        written = _write_predictions(config, split, runs, device) if config.evaluation.save_predictions else []
        return _write(config, split, rows, agreement, device, written)


def _agreement(split: CacheSplit, runs: list[Run], device: torch.device) -> dict[str, dict[str, float]]:
    agreeing: dict[str, dict[str, list[torch.Tensor]]] = {}
    with torch.inference_mode():
        for run in runs:
            if run.settings.supervision == "labels":
                continue
            for batch in split.batches(BATCH_IMAGES, extra=run.student.extra_fields):
                for branch, agrees in run.student.losses(batch.to(device), None).agreement.items():
                    agreeing.setdefault(run.name, {}).setdefault(branch, []).append(agrees.cpu())
    return {
        name: {branch: float(torch.cat(parts).float().mean()) for branch, parts in branches.items()}
        for name, branches in agreeing.items()
    }


def _write_predictions(config: PipelineConfig, split: CacheSplit, runs: list[Run], device: torch.device) -> list[Path]:
    if not config.dataset.scores_interactions:
        raise UserError(
            "predictions of V-COCO have a score per action and are not written",
            where="evaluation.save_predictions",
            expected="a data set of interactions: world, folder or hicodet",
            got=config.dataset.name,
            fix="set it to false; stage three evaluates V-COCO itself",
        )
    folder, paths = Path(config.output) / "predictions", []
    # `hoi predict` may write there, too.
    with sole_writer(folder):
        for run in runs:
            if run.settings.supervision == "teacher":
                batches = split.batches(BATCH_IMAGES, extra=extra_of(run.student))
                scored = score_split(run.student, batches, split.vocabulary, run.settings.score_exponent, device)
                paths.append(folder / f"{run.name}-seed-{run.seed}.jsonl.gz")
                inclusive = config.dataset.inclusive_boxes
                write_atomically(paths[-1], prediction_lines(scored[STUDENT], split.image_ids, inclusive=inclusive))
    return paths


def _comparisons(config: PipelineConfig, rows: list[ResultRow]) -> list[Comparison]:
    # Every student of the teacher, and the row `student`, against each of its teachers and its own best branch.
    names = {row.name for row in rows}
    taught = [name for name, s in config.students.items() if s.supervision == "teacher" or name == STUDENT]
    direct = [name for name in (TUNED, GATED) if name in names] or [PLAIN]
    comparisons = []
    for student in taught if rows else []:
        branches = [name for part in config.students[student].BRANCHES if (name := row_name(student, part)) in names]
        heard = config.students[student].vlm_names
        asked = [row for scorer in direct_vlms(config.vlms) if scorer.vlm in heard for row in scorer.rows]
        others = [*direct, *asked, *([best_of(rows, branches)] if branches else [])]
        comparisons += [compare(rows, student, other) for other in others]
    return comparisons


def _write(
    config: PipelineConfig,
    split: CacheSplit,
    rows: list[ResultRow],
    agreement: dict[str, dict[str, float]],
    device: torch.device,
    written: list[Path],
) -> EvaluationReport:
    folder, means, comparisons = Path(config.output), means_over_seeds(rows), _comparisons(config, rows)
    splits = zero_shot_splits(config) if rows else {}
    dropped: dict[str, dict[str, int]] = {}
    if splits and has_labels(config.dataset, config.train.split):
        labels = load_labels(config.dataset, config.train.split)
        dropped = {name: asdict(drop_unseen(labels, ids)[1]) for name, ids in splits.items()}
    names = [record["name"] for record in means]
    direct = TUNED if TUNED in names else PLAIN
    summary: dict[str, Any] = {
        "split": config.evaluation.split,
        "num_images": split.num_images,
        "num_pairs": split.num_pairs,
        "means": means,
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "against_direct": [compare(rows, name, direct).to_dict() for name in names if name != direct],
        "agreement": agreement,
        "config": config.model_dump(mode="json"),
        "zero_shot_unseen": {name: ids.tolist() for name, ids in splits.items()},
        "zero_shot_dropped": dropped,
        "fingerprint": split.fingerprint,
        "commit": commit(),
        "versions": library_versions(LIBRARIES),
        "device": device.type,
        **{name: METRICS[name].summary(rows) for name in (rows[0].extra if rows else ())},
    }
    plain = []
    for row in rows:
        extra = {"zero_shot": zero_shot} if (zero_shot := zero_shot_of(row, splits)) else {}
        plain.append({**row.to_dict(split.num_images), **extra, "audit": audit_row(config, row.settings)})
    contents: dict[str, Any] = {"summary.json": summary}
    if rows:
        # results.json last, so that a full disk leaves no result table that is newer than what explains it.
        contents = {"per_class.json": per_class(rows, split.vocabulary), **contents}
        contents |= {"audit.json": audit(config, plain, dropped), "results.json": plain}
    for name, content in contents.items():
        write_json(folder / name, content, sort_keys=name != "summary.json")
    positives = f", {int(rows[0].result.num_positives.sum())} annotated interactions" if rows else ""
    counts = f"{split.num_images} images, {split.num_pairs} pairs{positives}"
    title = f"{config.name}, split {config.evaluation.split}: {counts}"
    if rows and TUNED not in names:
        title += f"\nsplit {config.evaluation.tune_split} has no annotations: no {TUNED}, no {GATED}"
    files = [*(folder / name for name in contents), *written]
    return EvaluationReport(title, rows, comparisons, agreement, files, splits, tuple(config.students))
