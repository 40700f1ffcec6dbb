"""One run of a sweep on a worker: a student and seed, trained from the cache. Labels are read as in stage two only."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cache.dataset import CacheSplit
from hoi.config import PipelineConfig
from hoi.runs import RunFolder
from hoi.training import choose_device
from stages.train import open_source, run_settings, train_run


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
