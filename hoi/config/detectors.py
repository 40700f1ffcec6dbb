"""Which detector finds people and objects, and which of them pair up."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field

from hoi.config.section import Count, Section, Share


class DetectorCommon(Section):
    """Which detections are stored. The pair policy is applied after, so it can be studied without detecting again."""

    min_score: Share = 0.05
    max_detections: Count = 100
    nms_iou: Share = 0.5
    """Class-wise non-maximum suppression."""


class WorldDetectorConfig(DetectorCommon):
    """The embedded world's small detector."""

    name: Literal["world"]
    weights: str = "hoi/world/weights/detector.safetensors"


class TorchvisionDetectorConfig(DetectorCommon):
    """A torchvision COCO detector."""

    name: Literal["torchvision"]
    model: str = "fasterrcnn_resnet50_fpn_v2"
    weights: str = "DEFAULT"
    """torchvision's weight name, a file (.safetensors, or .pth read with weights_only), or `random` for plumbing."""


class Detectron2DetectorConfig(DetectorCommon):
    """A detectron2 model: any YAML config with weights of its own. detectron2 is not installed by this product."""

    name: Literal["detectron2"]
    config_file: str
    """detectron2's YAML config; what its `_BASE_` names is read, too."""
    weights: str
    """A file (.safetensors, .pth read with weights_only, or .pkl of the model zoo, see below), or `random` for
    plumbing. `MODEL.WEIGHTS` of the config is not read."""
    trust_pickle: bool = False
    """Whether a .pkl file may be read. Unpickling runs whatever code the file's author put there."""
    classes: list[str] | None = None
    """Names of the model's classes in its order; null for those of the config's test data set."""


class PrecomputedDetectorConfig(DetectorCommon):
    """Detections out of a COCO result file, joined by image id or file name."""

    name: Literal["precomputed"]
    results: str
    """JSON list of `{image_id, category_id, bbox: [x, y, w, h], score}`."""
    instances: str
    """COCO instances JSON that gives the images' file names and the categories' names."""


class OpenVocabularyDetectorConfig(DetectorCommon):
    """OWLv2 or Grounding DINO through transformers (extra `open-vocabulary`): any word can be an object."""

    name: Literal["open_vocabulary"]
    model: Annotated[str, Field(pattern=r"^(hf-hub|local-dir):.+")]
    """`hf-hub:owner/name` or `local-dir:folder`, with safetensors weights."""
    min_score: Share = 0.1
    """Such detectors score lower than those of fixed classes."""


class GroundTruthDetectorConfig(DetectorCommon):
    """Annotated boxes (not pairs) at score 1, with optional jitter: an upper bound, and for tests."""

    name: Literal["ground_truth"]
    jitter: Share = 0.0
    """Standard deviation of the corner noise, as a share of the box's sides."""


DetectorConfig = Annotated[
    Union[
        WorldDetectorConfig,
        TorchvisionDetectorConfig,
        Detectron2DetectorConfig,
        PrecomputedDetectorConfig,
        OpenVocabularyDetectorConfig,
        GroundTruthDetectorConfig,
    ],
    Field(discriminator="name"),
]


class PairsConfig(Section):
    """Which detections pair up: every kept human with every other kept detection, itself excepted."""

    min_score: Share = 0.2
    max_humans: Count = 15
    max_objects: Count = 15
