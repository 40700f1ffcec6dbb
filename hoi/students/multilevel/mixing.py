"""What several teachers say of the same images or pairs, to one soft target.

CLIP's scores are a distribution over all K interactions. A vision language model gives likelihoods, which have no scale
that could be compared with CLIP's, and was not asked of all interactions. Two ways to join them:

`linear` averages shares. The model says how the mass of an object's asked interactions is shared among them; how much
mass that is stays CLIP's. What one teacher is sure of stays likely. Averaging targets is averaging losses: where all
teachers are asked the same, Σ w · KL(t_m ‖ s) and KL(Σ w · t_m ‖ s) have the same gradient.

`geometric` multiplies, t ∝ Π_m t_m^w. The model's likelihoods are divided by its highest in the image, so that the best
pair of an image keeps its mass and a pair in which the model sees nothing loses it to other objects' interactions:
which of the pairs it is, is what a mean of shares cannot say. What one teacher rules out becomes unlikely.

Either way an interaction that the model was not asked has no say: it counts as neither likely nor unlikely. One that no
teacher was asked is outside of the target's scope: the student's logit there takes no part in the loss, and no gradient
reaches it.

Letters: R images or pairs, K interactions, O objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

CLIP = "clip"
"""The name under which the cache's own teacher is weighed."""
LEAST = 1e-4
"""Floor of what a language model's score takes from a geometric target: a score of 0 is a rounded one."""

Pool = Literal["linear", "geometric"]


@dataclass(frozen=True)
class Opinion:
    """What one teacher says.

    Args:
        scores: In [0, 1]; read only where it was asked.
        weight: Above 0; of a linear target relative to the others, of a geometric one the exponent.
        asked: Where it was; None for everywhere.
        highest: Its highest score in the row's image; None for one who was asked everything.
    """

    scores: Float[Tensor, "R K"]
    weight: float
    asked: Bool[Tensor, "R K"] | None = None
    highest: Float[Tensor, " R"] | None = None


@dataclass(frozen=True)
class Target:
    """What a student learns.

    Args:
        scores: In [0, 1], 0 outside of the scope; distributions sum to 1 in every row that has a scope.
        scope: Interactions that some teacher was asked; None for all.
    """

    scores: Float[Tensor, "R K"]
    scope: Bool[Tensor, "R K"] | None = None


def mix(opinions: Sequence[Opinion], pool: Pool, object_of: Int64[Tensor, " K"], *, is_distribution: bool) -> Target:
    """Opinions to one target; that of a teacher who is asked everything and stands alone passes unchanged.

    Args:
        opinions: At least one; at most one of them is asked everything.
        pool: See above.
        object_of: Each interaction's object.
        is_distribution: Whether targets sum to 1 (softmax scores), or each stands for itself (sigmoid scores).
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
    """Weighted means over who was asked: scores, weight, and where, of each."""
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
    of_whole = Opinion(_shares(whole.scores, anywhere, groups), whole.weight)
    mean = _mean(of_whole, shares)
    mass = _object_sums(whole.scores * anywhere, groups)
    return Target(torch.where(anywhere, _shares(mean.scores, anywhere, groups) * mass, whole.scores))


def _asked(opinion: Opinion) -> Bool[Tensor, "R K"]:
    return torch.ones_like(opinion.scores, dtype=torch.bool) if opinion.asked is None else opinion.asked


def _normalised(scores: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
    return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def _shares(
    scores: Float[Tensor, "R K"], where: Bool[Tensor, "R K"], groups: Float[Tensor, "K O"]
) -> Float[Tensor, "R K"]:
    """Scores at the given places over the sum that their object has there, and 0 elsewhere."""
    inside = torch.where(where, scores, 0.0)
    return inside / _object_sums(inside, groups).clamp(min=torch.finfo(scores.dtype).tiny)


def _object_sums(scores: Float[Tensor, "R K"], groups: Float[Tensor, "K O"]) -> Float[Tensor, "R K"]:
    """At each interaction, the sum over all interactions of its object."""
    return scores @ groups @ groups.T
