"""What a new project's run needs and takes: models that load and know the objects, images, pairs, bytes, minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from cache.estimate import ASSUMED_PAIRS
from cache.models import release, resolve_device
from hoi.config import PipelineConfig, TeacherConfig, TorchvisionDetectorConfig
from hoi.datasets import load_vocabulary
from hoi.datasets.findings import Finding, collect
from hoi.detectors import build_detector
from hoi.detectors.doctor import check_detector
from hoi.errors import UserError
from hoi.teachers import build_teacher
from hoi.teachers.doctor import check_teacher
from hoi.vocabulary import Vocabulary
from hoi.weights import RANDOM
from stages.cache_estimates import PlanReport, plan

CROPS_PER_PAIR = 1.4
"""Crops of a pair and its share of the boxes' own, in photographs of people. [choice]"""
TIMED_CROPS = 8


def check_models(config: PipelineConfig, vocabulary: Vocabulary, names: Sequence[str]) -> tuple[bool, list[Finding]]:
    """Whether detector and teacher load without downloading anything, and all that was found.

    Args:
        config: Of the project.
        vocabulary: Whose objects the detector has to know.
        names: Ids of all images.
    """
    found = collect(lambda: check_detector(config.detector, vocabulary, config.dataset, names, download=False))
    if any(finding.level == "warning" for finding in found):
        # Weights are not needed to see which classes they know.
        found += collect(partial(_check_classes, config, vocabulary))
    found += collect(lambda: check_teacher(config.teacher, download=False))
    return all(finding.level == "ok" for finding in found), found


def _check_classes(config: PipelineConfig, vocabulary: Vocabulary) -> Iterator[Finding]:
    if config.detector.name == "torchvision":
        build_detector(config.detector.model_copy(update={"weights": RANDOM}), vocabulary, "cpu", config.dataset)
        yield Finding("ok", f"detector {config.detector.model}: knows all {len(vocabulary.objects)} objects")


def costs(config: PipelineConfig, is_loaded: bool, num_timed: int) -> str:
    """What stages one and two will take, for people.

    Args:
        config: Of the project.
        is_loaded: Whether all models are here, so that a few images can go through them.
        num_timed: How many.
    """
    try:
        report = plan(config, num_timed if is_loaded else None)
        if not is_loaded:
            report = _with_seconds(config, report)
    except UserError as error:
        return f"costs: not known, {error.what}"
    finally:
        release()
    images = sum(split.num_images for split in report.splits)
    in_training = next((s.num_images for s in report.splits if s.split == config.train.split), 0)
    steps = config.train.epochs * -(-in_training // config.train.batch_images)
    return (
        f"stage one: {images} images, about {images * report.density.pairs:,.0f} pairs\n{report}\n"
        f"stage two: {steps} steps from the cache, a minute or a few"
    )


def _with_seconds(config: PipelineConfig, report: PlanReport) -> PlanReport:
    """A plan with the time of the same architectures at random weights, which are as fast as any others."""
    device = resolve_device(config.cache.device)
    seconds = _detector_seconds(config, device) + _teacher_seconds(config.teacher, device)
    source = f"{ASSUMED_PAIRS:g} pairs assumed; time measured here with random weights in place of those to come"
    density = replace(report.density, seconds=seconds, source=source)
    splits = tuple(replace(split, worker_seconds=split.num_missing_images * seconds) for split in report.splits)
    return replace(report, density=density, splits=splits)


def _detector_seconds(config: PipelineConfig, device: str) -> float:
    """Of one image; 0 for detectors that only look boxes up, and for those whose architecture is not here."""
    detector = config.detector
    if not isinstance(detector, TorchvisionDetectorConfig):
        return 0.0
    random = detector.model_copy(update={"weights": RANDOM})
    model = build_detector(random, load_vocabulary(config.dataset), device, config.dataset)
    image = np.full((480, 640, 3), 127, np.uint8)
    return _best_of(lambda: model.detect([image], ["timed"]))


def _teacher_seconds(teacher: TeacherConfig, device: str) -> float:
    model = build_teacher(teacher.model_copy(update={"pretrained": RANDOM}), device)
    side = model.crop_style.size_px
    crops = torch.zeros(TIMED_CROPS, 3, side, side, dtype=torch.uint8, device=device)
    each = _best_of(lambda: model.encode_crops(crops).cpu()) / TIMED_CROPS
    return each * (1 + CROPS_PER_PAIR * ASSUMED_PAIRS * len(teacher.crop.margins))


def _best_of(run: Callable[[], object], times: int = 2) -> float:
    """Seconds of the quicker call; the first pays for what is made once."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)
