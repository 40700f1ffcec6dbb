"""Methods of a finished evaluation to their triplets again, from the cache, as stage three scored them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.evaluation.baselines import (
    DetectorPrior,
    DirectClip,
    DirectSetting,
    direct_settings,
)
from hoi.evaluation.grading import (
    BATCH_IMAGES,
    PLAIN,
    STUDENT,
    TUNED,
    labels_of,
)
from hoi.evaluation.hico import match
from hoi.evaluation.ranking import Matches
from hoi.records import HoiLabels, Triplets
from hoi.scoring import Scorer, extra_of, score_split
from hoi.students.base import Student
from hoi.training.train import run_folder

PREFERRED = ("best", STUDENT)


@dataclass(frozen=True)
class Method:
    """A method and what it predicts on the whole split.

    Args:
        name: In the result table.
        triplets: All methods have the same ones, in the same order, with other scores.
    """

    name: str
    triplets: Triplets


@dataclass(frozen=True)
class Bench:
    """A finished evaluation, opened again.

    Args:
        config: That it was made with.
        split: The evaluated split.
        device: Where to compute.
        labels: Of the split; None without annotations.
        matches: Of the triplets with the labels; None without annotations.
        student, teacher: The two that stand side by side.
        others: Further methods for the curves, the detector alone and the bound.
        networks: The shown student by seed; the first is the one that is drawn.
        exponent: γ of its detection prior.
    """

    config: PipelineConfig
    split: CacheSplit
    device: torch.device
    labels: HoiLabels | None
    matches: Matches | None
    student: Method
    teacher: Method
    others: list[Method]
    networks: dict[int, Student]
    exponent: float

    @property
    def seed(self) -> int:
        """Of the student that is drawn."""
        return next(iter(self.networks))

    @property
    def columns(self) -> list[str]:
        """Methods of the tables by class."""
        return [self.teacher.name, self.student.name, *(m.name for m in self.others if m.name in self.config.students)]

    def score(self, scorer: Scorer, exponent: float, name: str) -> Triplets:
        """A scorer's triplets on the whole split, of the row that it calls `name`."""
        return _score(self.split, scorer, exponent, self.device)[name]

    @property
    def variants(self) -> list[str]:
        """Other ways in which the shown student can be scored."""
        return list(self.networks[self.seed].variants())

    def rescored(self, variant: str | None) -> list[Triplets]:
        """Return the shown student's triplets seed by seed, scored as one of `variants`, or None for as it is."""
        networks = (net if variant is None else net.variants()[variant] for net in self.networks.values())
        return [self.score(network, self.exponent, STUDENT) for network in networks]


def open_bench(
    config: PipelineConfig, summary: dict[str, Any], results: list[dict[str, Any]], device: torch.device
) -> Bench:
    """The cache and the runs that results were made with to the methods that the page shows.

    Args:
        config: That made the results.
        summary, results: Of stage three; no rows without annotations.
        device: Where to compute.

    Raises:
        UserError: the cache or a run is gone or another one.
    """
    split = CacheSplit.open(config.cache.folder, config.evaluation.split, summary["fingerprint"])
    knobs = {(row["name"], row["seed"]): row["knobs"] for row in results}
    name = shown_student(config)
    networks = {seed: _load(config, name, seed, split, device) for seed in config.train.seeds}
    first = config.train.seeds[0]
    exponent = knobs.get((name, first), {}).get("score_exponent", config.students[name].score_exponent)
    student = Method(name, _score(split, networks[first], exponent, device)[STUDENT])

    teacher = _teacher(config, split, knobs.get((TUNED, None)))
    teacher_exponent = knobs.get((TUNED, None), {}).get("score_exponent", 1.0)
    shown = Method(teacher.name, _score(split, teacher, teacher_exponent, device)[teacher.name])
    labels, matches, others = None, None, []
    if results:
        labels = labels_of(config, config.evaluation.split)
        matches = match(student.triplets, labels, len(split.vocabulary), protocol="official")
        prior = _score(split, DetectorPrior(split.vocabulary), 1.0, device)
        others = [Method(row, triplets) for row, triplets in prior.items()]
        for bound in [n for n, s in config.students.items() if s.supervision == "labels" and n != name][:1]:
            network = _load(config, bound, first, split, device)
            tuned = knobs[bound, first]["score_exponent"]
            others.append(Method(bound, _score(split, network, tuned, device)[STUDENT]))
    return Bench(config, split, device, labels, matches, student, shown, others, networks, exponent)


def shown_student(config: PipelineConfig) -> str:
    """The annotation-free student called `best`, else `student`, else the first of them, else any.

    Raises:
        UserError: there is none.
    """
    if not config.students:
        raise UserError("the results hold no student", where="students", fix="add one, then make train eval")
    free = [name for name, settings in config.students.items() if settings.supervision == "teacher"]
    return next((name for name in PREFERRED if name in free), (free or list(config.students))[0])


def _load(config: PipelineConfig, name: str, seed: int, split: CacheSplit, device: torch.device) -> Student:
    folder = run_folder(config, name, seed, split.fingerprint)
    return folder.load_student(split.text_bank, split.vocabulary, split.axes).to(device)


def _teacher(config: PipelineConfig, split: CacheSplit, knobs: dict[str, Any] | None) -> DirectClip:
    """Direct CLIP as its row says it was tuned; as it comes where there is no such row."""
    if knobs is None:
        return DirectClip(
            split.text_bank, split.vocabulary, direct_settings(split.text_bank, split.axes["M"])[0], PLAIN
        )
    margin = None if knobs["margin"] == "mean" else config.teacher.crop.margins.index(knobs["margin"])
    setting = DirectSetting(knobs["form"], knobs["temperature"], margin)
    return DirectClip(split.text_bank, split.vocabulary, setting, TUNED)


def _score(split: CacheSplit, scorer: Scorer, exponent: float, device: torch.device) -> dict[str, Triplets]:
    return score_split(scorer, split.batches(BATCH_IMAGES, extra=extra_of(scorer)), split.vocabulary, exponent, device)
