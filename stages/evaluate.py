"""Stage three: baselines and trained students to one table of average precision, from the cache and the labels.

Labels grade the evaluated split and, on another split, tune `direct_clip_tuned` and the supervised bound in their
favour; nothing here changes an annotation-free student. Without annotations, agreement with the teacher is all there
is to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cache.atomic import write_json
from cache.dataset import CacheSplit
from hoi.baselines import DetectorPrior, DirectClip, DirectClipLevels, GatedDirectClip, direct_settings, setting_knobs
from hoi.config import PipelineConfig
from hoi.datasets.labels import has_labels, load_labels, rare_mask
from hoi.errors import UserError, run_program
from hoi.evaluation.rows import Comparison, Examiner, ResultRow, compare, per_class
from hoi.evaluation.table import best_of, format_agreement, format_comparison, format_table, means_over_seeds
from hoi.evaluation.tuning import Tuner
from hoi.provenance import commit, library_versions
from hoi.records import HoiLabels, PairBatch
from hoi.scoring import score_split
from hoi.students import Student
from hoi.training import choose_device
from stages.cached_split import open_split
from stages.command_line import stage_config
from stages.train import run_folder

BATCH_IMAGES = 64
STUDENT, TUNED, GATED = "student", "direct_clip_tuned", "direct_clip_gated"
GATE_EXPONENTS = (0.5, 0.25, 1.0)
"""Tried on validation for direct CLIP; the students' own is fixed in the pipeline file."""
BRANCHES = ("global", "union", "human_object")
UNGATED = "ungated"
LIBRARIES = ("torch", "numpy", "open_clip_torch", "h5py", "safetensors")


@dataclass(frozen=True)
class Run:
    """One trained student, in evaluation mode on the evaluation's device.

    Args:
        name: In the pipeline file.
        seed: Of its training.
        student: The network.
    """

    name: str
    seed: int
    student: Student


@dataclass(frozen=True)
class Report:
    """What stage three found and wrote.

    Args:
        title: Which data were evaluated.
        rows: The result table; empty without annotations.
        comparisons: Paired bootstrap intervals.
        agreement: By student, then branch: the share of images or pairs on which student and teacher put the same
            interaction first, over all seeds.
        files: What was written.
    """

    title: str
    rows: list[ResultRow]
    comparisons: list[Comparison]
    agreement: dict[str, dict[str, float]]
    files: list[Path]

    def __str__(self) -> str:
        if self.rows:
            parts = [
                f"{self.title}\nmean average precision in percent by HICO-DET's official rule, ± sd over seeds",
                format_table(self.rows),
                "\n".join(format_comparison(found) for found in self.comparisons),
            ]
        else:
            parts = [f"{self.title}, no annotations: no average precision", format_agreement(self.agreement)]
        return "\n\n".join([*filter(None, parts), "\n".join(f"wrote {path}" for path in self.files)])


def main(config: PipelineConfig) -> Report:
    """Scores everything that the config names and writes the results.

    Raises:
        UserError: no cache, no trained student, a cache or a run of other settings, wrong annotations.
    """
    torch.set_num_threads(config.train.threads)
    split = open_split(config, config.evaluation.split)
    device = choose_device(config.train.device)
    runs = list(_load_runs(config, split, device))
    agreement = _agreement(config, split, runs, device)
    rows = list(_grade(config, split, runs, device)) if has_labels(config.dataset) else []
    return _write(config, split, rows, _comparisons(rows), agreement, device)


def _load_runs(config: PipelineConfig, split: CacheSplit, device: torch.device) -> Iterator[Run]:
    for name in config.students:
        for seed in config.train.seeds:
            folder = run_folder(config, name, seed, split.fingerprint)
            student = folder.load_student(split.text_bank, split.vocabulary, split.axes["L"])
            yield Run(name, seed, student.to(device))


def _agreement(
    config: PipelineConfig, split: CacheSplit, runs: list[Run], device: torch.device
) -> dict[str, dict[str, float]]:
    agreeing: dict[str, dict[str, list[torch.Tensor]]] = {}
    with torch.inference_mode():
        for run in runs:
            if config.students[run.name].supervision == "labels":
                continue
            for batch in split.batches(BATCH_IMAGES):
                for branch, agrees in run.student.losses(batch.to(device), None).agreement.items():
                    agreeing.setdefault(run.name, {}).setdefault(branch, []).append(agrees.cpu())
    return {
        name: {branch: float(torch.cat(parts).float().mean()) for branch, parts in branches.items()}
        for name, branches in agreeing.items()
    }


def _grade(config: PipelineConfig, split: CacheSplit, runs: list[Run], device: torch.device) -> Iterator[ResultRow]:
    vocabulary = split.vocabulary
    labels = _labels(config, config.evaluation.split)
    examiner = Examiner(
        labels, split.num_images, vocabulary, rare_mask(config.dataset, config.train.split), config.evaluation.bootstrap
    )
    tuner = _open_tuner(config, device)

    prior = score_split(DetectorPrior(vocabulary), split.batches(BATCH_IMAGES), vocabulary, 1.0, device)
    yield examiner.grade("detector_prior", None, prior["detector_prior"], {"score_exponent": 1.0})

    settings, margins = direct_settings(split.text_bank, split.axes["M"]), config.teacher.crop.margins
    plain = DirectClipLevels(DirectClip(split.text_bank, vocabulary, settings[0], "direct_clip"))
    for name, triplets in score_split(plain, split.batches(BATCH_IMAGES), vocabulary, 1.0, device).items():
        yield examiner.grade(name, None, triplets, setting_knobs(settings[0], 1.0, margins))

    scorers = [DirectClip(split.text_bank, vocabulary, setting, TUNED) for setting in settings]
    best = tuner.tune(tqdm(scorers, desc="tuning direct CLIP", unit="setting", disable=None, leave=False), TUNED)
    chosen = score_split(scorers[best.choice], split.batches(BATCH_IMAGES), vocabulary, best.exponent, device)
    knobs = setting_knobs(settings[best.choice], best.exponent, margins)
    yield examiner.grade(TUNED, None, chosen[TUNED], {**knobs, **best.to_dict(config.evaluation.tune_split)})

    gates = [GatedDirectClip(scorers[best.choice], exponent, GATED) for exponent in GATE_EXPONENTS]
    best_gate = tuner.tune(gates, GATED)
    chosen = score_split(gates[best_gate.choice], split.batches(BATCH_IMAGES), vocabulary, best_gate.exponent, device)
    knobs |= {"gate_exponent": GATE_EXPONENTS[best_gate.choice], "score_exponent": best_gate.exponent}
    yield examiner.grade(GATED, None, chosen[GATED], {**knobs, **best_gate.to_dict(config.evaluation.tune_split)})

    for run in tqdm(runs, desc="scoring students", unit="run", disable=None, leave=False):
        yield from _grade_run(config, split, run, examiner, tuner, device)


def _grade_run(
    config: PipelineConfig, split: CacheSplit, run: Run, examiner: Examiner, tuner: Tuner, device: torch.device
) -> Iterator[ResultRow]:
    settings = config.students[run.name]
    exponent, knobs = settings.score_exponent, settings.model_dump(mode="json")
    parts: tuple[str, ...] = (*BRANCHES, *([UNGATED] if settings.gate_exponent > 0 else []), STUDENT)
    if settings.supervision == "labels":
        best = tuner.tune([run.student], STUDENT)
        exponent, parts = best.exponent, (STUDENT,)
        knobs |= best.to_dict(config.evaluation.tune_split)
    scored = score_split(run.student, split.batches(BATCH_IMAGES), split.vocabulary, exponent, device)
    for part in parts:
        yield examiner.grade(row_name(run.name, part), run.seed, scored[part], {**knobs, "score_exponent": exponent})


def row_name(student: str, part: str) -> str:
    """A student's name in the pipeline file and one of its parts to the name in the result table."""
    if student == STUDENT:
        return part
    return student if part == STUDENT else f"{student}/{part}"


def _labels(config: PipelineConfig, split: str) -> HoiLabels:
    labels = load_labels(config.dataset, split)
    if not len(labels):
        raise UserError(
            f"split '{split}' has no annotated interaction",
            where="evaluation",
            expected="at least one, for average precision",
            fix="choose another evaluation.split or evaluation.tune_split, or set dataset.annotations: null",
        )
    return labels


def _open_tuner(config: PipelineConfig, device: torch.device) -> Tuner:
    name = config.evaluation.tune_split
    if name == config.evaluation.split:
        raise UserError(
            "tuning on the evaluated split would make its figures worthless",
            where="evaluation.tune_split",
            expected="another split",
            got=name,
        )
    split = open_split(config, name)

    def batches() -> Iterator[PairBatch]:
        return split.batches(BATCH_IMAGES)

    return Tuner(batches, _labels(config, name), split.vocabulary, device)


def _comparisons(rows: list[ResultRow]) -> list[Comparison]:
    names = {row.name for row in rows}
    if STUDENT not in names:
        return []
    others = [TUNED, GATED, *([best_of(rows, BRANCHES)] if names & set(BRANCHES) else [])]
    return [compare(rows, STUDENT, other) for other in others]


def _write(
    config: PipelineConfig,
    split: CacheSplit,
    rows: list[ResultRow],
    comparisons: list[Comparison],
    agreement: dict[str, dict[str, float]],
    device: torch.device,
) -> Report:
    folder = Path(config.output)
    summary = {
        "split": config.evaluation.split,
        "num_images": split.num_images,
        "num_pairs": split.num_pairs,
        "means": means_over_seeds(rows),
        "comparisons": [found.to_dict() for found in comparisons],
        "agreement": agreement,
        "config": config.model_dump(mode="json"),
        "fingerprint": split.fingerprint,
        "commit": commit(),
        "versions": library_versions(LIBRARIES),
        "device": device.type,
    }
    contents: dict[str, Any] = {}
    if rows:
        contents["per_class.json"] = per_class(rows, split.vocabulary)
    contents["summary.json"] = summary
    if rows:
        # Last, so that a full disk leaves no result table that is newer than what explains it.
        contents["results.json"] = [row.to_dict(split.num_images) for row in rows]
    for name, plain in contents.items():
        write_json(folder / name, plain)
    positives = f", {int(rows[0].result.num_positives.sum())} annotated interactions" if rows else ""
    title = (
        f"{config.name}, split {config.evaluation.split}: {split.num_images} images, {split.num_pairs} pairs{positives}"
    )
    return Report(title, rows, comparisons, agreement, [folder / name for name in contents])


def _command() -> None:
    config = stage_config("Stage three: the result table of baselines and trained students.")
    print(main(config))


if __name__ == "__main__":
    run_program(_command)
