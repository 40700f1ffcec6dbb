"""The pipeline file as types: strict, and every default lives here and nowhere else.

An unknown, missing, duplicate or mistyped key is an error that names it and the nearest right one. Sections that stage
one reads (`dataset`, `detector`, `pairs`, `teacher`) change what a cache holds and enter its fingerprint; the others do
not. Relative paths resolve against the working directory, and `${NAME}` in a text is the environment's value.
"""

from hoi.config.datasets import DatasetSettings, FolderDataset, HicodetDataset, HicodetFiles, VcocoDataset, WorldDataset
from hoi.config.detectors import (
    DetectorSettings,
    Detectron2DetectorConfig,
    GroundTruthDetectorConfig,
    OpenVocabularyDetectorConfig,
    PairsConfig,
    PrecomputedDetectorConfig,
    TorchvisionDetectorConfig,
    WorldDetectorConfig,
)
from hoi.config.loading import load_config, parse_config, parse_section, parse_student
from hoi.config.pipeline import CacheConfig, EvaluationConfig, PipelineConfig, TrainConfig
from hoi.config.section import Count, FolderName, Section, Seeds, Share, StudentName, StudentSettings
from hoi.config.teachers import CropConfig, PassName, TeacherConfig, VlmConfig
