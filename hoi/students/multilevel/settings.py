"""The multi-level student's settings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_serializer, model_validator

from hoi.config.section import (
    Exponent,
    GateSettings,
    Section,
    Size,
    StudentSettings,
    TeacherWeights,
    Temperature,
    Weight,
)


class MultiLevelTargets(Section):
    """What the branches learn from the teachers."""

    temperature: Temperature = 2.0
    """T of softmax(logit_scale · cosine / T) over all K interactions; the student's logits are read at the same T.
    [choice]"""
    scope: Literal["all", "object"] = "all"
    """What targets and scores are normalised over: `all` K interactions, or those that the pair's `object` admits (for
    an image, those that any of its pairs' objects admits). [choice]"""
    image: Literal["image", "pairs"] = "image"
    """The image's target for the human-object branch. `image`: the teacher's scores of the whole image, as in the
    paper. `pairs`: for each interaction the best of the pairs' union scores · (s_h · s_o)^½, masked by object,
    normalised to a distribution over the image; this departs from the paper."""
    human_object: Literal["image", "union", "both"] = "image"
    """What supervises the human-object branch. `image`: its image's target, over its aggregated pairs, as in the paper;
    `union`: each pair's union scores; `both`: the sum of the two losses."""
    gate_exponent: Exponent = 0.0
    """With `image: pairs`: the competition gate's power on the union scores before they become image targets, 0 for
    none. Departs from the paper."""
    image_teachers: TeacherWeights = {"clip": 1.0}
    """Teachers of the images and their weights: `clip`, and passes of `vlms` by name, as in `{clip: 0.7, coca: 0.3}`. A
    pass counts only for the interactions that it was asked about. Anything but CLIP departs from the paper."""
    pair_teachers: TeacherWeights = {"clip": 1.0}
    """The same for pairs; a pass named here must have scored pairs (`pair_scores` of its section)."""
    pool: Literal["linear", "geometric"] = "linear"
    """How several teachers' targets are combined (hoi/students/multilevel/targets.py): Σ w · t / Σ w over shares of
    CLIP's mass, or Π t^w, in which a pass moves mass as well. [choice]"""


class BranchWeights(Section):
    """Weight w of each branch in the score; 0 leaves it out."""

    union: Weight = 1.0
    """The union branch, where there is one. [choice]"""
    human_object: Weight = 1.0
    """The human-object branch. [choice]"""
    global_: Weight = Field(0.0, alias="global")
    """The global branch; at 0 it only helps training. [choice]"""
    spatial: Weight = 0.0
    """The spatial branch; 0 for no such branch at all. It sees boxes and classes only, and learns what teacher, union
    and human-object branch say together, gated. Departs from the paper."""
    relatedness: Weight = 0.0
    """r^w multiplies the fused score of real interactions, 0 for no relatedness head at all: r is the probability that
    the pair is one the image is about, learned from the student's own top pairs of the teacher's confident classes.
    [choice]"""

    @model_serializer
    def by_branch(self) -> dict[str, float]:
        """Return the weights by the keys of the pipeline file."""
        # Written out: scores call it, and torch's exporter does not follow `model_fields`.
        return {
            "union": self.union,
            "human_object": self.human_object,
            "global": self.global_,
            "spatial": self.spatial,
            "relatedness": self.relatedness,
        }


class MultiLevelScore(Section):
    """How logits become the score of a pair."""

    form: Literal["teacher", "softmax", "sigmoid"] = "teacher"
    """How similarities become scores, for targets too. `teacher`: sigmoid where the teacher has a logit bias (SigLIP),
    softmax where it has none (CLIP). `supervision: labels` always reads sigmoids. [choice]"""
    fusion: Literal["product", "sum"] = "product"
    """How the branches' scores are combined: Π s^w, or Σ w · s / Σ w. [choice]"""
    weights: BranchWeights = BranchWeights()


class MultiLevelConfig(StudentSettings):
    """The multi-level student (Wan & Tuytelaars, WACV 2024) and what it learns from. The defaults are `faithful`.

    The paper fixes the three branches, what supervises each, and late fusion of scores. Every value marked [choice] is
    ours, fixed beforehand and never by a label.
    """

    IMPLEMENTATION = "hoi.students.multilevel.model:MultiLevelStudent"

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset(
        {"score_exponent", "score.fusion", "gate"}
        | {"score.weights.union", "score.weights.human_object", "score.weights.global"}
    )
    ROWS = {
        "global": "its branch on the whole image, alone",
        "union": "its branch on union boxes, alone",
        "human_object": "its branch on the human and the object, alone",
        "spatial": "its branch on boxes and classes, alone",
        "ungated": "its branches together, before the gate",
    }
    BRANCHES = ("global", "union", "human_object")
    MOVED: ClassVar[dict[str, str]] = {
        **{f"target_{key}": f"targets.{key}" for key in ("temperature", "scope", "gate_exponent")},
        **{f"{key}_target": f"targets.{key}" for key in ("image", "human_object")},
        **{key: f"targets.{key}" for key in ("image_teachers", "pair_teachers")},
        "teacher_pool": "targets.pool",
        **{f"score_{key}": f"score.{key}" for key in ("form", "fusion")},
        **{f"score_{name}_weight": f"score.weights.{name}" for name in BranchWeights().by_branch()},
        **StudentSettings.MOVED,
    }

    method: Literal["multilevel"] = "multilevel"
    width: Size = 256
    """Hidden width of the adapters and of the human-object network. [choice]"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """In the hidden layers. [choice]"""
    aggregation: Literal["max", "logsumexp", "softmax_mean", "noisy_or"] = "max"
    """From the pairs' logits of the human-object branch to the image's; `noisy_or` takes 1 − Π(1 − score), and where
    scores are a softmax, normalises it. [choice]"""
    fusion: Literal["late", "early"] = "late"
    """Where the union's features enter. `late`: in a branch of their own, combined by scores, as in the paper. `early`:
    as inputs of the human-object branch, and there is no union branch."""
    union_views: Literal["first", "all"] = "first"
    """Crops that the union branch sees, and whose mean similarity it learns: the first of `teacher.crop.margins`, or
    all of them. [choice]"""
    focal_gamma: Exponent = 2.0
    """Exponent of the focal loss of `supervision: labels`; 0 is plain binary cross-entropy. [choice]"""
    targets: MultiLevelTargets = MultiLevelTargets()
    score: MultiLevelScore = MultiLevelScore()
    gate: GateSettings = GateSettings()
    """Competition gate on the fused score. Departs from the paper, and favours one partner per object."""

    @property
    def vlm_names(self) -> frozenset[str]:
        return frozenset({*self.targets.image_teachers, *self.targets.pair_teachers} - {"clip"})

    @model_validator(mode="after")
    def _some_branch_scores(self) -> MultiLevelConfig:
        weights = self.score.weights
        scoring = [weights.human_object, weights.global_, weights.spatial]
        if self.fusion == "late":
            scoring.append(weights.union)
        if not any(scoring):
            raise ValueError("every branch has the weight 0, so none is left to score")
        return self
