"""The whole pipeline file."""

from __future__ import annotations

from hoi.config.datasets import DatasetConfig
from hoi.config.detectors import DetectorConfig, PairsConfig
from hoi.config.running import CacheConfig, EvaluationConfig, TrainConfig
from hoi.config.section import Section, StudentName
from hoi.config.students import StudentConfig
from hoi.config.teachers import TeacherConfig


class PipelineConfig(Section):
    """The whole pipeline file."""

    name: str
    output: str
    """Folder of runs and results."""
    dataset: DatasetConfig
    detector: DetectorConfig
    pairs: PairsConfig = PairsConfig()
    teacher: TeacherConfig
    cache: CacheConfig
    students: dict[StudentName, StudentConfig]
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
