"""The whole pipeline file."""

from __future__ import annotations

from typing import Annotated

from pydantic import SerializeAsAny, ValidationInfo, field_validator

from hoi.config.datasets import DatasetSettings
from hoi.config.detectors import DetectorSettings, PairsConfig
from hoi.config.running import CacheConfig, EvaluationConfig, TrainConfig
from hoi.config.section import Section, StudentName, StudentSettings, looked_up
from hoi.config.teachers import PassName, TeacherConfig, VlmConfig
from hoi.registry import DATASETS, DETECTORS, METHODS, TEACHERS

DatasetConfig = Annotated[SerializeAsAny[DatasetSettings], looked_up(DATASETS, "name")]
DetectorConfig = Annotated[SerializeAsAny[DetectorSettings], looked_up(DETECTORS, "name")]
StudentConfig = Annotated[SerializeAsAny[StudentSettings], looked_up(METHODS, "method", default="multilevel")]


class PipelineConfig(Section):
    """The whole pipeline file."""

    name: str
    output: str
    """Folder of runs and results."""
    dataset: DatasetConfig
    detector: DetectorConfig
    pairs: PairsConfig = PairsConfig()
    teacher: Annotated[SerializeAsAny[TeacherConfig], looked_up(TEACHERS, "kind", default="open_clip")]
    vlms: dict[PassName, VlmConfig] = {}
    """Further passes over the finished cache, by name."""
    cache: CacheConfig
    students: dict[StudentName, StudentConfig]
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("students")
    @classmethod
    def _teachers_are_described(
        cls, students: dict[str, StudentSettings], info: ValidationInfo
    ) -> dict[str, StudentSettings]:
        for name, student in students.items():
            missing = sorted(student.vlm_names - info.data.get("vlms", {}).keys())
            if missing:
                raise ValueError(f"student '{name}' learns from {', '.join(missing)}, which `vlms` does not describe")
        return students
