"""The whole pipeline file."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from hoi.config.datasets import DatasetConfig
from hoi.config.detectors import DetectorConfig, PairsConfig
from hoi.config.running import CacheConfig, EvaluationConfig, TrainConfig
from hoi.config.section import Section, StudentName
from hoi.config.student import StudentSettings
from hoi.config.students import StudentConfig
from hoi.config.teachers import TeacherConfig
from hoi.config.vllm import PassName, VllmConfig


class PipelineConfig(Section):
    """The whole pipeline file."""

    name: str
    output: str
    """Folder of runs and results."""
    dataset: DatasetConfig
    detector: DetectorConfig
    pairs: PairsConfig = PairsConfig()
    teacher: TeacherConfig
    vllms: dict[PassName, VllmConfig] = {}
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
            missing = sorted(student.vllm_names - info.data.get("vllms", {}).keys())
            if missing:
                raise ValueError(f"student '{name}' learns from {', '.join(missing)}, which `vllms` does not describe")
        return students
