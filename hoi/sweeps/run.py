"""A sweep: many students against one cache, trained and graded in parallel, gathered in one table.

A run is its settings: rows that differ only in how they are scored share one, whatever they are called, and what is
finished is never done again. A run that fails is listed with its reason and stops nothing; the exit code is then 1.
Runs go where `cache.scheduler` says, as shards do; workers of a cluster must see cache and output under the same paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hoi.cache.build.pool import Pool, Task, open_pool
from hoi.cache.read.opened import pass_fingerprints
from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.evaluation.evaluate import Run, RunEvaluator, annotation_hashes, zero_shot_splits
from hoi.evaluation.rows import ResultRow, from_plain, to_plain
from hoi.files import json_sha256, read_json, write_json
from hoi.labels import has_labels
from hoi.machine import choose_device
from hoi.sweeps.plan import Sweep, SweepRow
from hoi.sweeps.table import SweepTable
from hoi.training.runs import RunFolder
from hoi.training.train import check_annotations, open_source, open_training_split, run_settings, train_run


def train_task(config_json: str, seed: int, folder: str, fingerprint: str) -> dict[str, Any]:
    """Trains the only student of a config, unless that is done, and says how long it took or why it failed.

    Args:
        config_json: The pipeline, with one student.
        seed: Of the training.
        folder: Of the run.
        fingerprint: What the cache must have been made with.

    Returns:
        `seconds`, None where it was finished before; or `error`. A failure is a result here, so that it is neither
        tried again nor ends the sweep.
    """
    try:
        config = PipelineConfig.model_validate_json(config_json)
        run = run_of(config, seed, Path(folder), fingerprint)
        if run.status() == "finished":
            return {"seconds": None}
        torch.set_num_threads(config.train.threads)
        device = choose_device(config.train.device)
        split = _open(config.cache.folder, config.train.split, fingerprint)
        source = open_source(config, split, device)
        seconds = train_run(config, only_student(config), seed, split, source, run, device, with_bar=False)
    except Exception as error:
        return {"error": reason(error)}
    return {"seconds": seconds}


def run_of(config: PipelineConfig, seed: int, folder: Path, fingerprint: str) -> RunFolder:
    """The run of a config's only student in a folder of the sweep's choice."""
    name = only_student(config)
    return RunFolder(folder, config.students[name], run_settings(config, name, seed, fingerprint))


def only_student(config: PipelineConfig) -> str:
    """The name of a config's only student."""
    (name,) = config.students
    return name


def reason(error: Exception) -> str:
    """An exception to one line."""
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "UserError" else f"{type(error).__name__}: {text}"


@lru_cache(maxsize=1)
def _open(folder: str, split: str, fingerprint: str) -> CacheSplit:
    """Kept from run to run, so that a worker loads the tables once."""
    return CacheSplit.open(folder, split, fingerprint)


GRADES_VERSION = 3
"""Of the files and of what their figures mean."""


def grade_task(
    rows: tuple[tuple[str, str], ...], seed: int, folder: str, fingerprint: str, digest: str
) -> dict[str, Any]:
    """Grades every way in which one run is scored.

    Args:
        rows: Config with one student, as JSON, and the file that its row goes to.
        seed, folder, fingerprint: As in `hoi.sweeps.run.train_task`.
        digest: Of the grading, so that a worker that lives long reads changed labels anew.

    Returns:
        `errors`: file to reason, where there is any.
    """
    errors = {}
    for config_json, file in rows:
        try:
            config = PipelineConfig.model_validate_json(config_json)
            run, evaluator = run_of(config, seed, Path(folder), fingerprint), _evaluator(_shared(config), digest)
            split, name = evaluator.split, only_student(config)
            student = run.load_student(split.text_bank, split.vocabulary, split.axes).to(evaluator.device)
            (row,) = evaluator.run(Run(name, seed, run.student, student), with_branches=False)
            write_json(Path(file), to_plain(row))
        except Exception as error:
            errors[file] = reason(error)
    return {"errors": errors}


def baselines_task(config_json: str, file: str, digest: str) -> dict[str, Any]:
    """Grades what needs no training, as `grade_task` grades a run."""
    try:
        evaluator = _evaluator(_shared(PipelineConfig.model_validate_json(config_json)), digest)
        write_json(Path(file), [to_plain(row) for row in evaluator.baselines()])
    except Exception as error:
        return {"errors": {file: reason(error)}}
    return {"errors": {}}


def grading_digest(config: PipelineConfig, fingerprint: str) -> str:
    """Hash over all that decides the figures of a sweep besides its students: cache, annotations and settings.

    Raises:
        UserError: a pass of `vlms` is not there or not complete.
    """
    passes = pass_fingerprints(Path(config.cache.folder) / config.evaluation.split, config.vlms)
    decides = [GRADES_VERSION, fingerprint, annotation_hashes(config), _graded_by(config)]
    return short_digest([*decides, passes] if passes else decides)


def short_digest(plain: Any) -> str:
    """Plain data to a name for files that is the same for equal data."""
    return json_sha256(plain)[:12]


def _graded_by(config: PipelineConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json")
    return {**{name: plain[name] for name in ("dataset", "evaluation", "teacher")}, "train_split": config.train.split}


def _shared(config: PipelineConfig) -> str:
    """What all rows of a sweep have in common, as a key."""
    plain = config.model_dump(mode="json", exclude={"students"})
    plain["train"] = {key: plain["train"][key] for key in ("split", "device", "threads")}
    return json.dumps({**plain, "students": {"student": {}}})


@lru_cache(maxsize=1)
def _evaluator(shared: str, digest: str) -> RunEvaluator:
    config = PipelineConfig.model_validate_json(shared)
    torch.set_num_threads(config.train.threads)
    return RunEvaluator(config, open_split(config, config.evaluation.split), choose_device(config.train.device))


BASELINES = "baselines"
DEFAULT = "examples/ablation.yaml"


@dataclass(frozen=True)
class Job:
    """One row and seed.

    Args:
        row: Of the sweep.
        config: With the row for its only student.
        seed: Of the training.
        folder: Of its run, which other rows may share.
        grade: File of its result row.
    """

    row: SweepRow
    config: PipelineConfig
    seed: int
    folder: Path
    grade: Path

    @cached_property
    def config_json(self) -> str:
        return self.config.model_dump_json()


@dataclass(frozen=True)
class Plan:
    """All jobs of a sweep.

    Args:
        sweep: The sweep file.
        fingerprint: Of the cache.
        digest: Of the grading.
        jobs: Row by row, seed by seed.
    """

    sweep: Sweep
    fingerprint: str
    digest: str
    jobs: list[Job]

    @property
    def runs(self) -> dict[Path, list[Job]]:
        """Jobs by the run that they share."""
        runs: dict[Path, list[Job]] = {}
        for job in self.jobs:
            runs.setdefault(job.folder, []).append(job)
        return runs

    @property
    def baselines(self) -> Path:
        """File of the rows that need no training."""
        return sweeps_folder(self.sweep.config) / BASELINES / f"{self.digest}.json"


def main(sweep: Sweep) -> SweepTable:
    """Trains and grades what is missing and writes the tables.

    Raises:
        UserError: no cache, a cache of other settings, no annotations, a damaged run.
    """
    plan = make_plan(sweep)
    errors: dict[Path, str] = {}
    to_train = [jobs[0] for folder, jobs in plan.runs.items() if not _is_finished(plan, jobs[0])]
    if any(job.row.student.supervision == "labels" for job in to_train):
        check_annotations(sweep.config)
    if to_train or _grade_tasks(plan, errors):
        with open_pool(sweep.config.cache) as pool:
            _run(pool, [_train_task(plan, job) for job in to_train], errors)
            _run(pool, _grade_tasks(plan, errors), errors)
    table = _gather(plan, errors, num_trained=sum(job.folder not in errors for job in to_train))
    table.write()
    return table


def _run(pool: Pool, tasks: list[Task], errors: dict[Path, str]) -> None:
    """Runs tasks of one group, and notes what failed."""
    if not tasks:
        return
    with tqdm(total=len(tasks), desc=tasks[0].group, unit="run", disable=None) as bar:
        for outcome in pool.run(tasks):
            result = outcome.result or {"error": (outcome.error or "no reason given").strip().splitlines()[-1]}
            errors |= _failures(outcome.task, result)
            if result.get("seconds"):
                *_, run, seed = Path(outcome.task.name).parts
                tqdm.write(f"{run} {seed}: trained in {result['seconds']:.1f} s")
            bar.update()


def make_plan(sweep: Sweep) -> Plan:
    """Rows and seeds to the runs that they need, with everything checked that can be before the first starts."""
    config = sweep.config
    if not has_labels(config.dataset):
        raise UserError(
            "a sweep compares students by average precision, and this data set has no annotations",
            where="dataset",
            fix="set dataset.annotations, or compare by hand what make eval says",
        )
    split = open_training_split(config)
    open_split(config, config.evaluation.split)
    digest = grading_digest(config, split.fingerprint)
    jobs = list(_jobs(sweep, split.fingerprint, digest))
    return Plan(sweep, split.fingerprint, digest, jobs)


def _jobs(sweep: Sweep, fingerprint: str, digest: str) -> Iterator[Job]:
    names: dict[str, Path] = {}
    runs = sweeps_folder(sweep.config) / "runs"
    for row in sweep.rows:
        config = sweep.config_of(row)
        for seed in config.train.seeds:
            settings = run_settings(config, row.name, seed, fingerprint)
            key = short_digest({name: value for name, value in settings.items() if name != "seed"})
            if key not in names:
                # The name is for people: a run is found by its settings, under whatever name it was trained.
                names[key] = next(iter(sorted(runs.glob(f"*-{key}"))), runs / f"{row.name}-{key}")
            grade = short_digest([digest, row.student.model_dump(mode="json")])
            folder = names[key] / f"seed-{seed}"
            yield Job(row, config, seed, folder, folder / f"grade-{grade}.json")


def sweeps_folder(config: PipelineConfig) -> Path:
    """Where all sweeps of a pipeline keep their runs and tables."""
    return Path(config.output) / "sweeps"


def _is_finished(plan: Plan, job: Job) -> bool:
    return run_of(job.config, job.seed, job.folder, plan.fingerprint).status() == "finished"


def _train_task(plan: Plan, job: Job) -> Task:
    arguments = (job.config_json, job.seed, str(job.folder), plan.fingerprint)
    return Task("training", str(job.folder), train_task, arguments)


def _grade_tasks(plan: Plan, errors: dict[Path, str]) -> list[Task]:
    """One task a run that has something ungraded, and, first since it takes longest, one for the baselines."""
    tasks: list[Task] = []
    if not plan.baselines.exists():
        whole = (plan.sweep.config.model_dump_json(), str(plan.baselines), plan.digest)
        tasks.append(Task("grading", str(plan.baselines), baselines_task, whole))
    for folder, jobs in plan.runs.items():
        missing = {job.grade: job for job in jobs if not job.grade.exists()}
        if missing and folder not in errors:
            rows = tuple((job.config_json, str(grade)) for grade, job in missing.items())
            arguments = (rows, jobs[0].seed, str(folder), plan.fingerprint, plan.digest)
            tasks.append(Task("grading", str(folder), grade_task, arguments))
    return tasks


def _failures(task: Task, result: dict[str, Any]) -> dict[Path, str]:
    """What went wrong by run, or by file of a grade."""
    if "error" in result:
        return {Path(task.name): result["error"]}
    return {Path(file): text for file, text in result.get("errors", {}).items()}


def _gather(plan: Plan, errors: dict[Path, str], num_trained: int) -> SweepTable:
    baselines: list[ResultRow] = [from_plain(row) for row in read_json(plan.baselines) or []]
    graded: dict[tuple[str, int], ResultRow] = {}
    failed: dict[tuple[str, int], str] = {}
    if plan.baselines in errors:
        failed[BASELINES, 0] = errors[plan.baselines]
    for job in plan.jobs:
        plain = read_json(job.grade)
        if plain is None:
            failed[job.row.name, job.seed] = errors.get(job.grade) or errors.get(job.folder) or "not graded"
        else:
            # A grade may have been made under another row's name.
            graded[job.row.name, job.seed] = from_plain({**plain, "name": job.row.name})
    return SweepTable(
        plan.sweep,
        sweeps_folder(plan.sweep.config) / plan.sweep.name,
        plan.fingerprint,
        baselines,
        graded,
        failed,
        {(job.row.name, job.seed): job.folder for job in plan.jobs},
        num_trained,
        zero_shot_splits(_with_all_rows(plan.sweep)),
    )


def _with_all_rows(sweep: Sweep) -> PipelineConfig:
    return sweep.config.model_copy(update={"students": {row.name: row.student for row in sweep.rows}})
