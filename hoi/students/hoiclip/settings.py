"""Settings of the student `hoiclip`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hoi.config.section import Count, Exponent, GateSettings, Section, Share, Size, StudentSettings, Temperature, Weight


class HoiclipTargets(Section):
    """What `supervision: teacher` learns from. All of it is ours. [choice]"""

    temperature: Temperature = 2.0
    """T of the scores of union crops and images, as in `MultiLevelTargets`."""
    views: Literal["first", "all"] = "first"
    """Whose scores those of a union are: its first crop's, or the mean similarity of all."""
    image_exponent: Exponent = 1.0
    """Power of the image's scores that multiply the union's; 0 for none."""
    gate_exponent: Exponent = 0.0
    """Power of the competition gate on them, 0 for none."""
    top_share: Share = 0.01
    """Share of the training pairs that admit a class whose target is to be 1 after rescaling; 0 for no rescaling."""
    top_least: Count = 20
    """Least number of such pairs."""


class HoiclipWeights(Section):
    """Weights of other scores in the score."""

    union: Weight = 0.0
    """w of t^w, which multiplies the score: t is what the frozen teacher itself says of the union crops
    (`targets.views`, at `targets.temperature`); 0 leaves it out. Departs from the paper."""


class HoiclipScore(Section):
    """How logits become the score of a pair."""

    fusion: Literal["sum", "product"] = "sum"
    """`sum`: class score + enhancement + s_o², as in the paper; `product` leaves the detector to `score_exponent`.
    [choice]"""
    weights: HoiclipWeights = HoiclipWeights()


class HoiclipConfig(StudentSettings):
    """HOICLIP (Ning et al., CVPR 2023) on the cache: docs/hoiclip.md.

    The defaults are the paper's, as far as cached boxes leave them; every value marked [choice] is ours.
    """

    IMPLEMENTATION = "hoi.students.hoiclip.model:HoiclipStudent"

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset(
        {"score_exponent", "score.fusion", "score.weights.union", "enhancement_classes", "gate"}
    )
    ROWS = {"ungated": "its scores before the gate"}
    MOVED: ClassVar[dict[str, str]] = {
        "score_fusion": "score.fusion",
        "score_union_weight": "score.weights.union",
        **{f"target_{key}": f"targets.{key}" for key in HoiclipTargets.model_fields},
        **StudentSettings.MOVED,
    }

    method: Literal["hoiclip"]
    width: Size | None = None
    """Of the interaction decoder; null for that of the teacher's map, as in the paper. Any other puts a learned layer
    before and after it. [choice]"""
    layers: Annotated[int, Field(ge=0, le=100)] = 3
    """Of the interaction decoder; 0 for none: then queries go straight to the joint space."""
    heads: Size = 8
    feedforward: Size = 2048
    """Hidden width of each layer's feed-forward network."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    memories: Literal["both", "clip", "instances"] = "both"
    """What queries attend to: the teacher's map and the image's detections, by one shared attention (knowledge
    integration), or one of the two."""
    query_union: Literal["none", "first", "all"] = "none"
    """Whether the query sees its pair's union crop beside human and object: the first of `teacher.crop.margins`, or all
    of them. Departs from the paper."""
    query_boxes: bool = False
    """Whether the query sees the 36 numbers that say how its two boxes lie. Departs from the paper."""
    union_residual: bool = False
    """Whether the decoder's output is added to the frozen embedding of the union crops (`query_union` says which; the
    first for `none`), with a reference text and a bias for the sigmoids. Departs from the paper."""
    verb_weight: Weight = 0.5
    """λ of the verb classifier; 0 for none. The paper's: 0.5 on HICO-DET, 0.1 on V-COCO."""
    enhancement_classes: Annotated[int, Field(ge=0, le=10_000)] = 10
    """How many of the image's classes the training-free enhancement raises; 0 for none."""
    focal_alpha: Share = 0.5
    """Weight of positives in the focal loss; negatives have the rest."""
    focal_gamma: Exponent = 2.0
    """Exponent of the focal loss on the distance to the target."""
    score_exponent: Exponent = 0.0
    """γ of (s_h · s_o)^γ in the final score; the paper has none."""
    targets: HoiclipTargets = HoiclipTargets()
    score: HoiclipScore = HoiclipScore()
    gate: GateSettings = GateSettings()
    """Competition gate on the score. Departs from the paper."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> HoiclipConfig:
        if self.width is not None and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self
