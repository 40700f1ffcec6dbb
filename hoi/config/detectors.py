"""The sections `detector` and `pairs`: who finds people and objects, and which of them pair up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hoi.config.section import Section, Share, Size
from hoi.registry import load_target

MAX_PAIRS = 100_000
"""Of one image."""
COCO_2017 = "COCO train2017: boxes and classes"


class DetectorSettings(Section):
    """Which detections are stored. The pair policy is applied after, so it can be studied without detecting again.

    A new detector derives from this class and is named in `hoi.registry.DETECTORS`.
    """

    IMPLEMENTATION: ClassVar[str]
    """`module:attribute` of a `hoi.detectors.Detector`, called with these settings, the vocabulary, a device and the
    dataset's settings."""
    is_looked_up: ClassVar[bool] = False
    """Whether boxes come from a file of known images, so that no other image can be looked at."""
    needs_annotations: ClassVar[bool] = False
    """Whether the boxes are annotated ones of the dataset."""

    min_score: Share = 0.05
    max_detections: Size = 100
    nms_iou: Share = 0.5
    """Class-wise non-maximum suppression."""
    name: str

    @property
    def weights_name(self) -> str:
        """What the audit calls the weights."""
        return str(getattr(self, "weights", "none"))

    def trained_on(self) -> str | None:
        """Return what the weights were trained on, in words for the audit; None where that is not known."""
        return "nothing: random weights" if self.weights_name == "random" else None

    def with_random_weights(self) -> DetectorSettings | None:
        """Return the same architecture without weights; None where that says nothing of its classes or its speed."""
        return None

    def absent_weights(self) -> tuple[str, str] | None:
        """Return URL and folder of published weights that would have to be downloaded; None if there are none."""
        return None


class WorldDetectorConfig(DetectorSettings):
    """The embedded world's small detector."""

    IMPLEMENTATION = "hoi.detectors.world:WorldDetector"

    name: Literal["world"]
    weights: str = "hoi/world/weights/detector.safetensors"

    def trained_on(self) -> str | None:
        if Path(self.weights).as_posix().endswith("hoi/world/weights/detector.safetensors"):
            return "scenes of the world's split `detector`: boxes and classes"
        return super().trained_on()


class TorchvisionDetectorConfig(DetectorSettings):
    """A torchvision COCO detector."""

    IMPLEMENTATION = "hoi.detectors.torchvision:TorchvisionDetector"

    name: Literal["torchvision"]
    model: str = "fasterrcnn_resnet50_fpn_v2"
    weights: str = "DEFAULT"
    """torchvision's weight name, a file (.safetensors, or .pth read with weights_only), or `random` for plumbing."""

    def trained_on(self) -> str | None:
        return COCO_2017 if self.weights.startswith(("DEFAULT", "COCO")) else super().trained_on()

    def with_random_weights(self) -> DetectorSettings | None:
        return self.model_copy(update={"weights": "random"})

    def absent_weights(self) -> tuple[str, str] | None:
        return load_target("hoi.detectors.torchvision:find_absent_weights")(self)


class Detectron2DetectorConfig(DetectorSettings):
    """A detectron2 model: any YAML config with weights of its own. detectron2 is not installed by this product."""

    IMPLEMENTATION = "hoi.detectors.detectron2:Detectron2Detector"

    name: Literal["detectron2"]
    config_file: str
    """detectron2's YAML config; what its `_BASE_` names is read, too."""
    weights: str
    """A file (.safetensors, .pth read with weights_only, or .pkl of the model zoo, see below), or `random` for
    plumbing. `MODEL.WEIGHTS` of the config is not read."""
    trust_pickle: bool = False
    """Whether a .pkl file may be read. Unpickling runs whatever code the file's author put there."""
    classes: list[str] | None = None
    """Names of the model's classes in its order; null for those of the config's test dataset."""

    def trained_on(self) -> str | None:
        if self.weights != "random" and "COCO-" in self.config_file:
            return f"{COCO_2017}, if the weights are the model zoo's for this config"
        return super().trained_on()


class PrecomputedDetectorConfig(DetectorSettings):
    """Detections out of a COCO result file, joined by image id or file name."""

    IMPLEMENTATION = "hoi.detectors.looked_up:PrecomputedDetector"
    is_looked_up = True

    name: Literal["precomputed"]
    results: str
    """JSON list of `{image_id, category_id, bbox: [x, y, w, h], score}`."""
    instances: str
    """COCO instances JSON that gives the images' file names and the categories' names."""

    @property
    def weights_name(self) -> str:
        return self.results


class OpenVocabularyDetectorConfig(DetectorSettings):
    """OWLv2 or Grounding DINO through transformers (extra `open-vocabulary`): any word can be an object."""

    IMPLEMENTATION = "hoi.detectors.open_vocabulary:OpenVocabularyDetector"

    name: Literal["open_vocabulary"]
    model: Annotated[str, Field(pattern=r"^(hf-hub|local-dir):.+")]
    """`hf-hub:owner/name` or `local-dir:folder`, with safetensors weights."""
    min_score: Share = 0.1
    """Such detectors score lower than those of fixed classes."""


class GroundTruthDetectorConfig(DetectorSettings):
    """Annotated boxes (not pairs) at score 1, with optional jitter: an upper bound, and for tests."""

    IMPLEMENTATION = "hoi.detectors.looked_up:GroundTruthDetector"
    is_looked_up = True
    needs_annotations = True

    name: Literal["ground_truth"]
    jitter: Share = 0.0
    """Standard deviation of the corner noise, as a share of the box's sides."""

    def trained_on(self) -> str | None:
        return "nothing: boxes and classes of the evaluated images themselves"


class PairsConfig(Section):
    """Which detections pair up: every kept human with every other kept detection, itself excepted."""

    min_score: Share = 0.2
    max_humans: Size = 15
    max_objects: Size = 15

    @model_validator(mode="after")
    def _bounded(self) -> PairsConfig:
        if self.max_humans * (self.max_humans + self.max_objects) > MAX_PAIRS:
            raise ValueError(f"max_humans x (max_humans + max_objects) is above {MAX_PAIRS} pairs of one image")
        return self
