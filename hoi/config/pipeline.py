"""The whole pipeline file, and how caches are computed, students trained and results scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import SerializeAsAny, ValidationInfo, field_validator

from hoi.config.datasets import DatasetSettings
from hoi.config.detectors import DetectorSettings, PairsConfig
from hoi.config.section import (
    Count,
    Place,
    Rate,
    Section,
    Seeds,
    Share,
    Size,
    StudentName,
    StudentSettings,
    Temperature,
    Weight,
    looked_up,
)
from hoi.config.teachers import PassName, TeacherConfig, VlmConfig
from hoi.registry import DATASETS, DETECTORS, METHODS, TEACHERS


class CacheConfig(Section):
    """Where the cache is written and what computes it. Only `images_per_shard` and `threads` change the files."""

    folder: Place
    """Where the shards are written."""
    images_per_shard: Count = 64
    scheduler: str = "local"
    """`local` starts a dask LocalCluster, `synchronous` runs without dask, an address (`tcp://…`) joins a cluster."""
    workers: Size | None = None
    """Worker processes of `local`; null for one per GPU, or one per CPU core up to 8."""
    threads: Size = 1
    """CPU threads of a worker. They change the last bits of what is cached, so they enter the fingerprint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The workers' device; `auto` takes a GPU if there is one."""
    max_failed_share: Share = 0.01
    """Stage one fails if a larger share of the images is unreadable."""


class TrainConfig(Section):
    """How students are trained; the same for all. All [choice]: AdamW, a short warm-up, cosine decay to zero."""

    seeds: Seeds = [0, 1, 2]
    split: str = "train"
    max_images: Count | None = None
    """Most readable images to train on; null for all. They are the first of one shuffled order, the same for all seeds,
    so that a larger number keeps the smaller one's images."""
    epochs: Count = 20
    batch_images: Count = 32
    """Images per step, over all processes that train together."""
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 1e-4
    clip_gradient: Temperature = 1.0
    """Largest norm of the gradient."""
    checkpoint_every: Count = 5
    """Epochs between checkpoints. An interrupted run resumes from the last one; `supervision: labels` keeps the one
    with the best mean average precision on `evaluation.tune_split`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    resident: Literal["auto", "never", "always"] = "auto"
    """Whether the cached features are kept on the device, where batches are then made. `auto`: on a GPU, if they take
    at most half of its free memory. The batches are the same."""
    threads: Size = 1
    """CPU threads. Small matrices gain nothing from more, and the last bits of the weights depend on them."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """Precision of the layers; weights, similarities and losses stay in fp32. `auto`: bf16 on a GPU that has it."""
    tensorboard: bool = False
    """Whether metrics.jsonl is also written for TensorBoard (extra `tensorboard`)."""


class EvaluationConfig(Section):
    """What stage three evaluates, and its confidence intervals."""

    split: str = "test"
    tune_split: str = "validation"
    """Its labels tune the baselines `direct_clip_tuned` and `supervised`, in their favour, and nothing else."""
    bootstrap: Count = 1000
    """Paired resamples of the test images."""
    intervals: list[Literal["rare", "non_rare", "without_no_interaction", "one_pair", "several_pairs"]] = []
    """Means that get intervals beside `full`, for `hoi bench`; each takes as long as `full`."""
    zero_shot: list[str] = []
    """Zero-shot splits whose unseen and seen means are reported, beside those that students are trained in:
    `rare_first`, `non_rare_first`, `unseen_object`, `unseen_verb`, and of HICO-DET `uc0` to `uc4`
    (docs/zero-shot.md)."""
    save_predictions: bool = False
    """Whether the triplets of students with `supervision: teacher` are written as JSON lines that `hoi score` reads."""
    detector_trained_on: str | None = None
    """What the detector's weights were trained on, for the audit; null for what is known of published ones."""
    teacher_trained_on: str | None = None
    """The same of the teacher."""


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
    """Extra passes over the finished cache, by name."""
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
