"""Trained students and baselines to rows of the result table: the part of stage three that reads labels.

Labels grade the evaluated split and, on another split, tune `direct_clip_tuned` and the supervised bound in their
favour; nothing here changes an annotation-free student.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig, StudentSettings, VcocoDataset
from hoi.errors import UserError
from hoi.evaluation.baselines import (
    DetectorPrior,
    DirectClip,
    DirectClipLevels,
    GatedDirectClip,
    Tuner,
    direct_settings,
    direct_vlms,
    setting_knobs,
)
from hoi.evaluation.rows import Examiner, ResultRow
from hoi.evaluation.summaries import vcoco_examiner
from hoi.evaluation.zero_shot import drop_unseen, split_names
from hoi.files import file_sha256
from hoi.labels import (
    has_labels,
    label_files,
    load_labels,
    rare_mask,
)
from hoi.labels.vcoco import find_label_files, vcoco_truth
from hoi.matching import CEILING, LabelledPairs
from hoi.records import HoiLabels, PairBatch, Triplets
from hoi.registry import load_target
from hoi.scoring import Scorer, extra_of, score_split
from hoi.students.base import Student
from hoi.training.train import zero_shot_unseen

BATCH_IMAGES = 64
STUDENT, PLAIN, TUNED, GATED = "student", "direct_clip", "direct_clip_tuned", "direct_clip_gated"
GATE_EXPONENTS = (0.5, 0.25, 1.0)
"""Tried on validation for direct CLIP; the students' own is fixed in the pipeline file."""


@dataclass(frozen=True)
class Run:
    """One trained student, in evaluation mode on the evaluation's device.

    Args:
        name: In the result table.
        seed: Of its training.
        settings: What it was trained with, and how it is to be scored.
        student: The network.
    """

    name: str
    seed: int
    settings: StudentSettings
    student: Student


class Grader:
    """A split and its labels, for every method alike. Labels that only tune are read when they are first needed.

    Args:
        config: `dataset`, `evaluation` and `teacher.crop` are read.
        split: Its evaluated split.
        device: Where to compute.

    Raises:
        UserError: wrong annotations, or none.
    """

    def __init__(self, config: PipelineConfig, split: CacheSplit, device: torch.device) -> None:
        self.config, self.split, self.device = config, split, device
        self._zero_shot_tuners: dict[str, Tuner] = {}
        labels, rare = labels_of(config, config.evaluation.split), rare_mask(config.dataset, config.train.split)
        self._examiner = Examiner(
            labels,
            split.num_images,
            split.vocabulary,
            rare,
            config.evaluation.bootstrap,
            _further(config, split),
            config.evaluation.intervals,
        )

    @cached_property
    def tuner(self) -> Tuner:
        """The split whose labels tune; opened when first asked for."""
        return _open_tuner(self.config, self.device)

    def baselines(self) -> Iterator[ResultRow]:
        """What needs no training: the detector alone, each teacher asked directly, and CLIP tuned where labels are."""
        split, vocabulary, tune_split = self.split, self.split.vocabulary, self.config.evaluation.tune_split
        for name, triplets in self._score(DetectorPrior(vocabulary), 1.0).items():
            yield self._examiner.grade(name, None, triplets, {"score_exponent": 1.0})

        settings = direct_settings(split.text_bank, split.axes["M"])
        margins = self.config.teacher.crop.margins
        plain = DirectClipLevels(DirectClip(split.text_bank, vocabulary, settings[0], PLAIN))
        for name, triplets in self._score(plain, 1.0).items():
            yield self._examiner.grade(name, None, triplets, setting_knobs(settings[0], 1.0, margins))

        for scorer in direct_vlms(self.config.vlms):
            for name, triplets in self._score(scorer, 1.0).items():
                yield self._examiner.grade(name, None, triplets, {"vlm": scorer.vlm, "score_exponent": 1.0})

        if not has_labels(self.config.dataset, tune_split):
            return
        scorers = [DirectClip(split.text_bank, vocabulary, setting, TUNED) for setting in settings]
        bar = tqdm(scorers, desc="tuning direct CLIP", unit="setting", disable=None, leave=False)
        best = self.tuner.tune(bar, TUNED)
        chosen = self._score(scorers[best.choice], best.exponent)
        knobs = setting_knobs(settings[best.choice], best.exponent, margins)
        yield self._examiner.grade(TUNED, None, chosen[TUNED], {**knobs, **best.to_dict(tune_split)})

        # The gate weighs a pair's scores against its rivals', so it wants a temperature of its own.
        form, margin = settings[best.choice].form, settings[best.choice].margin
        alike = [scorer for scorer in scorers if (scorer.setting.form, scorer.setting.margin) == (form, margin)]
        gates = [GatedDirectClip(scorer, exponent, GATED) for scorer in alike for exponent in GATE_EXPONENTS]
        best_gate = self.tuner.tune(gates, GATED)
        gate = gates[best_gate.choice]
        chosen = self._score(gate, best_gate.exponent)
        knobs = setting_knobs(gate.crop.setting, best_gate.exponent, margins) | {"gate_exponent": gate.gate_exponent}
        # What form and margin were chosen among counts as well.
        tried = {**best_gate.to_dict(tune_split), "num_tried": best.num_tried + best_gate.num_tried}
        yield self._examiner.grade(GATED, None, chosen[GATED], {**knobs, **tried})

    def labels_on_detections(self) -> ResultRow:
        """What the labels themselves would give on the cached pairs: no score of these pairs does better."""
        scored = self._score(LabelledPairs(self._examiner.labels, self.split.vocabulary), 0.0)
        return self._examiner.grade(CEILING, None, scored[CEILING], {"score_exponent": 0.0})

    def run(self, run: Run, *, with_branches: bool = True) -> Iterator[ResultRow]:
        """A trained student's row, after those of its branches alone where it learned from the teacher.

        Args:
            run: The student.
            with_branches: Whether branches get rows.
        """
        exponent, knobs = run.settings.score_exponent, run.settings.model_dump(mode="json")
        by_labels = run.settings.supervision == "labels"
        if by_labels:
            best = self._tuner_of(run.settings.zero_shot).tune([run.student], STUDENT)
            exponent = best.exponent
            knobs |= best.to_dict(self.config.evaluation.tune_split)
        scored = self._score(run.student, exponent)
        branches = [part for part in scored if part != STUDENT] if with_branches and not by_labels else []
        for part in (*branches, STUDENT):
            row_knobs = {**knobs, "score_exponent": exponent}
            yield self._examiner.grade(row_name(run.name, part), run.seed, scored[part], row_knobs)

    def _tuner_of(self, zero_shot: str | None) -> Tuner:
        """The tuner; one that knows of no unseen interaction, for a student that was trained without them."""
        if zero_shot is None:
            return self.tuner
        if zero_shot not in self._zero_shot_tuners:
            hidden = zero_shot_unseen(self.config, zero_shot)
            self._zero_shot_tuners[zero_shot] = _open_tuner(self.config, self.device, hidden)
        return self._zero_shot_tuners[zero_shot]

    def _score(self, scorer: Scorer, exponent: float) -> dict[str, Triplets]:
        batches = self.split.batches(BATCH_IMAGES, extra=extra_of(scorer))
        return score_split(scorer, batches, self.split.vocabulary, exponent, self.device)


def row_name(student: str, part: str) -> str:
    """A student's name in the pipeline file and one of its parts to the name in the result table."""
    if student == STUDENT:
        return part
    return student if part == STUDENT else f"{student}/{part}"


def is_labelled(config: PipelineConfig) -> bool:
    """Whether the data set has annotations at all."""
    return has_labels(config.dataset)


def labels_of(config: PipelineConfig, split: str) -> HoiLabels:
    """The annotations of a split.

    Raises:
        UserError: there are none.
    """
    labels = load_labels(config.dataset, split)
    if not len(labels):
        raise UserError(
            f"split '{split}' has no annotated interaction",
            where="evaluation",
            expected="at least one, for average precision",
            fix="choose another evaluation.split or evaluation.tune_split, or set dataset.annotations: null",
        )
    return labels


def annotation_hashes(config: PipelineConfig) -> list[str]:
    """SHA-256 of every file that annotations are read from; the embedded world's come from its seed."""
    return [file_sha256(path) for path in label_files(config.dataset)]


def vcoco_evaluation(config: PipelineConfig, split: CacheSplit) -> Callable[[Triplets], dict[str, Any]] | None:
    """Return V-COCO's own evaluation; None without its label files."""
    dataset, name = config.dataset, config.evaluation.split
    if not isinstance(dataset, VcocoDataset) or find_label_files(dataset, name) is None:
        return None
    return vcoco_examiner(vcoco_truth(dataset, name), split.num_images, split.vocabulary)


def _further(config: PipelineConfig, split: CacheSplit) -> Callable[[Triplets], dict[str, Any]]:
    """Return the dataset's own evaluation; where there is none, one that adds nothing."""
    target = config.dataset.EVALUATION
    evaluation = None if target is None else load_target(target)(config, split)
    return evaluation or (lambda _: {})


def zero_shot_splits(config: PipelineConfig) -> dict[str, np.ndarray]:
    """The zero-shot splits that are reported, each with the ids of its unseen interactions."""
    return {name: zero_shot_unseen(config, name) for name in split_names(config)}


def _open_tuner(config: PipelineConfig, device: torch.device, hidden: np.ndarray | None = None) -> Tuner:
    name = config.evaluation.tune_split
    if name == config.evaluation.split:
        raise UserError(
            "tuning on the evaluated split would make its figures worthless",
            where="evaluation.tune_split",
            expected="another split",
            got=name,
        )
    split = open_split(config, name)

    def batches(extra: Sequence[str]) -> Iterator[PairBatch]:
        return split.batches(BATCH_IMAGES, extra=extra)

    labels = labels_of(config, name)
    if hidden is not None:
        labels, _ = drop_unseen(labels, hidden)
    return Tuner(batches, labels, split.vocabulary, device)
