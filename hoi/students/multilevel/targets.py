"""What a student learns, made from what the teacher says and from what its own branches say.

Letters: B images, P pairs, K interactions.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hoi.errors import UserError
from hoi.records import PairBatch, TextBank
from hoi.scoring import competition_gate, gated
from hoi.students.losses import ScoreForm
from hoi.students.multilevel.mixing import (
    CLIP,
    Opinion,
    Target,
    mix,
)
from hoi.students.multilevel.settings import MultiLevelConfig

TARGET_PRIOR_EXPONENT = 0.5
"""Of (s_h · s_o) in the image's targets that are taken from its pairs."""
CONFIDENT = 0.1
"""Least score of the image's target at which an interaction counts as seen there."""


def score_form(config: MultiLevelConfig, bank: TextBank) -> ScoreForm:
    """How teacher and student are read alike.

    Raises:
        UserError: the settings ask for sigmoids of a teacher without a bias.
    """
    if config.supervision == "labels":
        return ScoreForm("sigmoid", config.targets.temperature)
    if config.score.form == "teacher":
        return ScoreForm("softmax" if bank.logit_bias is None else "sigmoid", config.targets.temperature)
    if config.score.form == "sigmoid" and bank.logit_bias is None:
        raise UserError(
            "the teacher has no logit bias, so its similarities give no sigmoid scores",
            where="score.form of the student",
            expected="teacher or softmax",
            got="sigmoid",
            fix="set score.form: teacher, or choose a SigLIP model",
        )
    return ScoreForm(config.score.form, config.targets.temperature)


def fields_of_passes(config: MultiLevelConfig) -> tuple[str, ...]:
    """Cached fields of the vision language models that a student learns from."""
    images, pairs = _passes(config.targets.image_teachers), _passes(config.targets.pair_teachers)
    return (
        *(f"{name}/vlm_scores" for name in images),
        *(f"{name}/vlm_asked" for name in dict.fromkeys([*images, *pairs])),
        *(f"{name}/vlm_pair_scores" for name in pairs),
    )


def image_target(
    config: MultiLevelConfig,
    batch: PairBatch,
    clip: Float[Tensor, "B K"],
    object_of: Int64[Tensor, " K"],
    is_distribution: bool,
) -> Target:
    """What the teachers of images say together.

    Args:
        config: `targets.image_teachers` and `targets.pool` are read.
        batch: With the fields of the passes.
        clip: CLIP's scores.
        object_of: Each interaction's object.
        is_distribution: Whether these sum to 1.
    """
    opinions = []
    for name, weight in config.targets.image_teachers.items():
        if name == CLIP:
            opinions.append(Opinion(clip, weight))
        else:
            scores, asked = batch.extra[f"{name}/vlm_scores"].float(), batch.extra[f"{name}/vlm_asked"] > 0
            opinions.append(Opinion(scores, weight, asked, torch.where(asked, scores, 0.0).amax(1)))
    return mix(opinions, config.targets.pool, object_of, is_distribution=is_distribution)


def pair_target(
    config: MultiLevelConfig,
    batch: PairBatch,
    clip: Float[Tensor, "P K"],
    object_of: Int64[Tensor, " K"],
    admitted: Bool[Tensor, "O K"],
    is_distribution: bool,
) -> Target:
    """What the teachers of pairs say together; a pass was asked of a pair what it was asked of the pair's object.

    Args: as `image_target`, with `targets.pair_teachers`; `admitted` says which interactions an object admits.
    """
    opinions = []
    for name, weight in config.targets.pair_teachers.items():
        if name == CLIP:
            opinions.append(Opinion(clip, weight))
        else:
            scores = batch.extra[f"{name}/vlm_pair_scores"].float()
            asked = (batch.extra[f"{name}/vlm_asked"] > 0)[batch.pair_image] & admitted[batch.labels_o]
            highest = best_of_images(torch.where(asked, scores, 0.0), batch.pair_image, batch.num_images).amax(1)
            opinions.append(Opinion(scores, weight, asked, highest[batch.pair_image]))
    return mix(opinions, config.targets.pool, object_of, is_distribution=is_distribution)


def _passes(weights: dict[str, float]) -> list[str]:
    return [name for name in weights if name != CLIP]


def best_of_images(
    scores: Float[Tensor, "P K"], pair_image: Int64[Tensor, " P"], num_images: int
) -> Float[Tensor, "B K"]:
    """Non-negative scores of pairs to the highest of each image; 0 where there is no pair."""
    index = pair_image[:, None].expand_as(scores)
    return scores.new_zeros(num_images, scores.shape[1]).scatter_reduce(0, index, scores, "amax")


def from_pairs(
    batch: PairBatch,
    targets_union: Float[Tensor, "P K"],
    admitted: Bool[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
    gate_exponent: float,
    is_distribution: bool,
) -> Float[Tensor, "B K"]:
    """The best of an image's pairs at each interaction.

    Args:
        batch: The pairs.
        targets_union: The teacher's scores of the union crops.
        admitted: What each pair's object admits.
        is_real: The same without `no_interaction`.
        gate_exponent: Of the competition gate on the union scores.
        is_distribution: Whether an image's targets are to sum to 1.
    """
    if gate_exponent > 0:
        targets_union = gated(targets_union, is_real, batch.rows_h, batch.rows_o, gate_exponent)
    prior = (batch.scores_h * batch.scores_o)[:, None] ** TARGET_PRIOR_EXPONENT
    best = best_of_images(targets_union * prior * admitted, batch.pair_image, batch.num_images)
    return best / best.sum(1, keepdim=True).clamp(min=torch.finfo(best.dtype).tiny) if is_distribution else best


def with_none(
    batch: PairBatch,
    together: Float[Tensor, "P K"],
    admitted: Bool[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
) -> Float[Tensor, "P K1"]:
    """What others say of a pair together, to a distribution over interactions and, last, none of them.

    Scores over the interactions that the object admits are normalised and multiplied by the pair's competition gate;
    what the gate takes goes to "none".
    """
    together = together * admitted
    gate = competition_gate(together, is_real, batch.rows_h, batch.rows_o)
    tiny = torch.finfo(together.dtype).tiny
    likely = gate[:, None] * together / together.sum(1, keepdim=True).clamp(min=tiny)
    return torch.cat([likely, (1 - likely.sum(1, keepdim=True)).clamp(min=0)], 1)


def related(
    batch: PairBatch,
    targets_image: Float[Tensor, "B K"],
    together: Float[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
) -> tuple[Bool[Tensor, " P"], Bool[Tensor, " P"]]:
    """Which pairs their image is about, and which pairs that says anything of.

    An interaction is seen in an image where its target is `CONFIDENT`. There the pair with the highest score is the one
    that does it; pairs that are this of no interaction are not related. Images without such an interaction say nothing.
    """
    likely = together * is_real
    best = best_of_images(likely, batch.pair_image, batch.num_images)
    seen = (targets_image >= CONFIDENT) & (best > 0)
    is_top = (likely == best[batch.pair_image]) & seen[batch.pair_image]
    return is_top.any(1), seen.any(1)[batch.pair_image]
