"""Stage two: train every student and seed of the pipeline file, from the cache alone.

No image, detector or teacher is opened. Labels are read for `supervision: labels` only; that code alone imports them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hoi.cache.read.opened import pass_fingerprints
from hoi.cache.read.split import CacheSplit, FirstImages, open_split, training_source
from hoi.config import PipelineConfig, StudentSettings, TrainConfig
from hoi.errors import UserError, nearest
from hoi.files import sole_writer
from hoi.machine import choose_device, choose_precision
from hoi.matching import LabelTargets, label_targets
from hoi.provenance import commit, library_versions
from hoi.records import HoiLabels
from hoi.scoring import score_split
from hoi.students.base import Student, build_student
from hoi.training.distributed import ALONE, Group, join
from hoi.training.loop import BatchSource, fit
from hoi.training.runs import RunFolder, check_tensorboard

LIBRARIES = ("torch", "numpy", "safetensors", "h5py")
PREFERRED = ("best", "student")
"""Students that are shown and exported, if they are there and learn from no label."""
BATCH_IMAGES = 64
"""Images scored at once when `supervision: labels` chooses among its checkpoints."""


@dataclass(frozen=True)
class TrainedRun:
    """One student and seed; `seconds` is None if it was finished before."""

    name: str
    seed: int
    folder: Path
    seconds: float | None


@dataclass(frozen=True)
class TrainReport:
    """All students and seeds of the pipeline file, trained."""

    runs: list[TrainedRun]

    def __str__(self) -> str:
        spent = [run.seconds for run in self.runs if run.seconds is not None]
        return f"{len(self.runs)} students trained, {len(spent)} of them now in {sum(spent):.1f} s"


def train_students(config: PipelineConfig) -> TrainReport:
    """Train what is not trained yet; a run of other settings in the way is refused before anything starts.

    Raises UserError: no cache, a cache or a run of other settings, a split without pairs, wrong annotations.
    """
    torch.set_num_threads(config.train.threads)
    if config.train.tensorboard:
        check_tensorboard()
    device = choose_device(config.train.device)
    choose_precision(config.train.precision, device)
    with join(device) as group:
        split = open_training_split(config)
        jobs = [
            (name, seed, run_folder(config, name, seed, split.fingerprint))
            for name in config.students
            for seed in config.train.seeds
        ]
        status = group.ask_first(lambda: {folder.path: folder.status() for _, _, folder in jobs})
        if any(config.students[name].supervision == "labels" for name, _, _ in jobs):
            check_annotations(config)
        source = open_source(config, split, device, group)
        runs = []
        for name, seed, folder in jobs:
            is_finished = status[folder.path] == "finished"
            seconds = None if is_finished else train_run(config, name, seed, split, source, folder, device, group=group)
            runs.append(TrainedRun(name, seed, folder.path, seconds))
            if group.is_first:
                done = "finished before" if seconds is None else f"trained in {seconds:.1f} s"
                print(f"{name} seed {seed}: {done} · {folder.path}", flush=True)
        return TrainReport(runs)


def choose_student(config: PipelineConfig, name: str | None = None) -> str:
    """Return the student that is shown and exported: the named one, or of those without labels the preferred one.

    No figure chooses: those of the evaluated split are for grading.
    """
    if name is None and config.students:
        free = [name for name, settings in config.students.items() if settings.supervision == "teacher"]
        return next((name for name in PREFERRED if name in free), (free or list(config.students))[0])
    if name is None or name not in config.students:
        raise UserError(
            "the pipeline file has no such student" if name else "the pipeline file has no student",
            where="--student" if name else "students",
            expected=nearest(name, config.students) if name else "at least one",
            got=name,
        )
    return name


def open_training_split(config: PipelineConfig) -> CacheSplit:
    """Open the cache of the split that students are trained on; a UserError if it has no pair."""
    split = open_split(config, config.train.split, same_images=False)
    if split.num_pairs == 0:
        raise UserError(
            "no image of the training split has a pair, so there is nothing to learn",
            where=split.folder,
            expected="people and objects in at least some images",
            fix="lower pairs.min_score, or check the images and the detector",
        )
    return split


def open_source(config: PipelineConfig, split: CacheSplit, device: torch.device, group: Group = ALONE) -> BatchSource:
    """Return the split or its first images, in memory or on the device."""
    source = training_source(split, device, config.train.resident)
    is_whole = config.train.max_images is None and group.size == 1
    return source if is_whole else FirstImages(source, config.train.max_images, group.own)


def training_of(config: PipelineConfig, settings: StudentSettings, split: CacheSplit) -> TrainConfig:
    """Return the training section with the student's learning rate, epochs and share of the images."""
    train = config.train
    changes: dict[str, Any] = {key: getattr(settings, key) for key in ("learning_rate", "epochs")}
    if settings.label_fraction is not None:
        num_images = min(train.max_images or split.num_images, int(split.is_readable.sum()))
        changes["max_images"] = max(1, round(settings.label_fraction * num_images))
    return train.model_copy(update={key: value for key, value in changes.items() if value is not None})


def run_folder(config: PipelineConfig, name: str, seed: int, fingerprint: str, path: Path | None = None) -> RunFolder:
    """Return the folder in which a student is trained on the cache of this fingerprint; None for the pipeline's own."""
    path = path or Path(config.output) / "runs" / name / f"seed-{seed}"
    return RunFolder(path, config.students[name], run_settings(config, name, seed, fingerprint))


def run_settings(config: PipelineConfig, name: str, seed: int, fingerprint: str) -> dict[str, Any]:
    """Return all that decides the weights of a student and seed, as plain data; equal settings are the same run."""
    student = config.students[name]
    by_labels = student.supervision == "labels"
    # Labels choose among checkpoints by the final score, so there scoring and checkpoints decide the weights as well.
    elsewhere = {"seeds", "device", "resident", "tensorboard"} | (set() if by_labels else {"checkpoint_every"})
    if config.train.precision == "auto":
        # The precision then depends on the device, which is not part of a run either.
        elsewhere |= {"precision"}
    passes = pass_fingerprints(Path(config.cache.folder) / config.train.split, student.vlm_names)
    return {
        "student": student.model_dump(mode="json") if by_labels else student.training_settings(),
        "train": config.train.model_dump(mode="json", exclude=elsewhere),
        "seed": seed,
        "cache": fingerprint,
        **({"passes": passes} if passes else {}),
        **({"tune_split": config.evaluation.tune_split} if by_labels else {}),
    }


def train_run(
    config: PipelineConfig,
    name: str,
    seed: int,
    split: CacheSplit,
    source: BatchSource,
    folder: RunFolder,
    device: torch.device,
    *,
    with_bar: bool = True,
    group: Group = ALONE,
) -> float | None:
    """Train one student and seed into its folder, going on from its last checkpoint.

    Return the seconds it took; None if another process finished it meanwhile.

    Raises UserError: as `train_students`, or another process trains it now.
    """
    lock = sole_writer(folder.path, "another process is training this student")
    with lock if group.is_first else nullcontext():
        status = group.ask_first(folder.status)
        if status == "finished":
            return None
        start = time.monotonic()
        settings = config.students[name]
        labels, quality, hidden = None, None, None
        if settings.supervision == "labels":
            labels, quality, hidden = _supervision(config, settings, split, device)
        train = training_of(config, settings, split)
        if train.max_images != config.train.max_images:
            source = open_source(config.model_copy(update={"train": train}), split, device, group)
        student = build_student(settings, split.text_bank, split.vocabulary, split.axes, seed)
        if status == "new":
            # Every process looks at all images; `source` may be its share of the batches only.
            everything = FirstImages(split, train.max_images).batches(BATCH_IMAGES, extra=student.extra_fields)
            student.prepare(everything, labels)
        student, progress = fit(
            student,
            source,
            train,
            seed=seed,
            device=device,
            labels=labels,
            quality=quality,
            run=folder,
            title=f"{name} seed {seed}" if with_bar else "",
            group=group,
        )
        seconds = time.monotonic() - start
        if not group.is_first:
            return seconds
        folder.finish(
            student,
            {
                "name": name,
                "seconds": round(seconds, 2),
                "chosen_epoch": progress.best_epoch or progress.epoch,
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "precision": choose_precision(config.train.precision, device),
                "num_processes": group.size,
                **({} if hidden is None else {"zero_shot": hidden}),
                "versions": library_versions(LIBRARIES),
                "commit": commit(),
                "fingerprint": split.fingerprint,
                "config": config.model_dump(mode="json"),
            },
        )
        return seconds


def _supervision(
    config: PipelineConfig, settings: StudentSettings, split: CacheSplit, device: torch.device
) -> tuple[LabelTargets, Callable[[Student], float], dict[str, Any] | None]:
    """Return the training split's labels, a student's mean AP on the tuning split, and what a zero-shot split hides."""
    from hoi.evaluation.hico import evaluate
    from hoi.labels.zero_shot import hide

    vocabulary = split.vocabulary
    # Labels join images by row, so these splits must hold the data set's own images in its own order.
    open_split(config, config.train.split)
    tune_split = open_split(config, config.evaluation.tune_split)
    labels, tune_labels = check_annotations(config)
    unseen_ids, hidden = None, None
    if settings.zero_shot is not None:
        unseen_ids = zero_shot_unseen(config, settings.zero_shot)
        (labels, tune_labels), hidden = hide(settings.zero_shot, unseen_ids, (labels, tune_labels))

    def quality(student: Student) -> float:
        batches = tune_split.batches(BATCH_IMAGES, extra=student.extra_fields)
        triplets = score_split(student, batches, vocabulary, settings.score_exponent, device)["student"]
        nothing = np.zeros(len(vocabulary), bool)
        full = evaluate(triplets, tune_labels, len(vocabulary), nothing, nothing, protocol="official").full
        return 0.0 if full is None else full

    targets = label_targets(split.batches(BATCH_IMAGES), labels, vocabulary, split.num_images, unseen_ids)
    return targets, quality, hidden


def zero_shot_unseen(config: PipelineConfig, name: str) -> np.ndarray:
    """Return the ids that a zero-shot split hides, int64; splits by rarity read the training labels."""
    from hoi.datasets import load_vocabulary
    from hoi.labels import load_labels
    from hoi.labels.zero_shot import unseen_ids

    vocabulary = load_vocabulary(config.dataset)
    return unseen_ids(
        config.dataset, vocabulary, name, lambda: load_labels(config.dataset, config.train.split).interaction
    )


def check_annotations(config: PipelineConfig) -> tuple[HoiLabels, HoiLabels]:
    """Return the labels of the training and the tuning split; a UserError if one has none, or they overlap."""
    from hoi.labels import load_labels
    from hoi.labels.zero_shot import check_zero_shot

    check_zero_shot(config)
    if config.evaluation.tune_split in (config.train.split, config.evaluation.split):
        raise UserError(
            "checkpoints would be chosen on a split that trains or evaluates",
            where="evaluation.tune_split",
            expected="a split of its own",
            got=config.evaluation.tune_split,
            fix="set evaluation.tune_split, or take the students with supervision: labels out",
        )
    labels = {name: load_labels(config.dataset, name) for name in (config.train.split, config.evaluation.tune_split)}
    for name, of_split in labels.items():
        if not len(of_split):
            raise UserError(
                f"split '{name}' has no annotated interaction",
                where="supervision: labels",
                fix="annotate some of its images, or choose another split",
            )
    return labels[config.train.split], labels[config.evaluation.tune_split]
