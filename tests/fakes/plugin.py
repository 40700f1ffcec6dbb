"""Somebody else's distribution: a dataset, detector, teacher, vlm backend, method and metric, each a class or two.

docs/extending.md shows these classes; tests/test_extending.py registers and runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hoi.config import DatasetSettings, DetectorSettings, StudentSettings, TeacherConfig, VlmConfig
from hoi.crops import CropStyle
from hoi.datasets import Dataset
from hoi.labels import LabelReader
from hoi.matching import LabelTargets
from hoi.records import BranchScores, Detections, HoiLabels, PairBatch, TextBank, Triplets
from hoi.registry import DATASETS, DETECTORS, METHODS, METRICS, TEACHERS, VLM_BACKENDS
from hoi.students.base import StepLosses, Student
from hoi.teachers import WholeImages
from hoi.vlm import Likelihoods
from hoi.vocabulary import Vocabulary


# --8<-- [start:register]
def register() -> None:
    """Add one of each; a distribution does so when the module of its entry point is imported."""
    DATASETS.register("noise", f"{__name__}:NoiseDataset")
    DETECTORS.register("halves", f"{__name__}:HalvesConfig")
    TEACHERS.register("colour", f"{__name__}:ColourConfig")
    VLM_BACKENDS.register("parrot", f"{__name__}:Parrot")
    METHODS.register("linear", f"{__name__}:LinearConfig")
    METRICS.register("count", f"{__name__}:TripletCount")


# --8<-- [end:register]


# --8<-- [start:dataset]
class NoiseDataset(DatasetSettings):
    """Images of noise, on which somebody always rides the bicycle."""

    IMPLEMENTATION = f"{__name__}:Noise"
    LABELS = f"{__name__}:NoiseLabels"
    METRICS = ("count",)

    name: Literal["noise"]
    splits: dict[str, int]


class Noise(Dataset[NoiseDataset]):
    def images(self, split: str) -> NoiseImages:
        return NoiseImages(split, self.settings.splits[split])

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(("person", "bicycle"), ("ride", "push"), (("ride", "bicycle"), ("push", "bicycle")))


class NoiseImages:
    def __init__(self, split: str, number: int) -> None:
        self.image_ids = [f"{split}-{row}" for row in range(number)]

    def read(self, row: int) -> np.ndarray:
        return np.random.default_rng(row).integers(0, 256, (24, 32, 3), np.uint8)


class NoiseLabels(LabelReader[NoiseDataset]):
    def load(self, split: str) -> HoiLabels:
        image = np.arange(self.settings.splits[split])
        left, right = (np.tile(np.array(box, np.float32), (len(image), 1)) for box in (LEFT, RIGHT))
        return HoiLabels(image, left, right, np.zeros(len(image), np.int64))

    def exist(self, split: str) -> bool:
        return True

    def files(self) -> list[Path]:
        return []


LEFT, RIGHT = (0.0, 0.0, 16.0, 24.0), (16.0, 0.0, 32.0, 24.0)
# --8<-- [end:dataset]


# --8<-- [start:detector]
class HalvesConfig(DetectorSettings):
    """A person in the left half, a bicycle in the right one."""

    IMPLEMENTATION = f"{__name__}:HalvesDetector"

    name: Literal["halves"]


class HalvesDetector:
    def __init__(self, config: HalvesConfig, vocabulary: Vocabulary, device: str, dataset: DatasetSettings) -> None:
        self._labels = np.array([vocabulary.objects.index(name) for name in ("person", "bicycle")])

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        boxes, scores = np.array([LEFT, RIGHT], np.float32), np.array([0.9, 0.8], np.float32)
        return [Detections(boxes, scores, self._labels) for _ in images]

    def provenance(self) -> dict[str, Any]:
        return {"name": "halves"}


# --8<-- [end:detector]


# --8<-- [start:teacher]
class ColourConfig(TeacherConfig):
    """Embeds an image as its mean colour, and the interactions as red, green and blue in turn."""

    IMPLEMENTATION = f"{__name__}:ColourTeacher"
    TEXT_SIDE = f"{__name__}:ColourTexts"
    SIZES = f"{__name__}:colour_sizes"

    kind: Literal["colour"]
    model: str = "mean"


def colour_sizes(config: ColourConfig) -> dict[str, int]:
    return {"D": 3, "L": 0}


class ColourTexts:
    width = 3

    def encode(self, texts: Sequence[str]) -> Tensor:
        return functional.one_hot(torch.arange(len(texts)) % 3, 3).float()

    def __init__(self, config: ColourConfig, device: str) -> None:
        pass

    def provenance(self) -> dict[str, Any]:
        return {"name": "colour"}


class ColourTeacher:
    crop_style = CropStyle(8, (127, 127, 127), "bilinear", "squash")
    image_size_px = 16
    levels = ("map",)

    def __init__(self, config: ColourConfig, device: str) -> None:
        self._texts = ColourTexts(config, device)

    def text_bank(self, vocabulary: Vocabulary) -> TextBank:
        texts = [f"{verb} {name}" for verb, name in vocabulary.interactions]
        return TextBank(self._texts.encode(texts).numpy(), 10.0, None, tuple((text,) for text in texts))

    def encode_crops(self, crops: Tensor) -> Tensor:
        return functional.normalize(crops.float().mean((2, 3)) + 1, dim=-1)

    def encode_images(self, images: Tensor) -> WholeImages:
        return WholeImages(self.encode_crops(images), (images.float(),))

    def encode_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        raise NotImplementedError

    def provenance(self) -> dict[str, Any]:
        return {
            "name": "colour",
            "crop_size_px": 8,
            "fill_rgb": [127, 127, 127],
            "interpolation": "bilinear",
            "resize_mode": "squash",
        }


# --8<-- [end:teacher]


# --8<-- [start:vlm]
class Parrot:
    """Finds a text the likelier the shorter it is, whatever the image."""

    def __init__(self, config: VlmConfig, device: str) -> None:
        pass

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        return ["a person riding a bicycle." for _ in images]

    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        lengths = [np.array([len(text) for text in texts]) for texts in candidates]
        return [Likelihoods(-each.astype(np.float32), each.astype(np.int32)) for each in lengths]

    def yes_probabilities(self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [np.full(len(each), 0.5, np.float32) for each in questions]

    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        return self.captions(images)

    def provenance(self) -> dict[str, Any]:
        return {"name": "parrot"}


# --8<-- [end:vlm]


# --8<-- [start:student]
class LinearConfig(StudentSettings):
    """One linear layer on the union's features."""

    IMPLEMENTATION = f"{__name__}:LinearStudent"

    method: Literal["linear"]


class LinearStudent(Student):
    def __init__(self, config: LinearConfig, bank: TextBank, vocabulary: Vocabulary, axes: dict[str, int]) -> None:
        super().__init__(config, vocabulary)
        self.layer = torch.nn.Linear(bank.text_embedding.shape[1], len(vocabulary))
        self.scale = bank.logit_scale

    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        target = (self.scale * batch.union_similarity[:, 0].float()).softmax(-1)
        logits = self.layer(batch.union_feature[:, 0].float())
        agreement = logits.argmax(-1) == target.argmax(-1)
        return StepLosses({"pairs": functional.cross_entropy(logits, target)}, {"pairs": agreement})

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        return {"student": self.layer(batch.union_feature[:, 0].float()).softmax(-1)}


# --8<-- [end:student]


# --8<-- [start:metric]
class TripletCount:
    """How many triplets a method predicts."""

    @classmethod
    def open(cls, config: Any, split: Any) -> TripletCount:
        return cls()

    def figures(self, triplets: Triplets) -> dict[str, Any]:
        return {"triplets": len(triplets)}

    @staticmethod
    def summary(rows: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"name": row.name, **row.extra["count"]} for row in rows]

    @staticmethod
    def table(summary: Sequence[dict[str, Any]]) -> str:
        return "\n".join(f"{each['name']}: {each['triplets']} triplets" for each in summary)


# --8<-- [end:metric]
