"""What a student learns: targets from one or several teachers, and from what its own branches say.

CLIP's scores are a distribution over all K interactions. A vision language model gives likelihoods on a scale of their
own, and was not asked about every interaction. There are two ways to combine them (`targets.pool`):

`linear` averages shares. The model says how the mass of an object's asked interactions is shared among them; how much
mass that is stays CLIP's. What one teacher is sure of stays likely. Averaging targets is averaging losses: where all
teachers are asked the same, Σ w · KL(t_m ‖ s) and KL(Σ w · t_m ‖ s) have the same gradient.

`geometric` multiplies, t ∝ Π_m t_m^w. The model's likelihoods are divided by its highest in the image, so that the best
pair of an image keeps its mass and a pair in which the model sees nothing loses it to other objects' interactions; a
mean of shares cannot say which of the pairs it is. What one teacher rules out becomes unlikely.

Either way an interaction that the model was not asked about counts as neither likely nor unlikely. One that no teacher
was asked about is outside the target's scope: the student's logit there takes no part in the loss.

Shapes: B images, P pairs, R images or pairs, K interactions, O objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from hoi.errors import UserError
from hoi.records import PairBatch, TextBank
from hoi.scoring import competition_gate, gated
from hoi.students.layers import ScoreForm
from hoi.students.multilevel.settings import MultiLevelConfig, MultiLevelTargets

CLIP = "clip"  # the name under which the cache's own teacher is weighed
LEAST = 1e-4
"""Floor of what a language model's score takes from a geometric target: a score of 0 is a rounded one."""
TARGET_PRIOR_EXPONENT = 0.5  # of (s_h · s_o), in image targets made from pairs
CONFIDENT = 0.1
"""Least score of the image's target at which an interaction counts as seen there."""

Pool = Literal["linear", "geometric"]


@dataclass(frozen=True)
class Opinion:
    """Scores of one teacher."""

    scores: Float[Tensor, "R K"]  # in [0, 1]; read only where it was asked
    weight: float  # above 0; relative to the others in a linear target, the exponent in a geometric one
    asked: Bool[Tensor, "R K"] | None = None  # where it was asked; None for everywhere
    highest: Float[Tensor, " R"] | None = None  # its highest score in the row's image; None if it was asked everything


@dataclass(frozen=True)
class Target:
    """What a student learns."""

    scores: Float[Tensor, "R K"]  # in [0, 1], 0 outside the scope; distributions sum to 1 in every row that has a scope
    scope: Bool[Tensor, "R K"] | None = None  # interactions that some teacher was asked about; None for all


def mix(opinions: Sequence[Opinion], pool: Pool, object_of: Int64[Tensor, " K"], *, is_distribution: bool) -> Target:
    """Return one target of opinions, at most one of which was asked everything; if it is alone, it passes unchanged.

    `is_distribution` says whether targets sum to 1 (softmax scores), or each stands for itself (sigmoid scores).
    """
    whole = next((opinion for opinion in opinions if opinion.asked is None), None)
    if whole is not None and len(opinions) == 1:
        return Target(whole.scores)
    others = [opinion for opinion in opinions if opinion is not whole]
    if pool == "geometric":
        return _product(whole, others, is_distribution)
    if not is_distribution:
        return _mean(whole, [(opinion.scores, opinion.weight, _asked(opinion)) for opinion in others])
    return _mean_of_shares(whole, others, F.one_hot(object_of).to(opinions[0].scores.dtype))


def _product(whole: Opinion | None, others: Sequence[Opinion], is_distribution: bool) -> Target:
    scope = None if whole is not None else torch.stack([_asked(opinion) for opinion in others]).any(0)
    scores = torch.ones_like(others[0].scores) if whole is None else whole.scores**whole.weight
    for opinion in others:
        highest = torch.ones_like(scores[:, :1]) if opinion.highest is None else opinion.highest[:, None]
        relative = (opinion.scores / torch.where(highest > 0, highest, 1.0)).clamp(min=LEAST, max=1.0)
        scores = scores * torch.where(_asked(opinion) & (highest > 0), relative**opinion.weight, 1.0)
    scores = scores if scope is None else torch.where(scope, scores, 0.0)
    return Target(_normalised(scores) if is_distribution else scores, scope)


def _mean(whole: Opinion | None, others: Sequence[tuple[Tensor, float, Tensor]]) -> Target:
    total = torch.zeros_like(others[0][0]) if whole is None else whole.weight * whole.scores
    weights = torch.full_like(total, 0.0 if whole is None else whole.weight)
    for scores, weight, asked in others:
        total = total + torch.where(asked, weight * scores, 0.0)
        weights = weights + torch.where(asked, weight, 0.0)
    is_heard = weights > 0
    return Target(total / torch.where(is_heard, weights, 1.0), None if whole is not None else is_heard)


def _mean_of_shares(whole: Opinion | None, others: Sequence[Opinion], groups: Float[Tensor, "K O"]) -> Target:
    # Zeros for all of an object's interactions are no shares.
    places = [o.asked & (_object_sums(o.scores * o.asked, groups) > 0) for o in others if o.asked is not None]
    anywhere = torch.stack(places).any(0)
    shares = [(_shares(o.scores, place, groups), o.weight, place) for o, place in zip(others, places, strict=True)]
    if whole is None:
        mean = _mean(None, shares)
        return Target(_normalised(mean.scores), mean.scope)
    mean = _mean(Opinion(_shares(whole.scores, anywhere, groups), whole.weight), shares)
    mass = _object_sums(whole.scores * anywhere, groups)
    return Target(torch.where(anywhere, _shares(mean.scores, anywhere, groups) * mass, whole.scores))


def _asked(opinion: Opinion) -> Bool[Tensor, "R K"]:
    return torch.ones_like(opinion.scores, dtype=torch.bool) if opinion.asked is None else opinion.asked


def _normalised(scores: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
    return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def _shares(
    scores: Float[Tensor, "R K"], where: Bool[Tensor, "R K"], groups: Float[Tensor, "K O"]
) -> Float[Tensor, "R K"]:
    # Of what the interaction's object has at the given places, and 0 elsewhere.
    inside = torch.where(where, scores, 0.0)
    return inside / _object_sums(inside, groups).clamp(min=torch.finfo(scores.dtype).tiny)


def _object_sums(scores: Float[Tensor, "R K"], groups: Float[Tensor, "K O"]) -> Float[Tensor, "R K"]:
    return scores @ groups @ groups.T


def score_form(config: MultiLevelConfig, bank: TextBank) -> ScoreForm:
    """Return the form in which teacher and student are both read; a UserError for sigmoids without a teacher's bias."""
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
    """Return the cached fields of the vision language models that a student learns from."""
    teachers = config.targets.image_teachers, config.targets.pair_teachers
    images, pairs = ([name for name in weights if name != CLIP] for weights in teachers)
    return (
        *(f"{name}/vlm_scores" for name in images),
        *(f"{name}/vlm_asked" for name in dict.fromkeys([*images, *pairs])),
        *(f"{name}/vlm_pair_scores" for name in pairs),
    )


def image_target(
    settings: MultiLevelTargets,
    batch: PairBatch,
    clip: Float[Tensor, "B K"],
    object_of: Int64[Tensor, " K"],
    is_distribution: bool,
) -> Target:
    """Return the combined target of the image teachers; `clip` are CLIP's scores."""
    opinions = []
    for name, weight in settings.image_teachers.items():
        if name == CLIP:
            opinions.append(Opinion(clip, weight))
        else:
            scores, asked = batch.extra[f"{name}/vlm_scores"].float(), batch.extra[f"{name}/vlm_asked"] > 0
            opinions.append(Opinion(scores, weight, asked, torch.where(asked, scores, 0.0).amax(1)))
    return mix(opinions, settings.pool, object_of, is_distribution=is_distribution)


def pair_target(
    settings: MultiLevelTargets,
    batch: PairBatch,
    clip: Float[Tensor, "P K"],
    object_of: Int64[Tensor, " K"],
    admitted: Bool[Tensor, "O K"],
    is_distribution: bool,
) -> Target:
    """Return the combined target of the pair teachers.

    A pass counts as asked about an interaction of a pair where it was asked in the image and the object admits it.
    """
    opinions = []
    for name, weight in settings.pair_teachers.items():
        if name == CLIP:
            opinions.append(Opinion(clip, weight))
        else:
            scores = batch.extra[f"{name}/vlm_pair_scores"].float()
            asked = (batch.extra[f"{name}/vlm_asked"] > 0)[batch.pair_image] & admitted[batch.labels_o]
            highest = best_of_images(torch.where(asked, scores, 0.0), batch.pair_image, batch.num_images).amax(1)
            opinions.append(Opinion(scores, weight, asked, highest[batch.pair_image]))
    return mix(opinions, settings.pool, object_of, is_distribution=is_distribution)


def best_of_images(
    scores: Float[Tensor, "P K"], pair_image: Int64[Tensor, " P"], num_images: int
) -> Float[Tensor, "B K"]:
    """Return the highest of each image's non-negative pair scores; 0 where there is no pair."""
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
    """Return image targets made from the gated scores of union crops: an image's best pair at each interaction."""
    if gate_exponent > 0:
        targets_union = gated(targets_union, is_real, batch.rows_h, batch.rows_o, gate_exponent)
    prior = (batch.scores_h * batch.scores_o)[:, None] ** TARGET_PRIOR_EXPONENT
    best = best_of_images(targets_union * prior * admitted, batch.pair_image, batch.num_images)
    return _normalised(best) if is_distribution else best


def with_none(
    batch: PairBatch,
    together: Float[Tensor, "P K"],
    admitted: Bool[Tensor, "P K"],
    is_real: Bool[Tensor, "P K"],
) -> Float[Tensor, "P K1"]:
    """Return normalised scores of admitted interactions, times the pair's gate; last comes "none", with the rest."""
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
    """Return which pairs their image is about, and for which pairs this is known.

    An interaction is seen in an image where its target reaches `CONFIDENT`; the pair with the highest score does it.
    """
    likely = together * is_real
    best = best_of_images(likely, batch.pair_image, batch.num_images)
    seen = (targets_image >= CONFIDENT) & (best > 0)
    is_top = (likely == best[batch.pair_image]) & seen[batch.pair_image]
    return is_top.any(1), seen.any(1)[batch.pair_image]
