"""The multi-level student's settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hoi.config.section import Count, StudentSettings, TeacherWeights


class MultiLevelConfig(StudentSettings):
    """The multi-level student (Wan & Tuytelaars, WACV 2024) and what it learns from. The defaults are `faithful`.

    The paper fixes the three branches, what supervises each, and late fusion of scores. Every value marked [choice] is
    ours, fixed beforehand and never by a label.
    """

    IMPLEMENTATION = "hoi.students.multilevel.model:MultiLevelStudent"

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset(
        {"score_exponent", "score_fusion", "score_union_weight", "score_human_object_weight", "score_global_weight"}
        | {"gate", "gate_exponent"}
    )
    """Keys that leave the weights alone, so changing them asks for no new training."""

    method: Literal["multilevel"] = "multilevel"
    width: Count = 256
    """Hidden width of the adapters and of the human-object network. [choice]"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """In the hidden layers. [choice]"""
    target_temperature: Annotated[float, Field(gt=0)] = 2.0
    """T of softmax(logit_scale · cosine / T) over all K interactions; the student's logits are read at the same T.
    [choice]"""
    score_form: Literal["teacher", "softmax", "sigmoid"] = "teacher"
    """How similarities become scores. `teacher`: sigmoid where the teacher has a logit bias (SigLIP), softmax where it
    has none (CLIP). `supervision: labels` always reads sigmoids. [choice]"""
    target_scope: Literal["all", "object"] = "all"
    """What targets and scores are normalised over: `all` K interactions, or those that the pair's `object` admits (for
    an image, those that any of its pairs' objects admits). [choice]"""
    aggregation: Literal["max", "logsumexp", "softmax_mean", "noisy_or"] = "max"
    """From the pairs' logits of the human-object branch to the image's; `noisy_or` takes 1 − Π(1 − score), and where
    scores are a softmax, normalises it. [choice]"""
    fusion: Literal["late", "early"] = "late"
    """Where the union's features join. `late`: in a branch of their own, by scores, as in the paper. `early`: as inputs
    of the human-object branch, and there is no union branch."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of the focal loss of `supervision: labels`; 0 is plain binary cross-entropy. [choice]"""
    human_object_target: Literal["image", "union", "both"] = "image"
    """What supervises the human-object branch. `image`: its image's target, over its aggregated pairs, as in the paper;
    `union`: each pair's union scores; `both`: the sum of the two losses."""
    image_target: Literal["image", "pairs"] = "image"
    """What an image's target is there. `image`: the teacher's scores of the whole image, as in the paper. `pairs`: at
    each interaction the best of its pairs' union scores · (s_h · s_o)^½, masked by object, normalised to a distribution
    over the image; this departs from the paper."""
    target_gate_exponent: Annotated[float, Field(ge=0)] = 0.0
    """With `image_target: pairs`: the competition gate's power on the union scores before they become image targets, 0
    for none. Departs from the paper."""
    image_teachers: TeacherWeights = {"clip": 1.0}
    """Who gives images their targets, and with what weight: `clip`, and passes of `vlms` by name, as in
    `{clip: 0.7, coca: 0.3}`. A pass that was not asked of an interaction has no say in it. Anything but CLIP departs
    from the paper."""
    pair_teachers: TeacherWeights = {"clip": 1.0}
    """The same of pairs; a pass named here must have scored pairs (`pair_scores` of its section)."""
    teacher_pool: Literal["linear", "geometric"] = "linear"
    """How several teachers' targets join (hoi/students/mixing.py): Σ w · t / Σ w over shares of CLIP's mass, or
    Π t^w, in which a pass moves mass as well. [choice]"""
    union_views: Literal["first", "all"] = "first"
    """Crops that the union branch sees, and whose mean similarity it learns: the first of `teacher.crop.margins`, or
    all of them. [choice]"""
    gate_exponent: Annotated[float, Field(ge=0)] = 0.0
    """Competition gate on the fused score, 0 for none: real interactions are multiplied by the pair's share of the
    fused real-verb mass among the pairs of its object, then of its human, to this power. Departs from the paper, and
    leans on one partner per object."""
    gate: Literal["both", "object", "human", "best"] = "both"
    """Among whom that gate shares: the pairs of the object, then those of the human (`both`), or one of the two alone;
    `best` divides by the largest mass instead of the sum, so that people who share an object may all keep it.
    [choice]"""
    score_fusion: Literal["product", "sum"] = "product"
    """How the branches' scores join: Π s^w, or Σ w · s / Σ w, with the four weights below; 0 leaves a branch out.
    [choice]"""
    score_union_weight: Annotated[float, Field(ge=0)] = 1.0
    """w of the union branch, where there is one. [choice]"""
    score_human_object_weight: Annotated[float, Field(ge=0)] = 1.0
    """w of the human-object branch. [choice]"""
    score_global_weight: Annotated[float, Field(ge=0)] = 0.0
    """w of the global branch; 0 leaves it to training. [choice]"""
    score_spatial_weight: Annotated[float, Field(ge=0)] = 0.0
    """w of the spatial branch; 0 for no such branch at all. It sees boxes and classes alone, and learns what teacher,
    union and human-object branch say together, gated. Departs from the paper."""
    score_relatedness_weight: Annotated[float, Field(ge=0)] = 0.0
    """w of r^w on the real interactions of the fused score, 0 for no relatedness head at all: a pair's chance to be the
    one that its image is about, self-taught from the student's top pairs of the teacher's confident classes.
    [choice]"""

    @property
    def vlm_names(self) -> frozenset[str]:
        """See `StudentSettings`."""
        return frozenset({*self.image_teachers, *self.pair_teachers} - {"clip"})

    @model_validator(mode="after")
    def _some_branch_scores(self) -> MultiLevelConfig:
        weights = [self.score_human_object_weight, self.score_global_weight, self.score_spatial_weight]
        if self.fusion == "late":
            weights.append(self.score_union_weight)
        if not any(weights):
            raise ValueError("every branch has the weight 0, so none is left to score")
        return self
