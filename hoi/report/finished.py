"""A finished evaluation, opened again: its methods' triplets are scored from the cache as stage three scored them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.evaluation.baselines import PLAIN, TUNED, DetectorPrior, DirectClip, DirectSetting, direct_settings
from hoi.evaluation.evaluate import BATCH_IMAGES, STUDENT, labels_of
from hoi.evaluation.hico import match
from hoi.evaluation.ranking import Matches
from hoi.records import HoiLabels, Triplets
from hoi.scoring import Scorer, extra_of, score_split
from hoi.students.base import Student
from hoi.training.train import run_folder

PREFERRED = ("best", STUDENT)


@dataclass(frozen=True)
class Method:
    """A row of the result table and what it predicts on the whole split.

    All methods have the same triplets, in the same order, with other scores.
    """

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
        """Seed of the student that is drawn."""
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
    """Open the cache and the runs that results were made with.

    Args:
        config: That made the results.
        summary, results: Of stage three; no rows without annotations.
        device: Where to compute.

    Raises:
        UserError: the cache or a run is gone or another one.
    """
    split = CacheSplit.open(config.cache.folder, config.evaluation.split, summary["fingerprint"])
    made_by = {(row["name"], row["seed"]): row["knobs"] for row in results}
    name, first = shown_student(config), config.train.seeds[0]

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


def shown_student(config: PipelineConfig) -> str:
    """Return the annotation-free student called `best`, else `student`, else the first of them, else any.

    Raises:
        UserError: there is none.
    """
    if not config.students:
        fix = f"add one, then {command('train')} and {command('eval')}"
        raise UserError("the results hold no student", where="students", fix=fix)
    free = [name for name, settings in config.students.items() if settings.supervision == "teacher"]
    return next((name for name in PREFERRED if name in free), (free or list(config.students))[0])


def _teacher(config: PipelineConfig, split: CacheSplit, tuned: dict[str, Any] | None) -> DirectClip:
    # Direct CLIP as its row says that it was tuned; as it comes where there is no such row.
    if tuned is None:
        return DirectClip(
            split.text_bank, split.vocabulary, direct_settings(split.text_bank, split.axes["M"])[0], PLAIN
        )
    margin = None if tuned["margin"] == "mean" else config.teacher.crop.margins.index(tuned["margin"])
    setting = DirectSetting(tuned["form"], tuned["temperature"], margin)
    return DirectClip(split.text_bank, split.vocabulary, setting, TUNED)


def _score(split: CacheSplit, scorer: Scorer, exponent: float, device: torch.device) -> dict[str, Triplets]:
    return score_split(scorer, split.batches(BATCH_IMAGES, extra=extra_of(scorer)), split.vocabulary, exponent, device)
