"""What the names in a pipeline file stand for: datasets, detectors, teachers, methods, vision language models.

Each table maps the name in a pipeline file to a `module:attribute` that is imported when the name is first used. To add
one, write a module and add a line here; from another distribution, declare an entry point of the group `hoi.plugins`
that names a module which calls `register` (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from hoi.errors import UserError, nearest

T = TypeVar("T")
ENTRY_POINTS = "hoi.plugins"


def load_target(target: str) -> Any:
    """Import and return what `module:attribute` names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Generic[T]):
    """A table of names, each with the `module:attribute` that it stands for; `kind` is what messages call an entry."""

    def __init__(self, kind: str, targets: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets = dict(targets)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._targets)

    def register(self, name: str, target: str) -> None:
        """Add an entry, or raise a UserError if the name stands for something else already."""
        if self._targets.setdefault(name, target) != target:
            raise UserError(
                f"two {self.kind}s are called '{name}'", where=self._targets[name], got=target, fix="rename one of them"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name not in self._targets:
            load_plugins()
        return name in self._targets

    def __getitem__(self, name: str) -> T:
        """Import and return what a name stands for, or raise a UserError that gives the nearest names."""
        if name not in self:
            raise UserError(f"there is no {self.kind} '{name}'", expected=nearest(str(name), self._targets), got=name)
        return load_target(self._targets[name])


@lru_cache(maxsize=1)
def load_plugins() -> None:
    """Import what other distributions offer as `hoi.plugins`; done once, at the first unknown name."""
    for plugin in entry_points(group=ENTRY_POINTS):
        plugin.load()


# An entry is the settings class of the pipeline file, which says by what it is implemented.
DATASETS: Registry[Any] = Registry(
    "dataset",
    {
        "world": "hoi.config.datasets:WorldDataset",
        "folder": "hoi.config.datasets:FolderDataset",
        "hicodet": "hoi.config.datasets:HicodetDataset",
        "vcoco": "hoi.config.datasets:VcocoDataset",
    },
)
DETECTORS: Registry[Any] = Registry(
    "detector",
    {
        "world": "hoi.config.detectors:WorldDetectorConfig",
        "torchvision": "hoi.config.detectors:TorchvisionDetectorConfig",
        "detectron2": "hoi.config.detectors:Detectron2DetectorConfig",
        "precomputed": "hoi.config.detectors:PrecomputedDetectorConfig",
        "open_vocabulary": "hoi.config.detectors:OpenVocabularyDetectorConfig",
        "ground_truth": "hoi.config.detectors:GroundTruthDetectorConfig",
    },
)
TEACHERS: Registry[Any] = Registry("teacher", {"open_clip": "hoi.config.teachers:TeacherConfig"})
METHODS: Registry[Any] = Registry(
    "method",
    {
        "multilevel": "hoi.students.multilevel.settings:MultiLevelConfig",
        "hoiclip": "hoi.students.hoiclip.settings:HoiclipConfig",
        "clhoi": "hoi.students.clhoi.settings:ClhoiConfig",
    },
)

# An entry is the model itself: all backends share one section of settings, `hoi.config.VlmConfig`.
VLM_BACKENDS: Registry[Any] = Registry(
    "vlm backend",
    {"coca": "hoi.vlm.coca:CocaModel", "transformers": "hoi.vlm.transformers_model:TransformersModel"},
)

# An entry is a `hoi.evaluation.rows.Metric`, reported by the datasets that name it in `METRICS`.
METRICS: Registry[Any] = Registry("metric", {"vcoco": "hoi.evaluation.vcoco:VcocoRoles"})

# An entry is made for one pass over a split: `hoi.cache.schema.PassKind` says what it answers.
PASSES: Registry[Any] = Registry(
    "kind of pass",
    {
        "base": "hoi.cache.base_pass:BasePass",
        "vlm": "hoi.cache.vlm_pass:VlmPass",
    },
)
