"""Settings of the student `clhoi`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hoi.config.section import Exponent, FolderName, GateSettings, Section, Size, StudentSettings, Temperature, Weight


class ClhoiTargets(Section):
    """How targets are compared with scores."""

    temperature: Temperature = 2.0
    """T at which CLIP's union similarities and the pairs' are compared."""


class ClhoiScore(Section):
    """How logits become the score of a pair."""

    form: Literal["sigmoid", "softmax", "product"] = "sigmoid"
    """How a pair's logits are read: each alone, over all K at `targets.temperature`, or the product of the two."""
    interactiveness_exponent: Exponent = 0.5
    """Of r in the final score."""


class ClhoiConfig(StudentSettings):
    """CL-HOI (Gao et al., 2024) on the cache.

    The paper names its parts and what each is for (docs/clhoi.md); its code is unpublished, so every value and every
    layer here is ours. [choice] The cache must hold `teacher.spatial_map` and a pass with captions and image scores.
    """

    IMPLEMENTATION = "hoi.students.clhoi.model:ClhoiStudent"

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset(
        {"score_exponent", "score.interactiveness_exponent", "score.form", "gate"}
    )
    ROWS = {
        "interaction": "its pairs' own scores, before their probability to interact at all",
        "ungated": "its scores before the gate",
    }
    MOVED: ClassVar[dict[str, str]] = {
        "target_temperature": "targets.temperature",
        **{f"score_{key}": f"score.{key}" for key in ClhoiScore.model_fields},
        **StudentSettings.MOVED,
    }

    method: Literal["clhoi"]
    supervision: Literal["teacher"] = "teacher"
    """There is no form of it that learns from labels."""
    vlm: FolderName = "coca"
    """The pass of `vlms` that is the teacher."""

    width: Size = 512
    """Of every token."""
    heads: Size = 8
    """Of every attention."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    translator: bool = True
    """Whether there is a Visual Linguistic Translator, which turns the map into words; without it pairs see the map
    alone and no caption is learned."""
    translator_queries: Size = 8
    translator_layers: Size = 2
    cognition_layers: Size = 2
    start: Literal["union", "none"] = "union"
    """What a pair's vector is before training: frozen CLIP's of the union crop, which the network then corrects, or
    nothing."""
    union_views: Literal["first", "all"] = "first"
    """Crops of a pair's union that are read, and whose mean similarity is learned: the first of `teacher.crop.margins`,
    or all of them."""
    interactiveness: bool = True
    """Whether pairs have a probability r to interact at all, learned through the pooling alone; without it r is 1."""

    pooling_temperature: Temperature = 0.5
    """Of the softmax over an image's pairs that weighs them."""
    positive_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Least share of its highest confidence in an image at which the teacher has seen an interaction there, for the
    contrast. Likelihoods have no scale of their own."""
    focal_gamma: Exponent = 2.0
    """Exponent on the distance to a confidence; 0 is plain binary cross-entropy."""
    interaction_weight: Weight = 1.0
    """Of the pooled scores' distance to the teacher's confidences in the image."""
    pair_weight: Weight = 0.0
    """Of the pairs' distance to its confidences in their union crops, where the pass has them."""
    contrast_weight: Weight = 1.0
    """Of the contrast between what the image's pairs say of a seen interaction and other interactions' texts."""
    union_weight: Weight = 0.5
    """Of KL(CLIP ‖ student) over the pairs' union scores."""
    context_weight: Weight = 0.1
    """Of the contrast between what is translated and the caption's sentences."""

    score_exponent: Exponent = 2.8
    """γ of (s_h · s_o)^γ in the final score; 2.8 is published for HICO-DET (spatially-conditioned-graphs)."""
    targets: ClhoiTargets = ClhoiTargets()
    score: ClhoiScore = ClhoiScore()
    gate: GateSettings = GateSettings()
    """Competition gate on the final score."""

    @property
    def vlm_names(self) -> frozenset[str]:
        return frozenset({self.vlm})

    @model_validator(mode="after")
    def _fits(self) -> ClhoiConfig:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of heads ({self.heads}) and of 4")
        if not any((self.interaction_weight, self.pair_weight, self.contrast_weight, self.union_weight)):
            raise ValueError("every loss of the pairs has the weight 0, so nothing would be learned of them")
        return self
