"""A sweep: many students trained from one cache and evaluated in parallel, gathered in one table.

A run is identified by its settings: rows that differ only in how they are scored share one, whatever they are called,
and what is finished is never done again. A run that fails is listed with its reason and stops no other. Runs go where
`cache.scheduler` says, as shards do; workers of a cluster must see cache and output under the same paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hoi.cache.build.pool import Pool, Task, open_pool
from hoi.cache.read.opened import pass_fingerprints
from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.evaluation.evaluate import Run, RunEvaluator, zero_shot_splits
from hoi.evaluation.rows import ResultRow, read_rows, to_plain
from hoi.files import file_sha256, json_sha256, sole_writer, write_json
from hoi.labels import has_labels, label_files
from hoi.machine import choose_device
from hoi.sweeps.plan import Sweep, SweepRow
from hoi.sweeps.table import SweepTable
from hoi.training.train import check_annotations, open_source, open_training_split, run_folder, run_settings, train_run


def train_task(config_json: str, seed: int, folder: str, fingerprint: str) -> dict[str, Any]:
    """Train the only student of a config, unless that is done, and return `seconds`, None if it was done, or `error`.

    A failure is a result here, so that it is neither tried again nor ends the sweep.
    """
    try:
        config = PipelineConfig.model_validate_json(config_json)
        run = run_folder(config, only_student(config), seed, fingerprint, Path(folder))
        if run.status() == "finished":
            return {"seconds": None}
        torch.set_num_threads(config.train.threads)
        device = choose_device(config.train.device)
        split = _open(_shared(config), fingerprint)
        source = open_source(config, split, device)
        seconds = train_run(config, only_student(config), seed, split, source, run, device, with_bar=False)
    except Exception as error:
        return {"error": reason(error)}
    return {"seconds": seconds}


def only_student(config: PipelineConfig) -> str:
    (name,) = config.students
    return name


def reason(error: Exception) -> str:
    """Return an exception as one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


@lru_cache(maxsize=1)
def _open(shared: str, fingerprint: str) -> CacheSplit:
    # Kept from run to run, so that a worker loads the tables once.
    config = PipelineConfig.model_validate_json(shared)
    return open_split(config, config.train.split, same_images=False, fingerprint=fingerprint)


GRADES_VERSION = 3
"""Of the files and of what their figures mean."""


def grade_task(
    rows: tuple[tuple[str, str], ...], seed: int, folder: str, fingerprint: str, digest: str
) -> dict[str, Any]:
    """Evaluate one run in every way in which it is scored, and return `errors`: file → reason.

    `rows` holds configs with one student, as JSON, and the file that each row goes to. `digest` is the evaluation's, so
    that a long-lived worker reads changed labels again.
    """
    errors = {}
    for config_json, file in rows:
        try:
            config = PipelineConfig.model_validate_json(config_json)
            name, evaluator = only_student(config), _evaluator(_shared(config), digest)
            run, split = run_folder(config, name, seed, fingerprint, Path(folder)), evaluator.split
            student = run.load_student(split.text_bank, split.vocabulary, split.axes).to(evaluator.device)
            (row,) = evaluator.run(Run(name, seed, run.student, student), with_branches=False)
            write_json(Path(file), to_plain(row))
        except Exception as error:
            errors[file] = reason(error)
    return {"errors": errors}


def baselines_task(config_json: str, file: str, digest: str) -> dict[str, Any]:
    """Evaluate the rows that need no training, as `grade_task` evaluates a run."""
    try:
        evaluator = _evaluator(_shared(PipelineConfig.model_validate_json(config_json)), digest)
        write_json(Path(file), [to_plain(row) for row in evaluator.baselines()])
    except Exception as error:
        return {"errors": {file: reason(error)}}
    return {"errors": {}}


def grading_digest(config: PipelineConfig, fingerprint: str) -> str:
    """Return a hash of all that decides a sweep's figures besides its students: cache, annotations and settings.

    Raises UserError: a pass of `vlms` is not there or not complete.
    """
    passes = pass_fingerprints(Path(config.cache.folder) / config.evaluation.split, config.vlms)
    plain = config.model_dump(mode="json")
    settings = {name: plain[name] for name in ("dataset", "evaluation", "teacher")}
    settings["train_split"] = config.train.split
    # The embedded world's labels come from its seed, not from a file.
    hashes = [file_sha256(path) for path in label_files(config.dataset)]
    decides = [GRADES_VERSION, fingerprint, hashes, settings]
    return short_digest([*decides, passes] if passes else decides)


def short_digest(plain: Any) -> str:
    """Return a name for files that is the same for equal data."""
    return json_sha256(plain)[:12]


def _shared(config: PipelineConfig) -> str:
    # What all rows of a sweep have in common.
    plain = config.model_dump(mode="json", exclude={"students"})
    plain["train"] = {key: plain["train"][key] for key in ("split", "device", "threads")}
    return json.dumps({**plain, "students": {"student": {}}})


@lru_cache(maxsize=1)
def _evaluator(shared: str, digest: str) -> RunEvaluator:
    config = PipelineConfig.model_validate_json(shared)
    torch.set_num_threads(config.train.threads)
    return RunEvaluator(config, open_split(config, config.evaluation.split), choose_device(config.train.device))


BASELINES = "baselines"


@dataclass(frozen=True)
class Job:
    """One row and seed."""

    row: SweepRow
    config: PipelineConfig  # with the row as its only student
    seed: int
    folder: Path  # of its run, which other rows may share
    grade: Path  # file of its result row

    @cached_property
    def config_json(self) -> str:
        return self.config.model_dump_json()


@dataclass(frozen=True)
class Plan:
    """All jobs of a sweep, row by row and seed by seed; `fingerprint` is the cache's, `digest` the evaluation's."""

    sweep: Sweep
    fingerprint: str
    digest: str
    jobs: list[Job]

    @property
    def runs(self) -> dict[Path, list[Job]]:
        """Jobs by the folder of the run that they share."""
        runs: dict[Path, list[Job]] = {}
        for job in self.jobs:
            runs.setdefault(job.folder, []).append(job)
        return runs

    @property
    def baselines(self) -> Path:
        """File of the rows that need no training."""
        return sweeps_folder(self.sweep.config) / BASELINES / f"{self.digest}.json"


def run_sweep(sweep: Sweep) -> SweepTable:
    """Train and evaluate what is missing, and write the tables.

    Raises UserError: no cache, a cache of other settings, no annotations, a damaged run, another sweep of this output.
    """
    plan = make_plan(sweep)
    with sole_writer(sweeps_folder(sweep.config), within="**/"):
        errors: dict[Path, str] = {}
        to_train = [
            job
            for job in (jobs[0] for jobs in plan.runs.values())
            if run_folder(job.config, job.row.name, job.seed, plan.fingerprint, job.folder).status() != "finished"
        ]
        if any(job.row.student.supervision == "labels" for job in to_train):
            check_annotations(sweep.config)
        if to_train or _grade_tasks(plan, errors):
            with open_pool(sweep.config.cache) as pool:
                training = [(job.config_json, job.seed, str(job.folder), plan.fingerprint) for job in to_train]
                _run(pool, [Task("training", of[2], train_task, of) for of in training], errors)
                _run(pool, _grade_tasks(plan, errors), errors)
        table = _gather(plan, errors, num_trained=sum(job.folder not in errors for job in to_train))
        table.write()
        return table


def _run(pool: Pool, tasks: list[Task], errors: dict[Path, str]) -> None:
    if not tasks:
        return
    with tqdm(total=len(tasks), desc=tasks[0].group, unit="run", disable=None) as bar:
        for outcome in pool.run(tasks):
            result = outcome.result or {"error": (outcome.error or "no reason given").strip().splitlines()[-1]}
            if "error" in result:
                errors[Path(outcome.task.name)] = result["error"]
            errors |= {Path(file): text for file, text in result.get("errors", {}).items()}
            if result.get("seconds"):
                *_, run, seed = Path(outcome.task.name).parts
                tqdm.write(f"{run} {seed}: trained in {result['seconds']:.1f} s")
            bar.update()


def make_plan(sweep: Sweep) -> Plan:
    """Return the runs that a sweep needs, with everything checked that can be before the first starts."""
    config = sweep.config
    if not has_labels(config.dataset):
        what = "a sweep compares students by average precision, and this data set has no annotations"
        fix = f"set dataset.annotations, or compare what {command('eval')} prints"
        raise UserError(what, where="dataset", fix=fix)
    split = open_training_split(config)
    open_split(config, config.evaluation.split)
    digest = grading_digest(config, split.fingerprint)
    return Plan(sweep, split.fingerprint, digest, list(_jobs(sweep, split.fingerprint, digest)))


def _jobs(sweep: Sweep, fingerprint: str, digest: str) -> Iterator[Job]:
    names: dict[str, Path] = {}
    runs = sweeps_folder(sweep.config) / "runs"
    for row in sweep.rows:
        config = sweep.config_of(row)
        for seed in config.train.seeds:
            settings = run_settings(config, row.name, seed, fingerprint)
            key = short_digest({name: value for name, value in settings.items() if name != "seed"})
            if key not in names:
                # The name is for readers: a run is found by its settings, whatever name it was trained under.
                names[key] = next(iter(sorted(runs.glob(f"*-{key}"))), runs / f"{row.name}-{key}")
            grade = short_digest([digest, row.student.model_dump(mode="json")])
            folder = names[key] / f"seed-{seed}"
            yield Job(row, config, seed, folder, folder / f"grade-{grade}.json")


def sweeps_folder(config: PipelineConfig) -> Path:
    """Return the folder in which all sweeps of a pipeline keep their runs and tables."""
    return Path(config.output) / "sweeps"


def _grade_tasks(plan: Plan, errors: dict[Path, str]) -> list[Task]:
    # The baselines come first, since they take longest.
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


def _gather(plan: Plan, errors: dict[Path, str], num_trained: int) -> SweepTable:
    baselines: list[ResultRow] = read_rows(plan.baselines) or []
    graded: dict[tuple[str, int], ResultRow] = {}
    failed: dict[tuple[str, int], str] = {}
    if plan.baselines in errors:
        failed[BASELINES, 0] = errors[plan.baselines]
    for job in plan.jobs:
        rows = read_rows(job.grade)
        if rows is None:
            failed[job.row.name, job.seed] = errors.get(job.grade) or errors.get(job.folder) or "not graded"
        else:
            # It may have been evaluated under another row's name.
            graded[job.row.name, job.seed] = replace(rows[0], name=job.row.name)
    sweep, runs = plan.sweep, {(job.row.name, job.seed): job.folder for job in plan.jobs}
    folder = sweeps_folder(sweep.config) / sweep.name
    splits = zero_shot_splits(sweep.config.model_copy(update={"students": {r.name: r.student for r in sweep.rows}}))
    return SweepTable(sweep, folder, plan.fingerprint, baselines, graded, failed, runs, num_trained, splits)
