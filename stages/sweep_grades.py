"""Finished runs of a sweep to their rows, on a worker; each row is kept in a file beside the weights it grades."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cache.atomic import write_json
from cache.fingerprint import digest_of
from cache.opened import pass_fingerprints
from hoi.config import PipelineConfig
from hoi.evaluation.kept_rows import to_plain
from hoi.training import choose_device
from stages.cached_split import open_split
from stages.grading import Grader, Run, annotation_hashes
from stages.sweep_runs import only_student, reason, run_of

GRADES_VERSION = 3
"""Of the files and of what their figures mean."""


def grade_task(
    rows: tuple[tuple[str, str], ...], seed: int, folder: str, fingerprint: str, digest: str
) -> dict[str, Any]:
    """Grades every way in which one run is scored.

    Args:
        rows: Config with one student, as JSON, and the file that its row goes to.
        seed, folder, fingerprint: As in `stages.sweep_runs.train_task`.
        digest: Of the grading, so that a worker that lives long reads changed labels anew.

    Returns:
        `errors`: file to reason, where there is any.
    """
    errors = {}
    for config_json, file in rows:
        try:
            config = PipelineConfig.model_validate_json(config_json)
            run, grader = run_of(config, seed, Path(folder), fingerprint), _grader(_shared(config), digest)
            split, name = grader.split, only_student(config)
            student = run.load_student(split.text_bank, split.vocabulary, split.axes).to(grader.device)
            (row,) = grader.run(Run(name, seed, run.student, student), with_branches=False)
            write_json(Path(file), to_plain(row))
        except Exception as error:
            errors[file] = reason(error)
    return {"errors": errors}


def baselines_task(config_json: str, file: str, digest: str) -> dict[str, Any]:
    """Grades what needs no training, as `grade_task` grades a run."""
    try:
        grader = _grader(_shared(PipelineConfig.model_validate_json(config_json)), digest)
        write_json(Path(file), [to_plain(row) for row in grader.baselines()])
    except Exception as error:
        return {"errors": {file: reason(error)}}
    return {"errors": {}}


def grading_digest(config: PipelineConfig, fingerprint: str) -> str:
    """Hash over all that decides the figures of a sweep besides its students: cache, annotations and settings.

    Raises:
        UserError: a pass of `vllms` is not there or not complete.
    """
    passes = pass_fingerprints(Path(config.cache.folder) / config.evaluation.split, config.vllms)
    decides = [GRADES_VERSION, fingerprint, annotation_hashes(config), _graded_by(config)]
    return short_digest([*decides, passes] if passes else decides)


def short_digest(plain: Any) -> str:
    """Plain data to a name for files that is the same for equal data."""
    return digest_of(plain)[:12]


def _graded_by(config: PipelineConfig) -> dict[str, Any]:
    plain = config.model_dump(mode="json")
    return {**{name: plain[name] for name in ("dataset", "evaluation", "teacher")}, "train_split": config.train.split}


def _shared(config: PipelineConfig) -> str:
    """What all rows of a sweep have in common, as a key."""
    plain = config.model_dump(mode="json", exclude={"students"})
    plain["train"] = {key: plain["train"][key] for key in ("split", "device", "threads")}
    return json.dumps({**plain, "students": {"student": {}}})


@lru_cache(maxsize=1)
def _grader(shared: str, digest: str) -> Grader:
    config = PipelineConfig.model_validate_json(shared)
    torch.set_num_threads(config.train.threads)
    return Grader(config, open_split(config, config.evaluation.split), choose_device(config.train.device))
