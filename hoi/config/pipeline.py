"""The whole pipeline file."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag, ValidationInfo, field_validator

from hoi.config.datasets import DatasetConfig
from hoi.config.detectors import DetectorConfig, PairsConfig
from hoi.config.running import CacheConfig, EvaluationConfig, TrainConfig
from hoi.config.section import Section, StudentName, StudentSettings
from hoi.config.teachers import PassName, TeacherConfig, VlmConfig
from hoi.students.clhoi.settings import ClhoiConfig
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.multilevel.settings import MultiLevelConfig

__all__ = ["ClhoiConfig", "HoiclipConfig", "MultiLevelConfig", "StudentConfig", "StudentSettings", "method_of"]


def method_of(section: Any) -> str | None:
    """A student's section, plain or checked, to its method; `multilevel` where it says none."""
    if isinstance(section, dict):
        return section.get("method", "multilevel")
    return getattr(section, "method", None)


StudentConfig = Annotated[
    Union[
        Annotated[MultiLevelConfig, Tag("multilevel")],
        Annotated[HoiclipConfig, Tag("hoiclip")],
        Annotated[ClhoiConfig, Tag("clhoi")],
    ],
    Discriminator(method_of),
]


class PipelineConfig(Section):
    """The whole pipeline file."""

    name: str
    output: str
    """Folder of runs and results."""
    dataset: DatasetConfig
    detector: DetectorConfig
    pairs: PairsConfig = PairsConfig()
    teacher: TeacherConfig
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
