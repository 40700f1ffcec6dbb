"""Students by the name of their method."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hoi.config import StudentSettings
from hoi.records import TextBank
from hoi.registry import load_target
from hoi.students.base import StepLosses, Student
from hoi.vocabulary import Vocabulary

__all__ = ["StepLosses", "Student", "build_student"]


def build_student(
    config: StudentSettings, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int], seed: int = 0
) -> Student:
    """Settings and the teacher's texts to an untrained student on the CPU.

    Args:
        config: Its `method` names the class.
        bank: The teacher's texts of the vocabulary's interactions.
        vocabulary: Which interactions an object admits.
        axes: Sizes of the cache's letters (`CacheSplit.axes`).
        seed: Of the initial weights; torch's own random state is left as it was.

    Raises:
        UserError: the settings ask for what the teacher does not have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student: Student = load_target(config.IMPLEMENTATION)(config, bank, vocabulary, axes)
        return student
