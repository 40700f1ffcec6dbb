"""The multi-level student: a global, a union and a human-object branch over one knowledge bank of interaction texts.

Late fusion of their scores, and what supervises which branch, follow the paper; its code is unpublished, so the layers
are our reading of it. A fourth branch, off unless `score.weights.spatial` is set, is ours: it sees boxes and classes
but no pixels, so it cannot repeat the teacher's visual mistakes, and learns what the others say of such pairs on
average.

Shapes: B images, P pairs, R rows of either, K interactions, D the joint width.

Source: Wan & Tuytelaars, Exploiting CLIP for Zero-shot HOI Detection Requires Knowledge Distillation at Multiple
Levels, WACV 2024.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hoi.machine import full_precision
from hoi.matching import LabelTargets
from hoi.records import BranchScores, PairBatch, TextBank
from hoi.students.base import StepLosses, Student
from hoi.students.layers import NOT_ADMITTED, NUM_TERMS, focal_loss, fuse, mean_over_images, spatial_code
from hoi.students.multilevel.settings import BranchWeights, MultiLevelConfig
from hoi.students.multilevel.targets import (
    Target,
    best_of_images,
    fields_of_passes,
    from_pairs,
    image_target,
    pair_target,
    related,
    score_form,
    with_none,
)
from hoi.vocabulary import Vocabulary


@dataclass(frozen=True)
class BranchLogits:
    """Logits of each branch, before softmax or sigmoid."""

    image: Float[Tensor, "B K"]
    human_object: Float[Tensor, "P K"]
    union: Float[Tensor, "P K"] | None  # None where the union's features are inputs of the human-object branch
    spatial: Float[Tensor, "P K1"] | None = None  # the last is "no interaction"; None without that branch
    relatedness: Float[Tensor, " P"] | None = None  # None without that head


class Adapter(nn.Module):
    """A correction [R, D] of features [R, D_in] that is zero before the first step."""

    def __init__(self, width_in: int, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout))
        self.last = nn.Linear(width, width_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.layers(features)).float()


def _perceptron(width_in: int, width: int, width_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width_in, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, width_out),
    )


class PairEncoder(nn.Module):
    """One unit vector [P, D] for each pair, from human and object features and their spatial code."""

    def __init__(self, width_in: int, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(width_in)
        self.norm_spatial = nn.LayerNorm(NUM_TERMS)
        self.layers = _perceptron(width_in + NUM_TERMS, width, width_out, dropout)

    def forward(self, features: Tensor, spatial: Tensor) -> Tensor:
        inputs = torch.cat([self.norm_features(features), self.norm_spatial(spatial)], -1)
        return F.normalize(self.layers(inputs).float(), dim=-1)


class SigmoidOffsets(nn.Module):
    """Each branch's zero point, which sigmoids need and softmax does not.

    Cosines to interaction texts have a large part in common, so a logit is taken against a learned reference text,
    which starts as the mean of the bank, plus a bias, which starts at odds of 1 to K.
    """

    def __init__(self, text_embedding: Tensor) -> None:
        super().__init__()
        branches, odds = MultiLevelConfig.BRANCHES, -math.log(len(text_embedding))
        self.reference = nn.ParameterDict({name: nn.Parameter(text_embedding.mean(0)) for name in branches})
        self.bias = nn.ParameterDict({name: nn.Parameter(torch.tensor(odds)) for name in branches})


class SpatialBranch(nn.Module):
    """Logits [P, K + 1] from boxes and object class alone over what the object admits and, last, "no interaction"."""

    admitted: Tensor

    def __init__(self, admitted: Tensor, width: int, dropout: float) -> None:
        super().__init__()
        num_objects, num_interactions = admitted.shape
        with_none = torch.cat([admitted, torch.ones(num_objects, 1, dtype=torch.bool)], 1)
        self.register_buffer("admitted", with_none, persistent=False)
        self.norm = nn.LayerNorm(NUM_TERMS)
        self.layers = _perceptron(NUM_TERMS + num_objects, width, num_interactions + 1, dropout)

    def forward(self, spatial: Tensor, labels_o: Tensor) -> Tensor:
        classes = F.one_hot(labels_o, len(self.admitted)).to(spatial.dtype)
        logits = self.layers(torch.cat([self.norm(spatial), classes], -1)).float()
        return logits.masked_fill(~self.admitted[labels_o], NOT_ADMITTED)


class RelatednessHead(nn.Module):
    """The logit [P] that a pair is one its image is about, from pair vectors [P, D]; no gradient flows back."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width_in), nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(pairs.detach())[:, 0].float()


class MultiLevelStudent(Student):
    """Scores pairs on three levels; `forward` gives each branch's logits."""

    config: MultiLevelConfig
    text_embedding: Tensor
    object_of: Tensor

    def __init__(
        self, config: MultiLevelConfig, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int]
    ) -> None:
        super().__init__(config, vocabulary)
        self.logit_scale = bank.logit_scale
        self.form = score_form(config, bank)
        self.logit_bias = (bank.logit_bias or 0.0) if self.form.kind == "sigmoid" and not self.by_labels else 0.0

        text_embedding = torch.as_tensor(bank.text_embedding).float()
        joint, width, dropout = text_embedding.shape[1], config.width, config.dropout
        self.register_buffer("text_embedding", text_embedding)
        self.register_buffer("object_of", torch.as_tensor(vocabulary.object_of), persistent=False)
        self.adapt_text = Adapter(joint, width, joint, dropout)
        self.adapt_image = Adapter(joint, width, joint, dropout)
        views = axes["M"] if config.union_views == "all" else axes["L"]
        is_late = config.fusion == "late"
        self.adapt_union = Adapter(views * joint, width, joint, dropout) if is_late else None
        self.encode_pair = PairEncoder((2 * axes["L"] + (0 if is_late else views)) * joint, width, joint, dropout)
        self.norm_pair = nn.LayerNorm(joint)
        self.offsets = SigmoidOffsets(text_embedding) if self.by_labels else None
        # Last, so that the other branches start from the same weights with them and without.
        weights = config.score.weights
        self.spatial = SpatialBranch(self.admitted, width, dropout) if weights.spatial > 0 else None
        self.relatedness = RelatednessHead(joint, width, dropout) if weights.relatedness > 0 else None

    @property
    def extra_fields(self) -> tuple[str, ...]:
        return (*self.scoring_fields, *(() if self.by_labels else fields_of_passes(self.config)))

    @property
    def scoring_fields(self) -> tuple[str, ...]:
        return ("union_embedding",) if self.config.union_views == "all" else ()

    def forward(self, batch: PairBatch) -> BranchLogits:
        """Return the logits of each branch; before training, those of global and union are frozen CLIP's own."""
        bank = F.normalize(self.text_embedding + self.adapt_text(self.text_embedding), dim=-1)

        image = F.normalize(batch.image_embedding.float(), dim=-1)
        image = F.normalize(image + self.adapt_image(image), dim=-1)

        levels = batch.extra["union_embedding"] if self.config.union_views == "all" else batch.union_feature
        levels = levels.float()
        regions = [batch.human_feature.float().flatten(1), batch.object_feature.float().flatten(1)]
        union = None
        if self.adapt_union is None:
            regions.append(levels.flatten(1))
        else:
            union = F.normalize(levels.mean(1), dim=-1)
            union = F.normalize(union + self.adapt_union(levels.flatten(1)), dim=-1)

        spatial = spatial_code(batch.boxes_h, batch.boxes_o, batch.size_hw[batch.pair_image])
        pair = self.encode_pair(torch.cat(regions, -1), spatial)
        with full_precision(pair.device):
            attention = (self.logit_scale * pair @ bank.T).softmax(-1)
            pair = F.normalize(self.norm_pair(pair + attention @ bank), dim=-1)

        of_pair, of_image = self._scopes(batch)
        return BranchLogits(
            image=_within(of_image, self._logits("global", image, bank)),
            human_object=_within(of_pair, self._logits("human_object", pair, bank)),
            union=None if union is None else _within(of_pair, self._logits("union", union, bank)),
            spatial=None if self.spatial is None else self.spatial(spatial, batch.labels_o),
            relatedness=None if self.relatedness is None else self.relatedness(pair),
        )

    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        """Return KL(t_g‖s_g) + mean_p KL(t_u‖s_u) + KL(t_i‖s_img), or focal losses where labels are given.

        t_i is t_g, or made from the pairs' t_u (`targets.image`). The spatial branch learns what teacher, union and
        human-object branch say together.
        """
        logits = self(batch)
        if self.by_labels:
            assert labels is not None
            return self._losses_of_labels(batch, logits, labels)
        of_pair, of_image = self._scopes(batch)
        similarity, targets = batch.union_similarity, self.config.targets
        similarity = similarity.mean(1) if self.config.union_views == "all" else similarity[:, 0]
        is_distribution = self.form.kind == "softmax"
        of_clip = self._targets(batch.image_similarity, of_image)
        image = image_target(targets, batch, of_clip, self.object_of, is_distribution)
        of_clip = self._targets(similarity, of_pair)
        union = pair_target(targets, batch, of_clip, self.object_of, self.admitted, is_distribution)
        of_global = _within(image.scope, logits.image)
        step = StepLosses(
            {"global": self.form.divergence(image.scores, of_global).mean()},
            {"global": _same_first(image, of_global)},
        )
        if logits.union is not None:
            of_union = _within(union.scope, logits.union)
            step.losses["union"] = self._divergence_of_pairs(batch, union, of_union)
            step.agreement["union"] = _same_first(union, of_union)
        targets_of_pairs = self._add_human_object(step, batch, image, union, logits.human_object)
        if logits.spatial is not None or logits.relatedness is not None:
            with torch.no_grad():
                together = union.scores
                for branch in (logits.union, logits.human_object):
                    together = together if branch is None else together * self.form.scores(branch)
        if logits.spatial is not None:
            none_last = with_none(batch, together, self.admitted[batch.labels_o], self.real(batch))
            divergence = F.kl_div(logits.spatial.log_softmax(-1), none_last, reduction="none").sum(-1)
            step.losses["spatial"] = mean_over_images(divergence, batch.pair_image, batch.num_images)
        if logits.relatedness is not None:
            positive, counted = related(batch, targets_of_pairs, together, self.real(batch))
            step.losses["relatedness"] = _cross_entropy(batch, logits.relatedness, positive, counted)
        return step

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return the fused scores, s_u · s_ho by default, and those of each branch alone; unmasked."""
        logits, score = self(batch), self.config.score
        parts = {"global": self.form.scores(logits.image)[batch.pair_image]}
        if logits.union is not None:
            parts["union"] = self.form.scores(logits.union)
        parts["human_object"] = self.form.scores(logits.human_object)
        if logits.spatial is not None:
            # With labels, every interaction is a question of its own, and the logit of "none" is not used.
            spatial = logits.spatial
            parts["spatial"] = spatial[:, :-1].sigmoid() if self.by_labels else spatial.softmax(-1)[:, :-1]
        weights = score.weights.by_branch()
        fused = fuse([(parts[name], weight) for name, weight in weights.items() if name in parts], score.fusion)
        if logits.relatedness is not None:
            relatedness = logits.relatedness.sigmoid()[:, None] ** score.weights.relatedness
            fused = torch.where(self.real(batch), relatedness * fused, fused)
        rows = self.gate(fused, batch)
        return {"student": rows["student"], **parts, **rows}

    def variants(self) -> dict[str, Student]:
        """Return the student without each branch of its score, and with the global one if it is left out."""
        weights = self.config.score.weights.by_branch()
        has = [name for name, weight in weights.items() if weight > 0 and name != "relatedness"]
        if self.config.fusion == "early" and "union" in has:
            has.remove("union")
        changes = {f"without {name}": {name: 0.0} for name in has if len(has) > 1}
        if "global" not in has:
            changes |= {f"with global, weight {weight:g}": {"global": weight} for weight in (0.25, 1.0)}
        students: dict[str, Student] = {}
        for text, change in changes.items():
            changed = BranchWeights.model_validate({**weights, **change})
            score = self.config.score.model_copy(update={"weights": changed})
            students[text] = other = copy.copy(self)
            other.config = self.config.model_copy(update={"score": score})
        return students

    def _logits(self, branch: str, vectors: Tensor, bank: Tensor) -> Tensor:
        with full_precision(vectors.device):
            logits = self.logit_scale * vectors @ bank.T + self.logit_bias
            if self.offsets is None:
                return logits
            zero = self.logit_scale * vectors @ self.offsets.reference[branch]
            return logits - zero[:, None] + self.form.temperature * self.offsets.bias[branch]

    def _scopes(self, batch: PairBatch) -> tuple[Tensor | None, Tensor | None]:
        # What scores of pairs [P, K] and of images [B, K] are normalised over; None for all K.
        if self.config.targets.scope == "all" or self.by_labels:
            return None, None
        admitted = self.admitted[batch.labels_o]
        return admitted, best_of_images(admitted.float(), batch.pair_image, batch.num_images) > 0

    def _targets(self, similarity: Tensor, scope: Tensor | None) -> Tensor:
        return self.form.scores(_within(scope, self.logit_scale * similarity.float() + self.logit_bias))

    def _divergence_of_pairs(self, batch: PairBatch, target: Target, logits: Tensor) -> Tensor:
        return mean_over_images(self.form.divergence(target.scores, logits), batch.pair_image, batch.num_images)

    def _add_human_object(
        self, step: StepLosses, batch: PairBatch, image: Target, union: Target, logits: Tensor
    ) -> Float[Tensor, "B K"]:
        """Add what supervises the human-object branch, and return the target of its images."""
        config, admitted = self.config, self.admitted[batch.labels_o]
        target, pair_logits = image, logits
        if config.targets.image == "pairs":
            is_softmax, exponent = self.form.kind == "softmax", config.targets.gate_exponent
            target = Target(from_pairs(batch, union.scores, admitted, self.real(batch), exponent, is_softmax))
            pair_logits = _within(union.scope, logits.masked_fill(~admitted, NOT_ADMITTED))
        if config.targets.human_object != "union":
            of_image, has_pairs = self.form.aggregate(
                pair_logits, batch.pair_image, batch.num_images, config.aggregation
            )
            of_image = _within(target.scope, of_image)
            divergence = self.form.divergence(target.scores, of_image)
            step.losses["human_object"] = torch.where(has_pairs, divergence, 0.0).mean()
            agrees = target.scores.argmax(-1) == of_image.argmax(-1)
            step.agreement["human_object"] = agrees[has_pairs & target.scores.any(1)]
        if config.targets.human_object != "image":
            of_pair = _within(union.scope, logits)
            step.losses["human_object_union"] = self._divergence_of_pairs(batch, union, of_pair)
            step.agreement["human_object_union"] = _same_first(union, of_pair)
        return target.scores

    def _losses_of_labels(self, batch: PairBatch, logits: BranchLogits, labels: LabelTargets) -> StepLosses:
        pairs, images = labels.of(batch)
        seen = labels.seen.to(images.device)
        admitted = self.admitted[batch.labels_o] & seen
        temperature, focus = self.form.temperature, self.config.focal_gamma
        losses = {"global": focal_loss(logits.image / temperature, images, seen.expand_as(images), focus)}
        if logits.union is not None:
            losses["union"] = focal_loss(logits.union / temperature, pairs, admitted, focus)
        losses["human_object"] = focal_loss(logits.human_object / temperature, pairs, admitted, focus)
        if logits.spatial is not None:
            losses["spatial"] = focal_loss(logits.spatial[:, :-1], pairs, admitted, focus)
        counts = {name: images.sum() if name == "global" else (pairs & admitted).sum() for name in losses}
        if logits.relatedness is not None:
            positive = (pairs & self.real(batch)).any(1)
            losses["relatedness"] = _cross_entropy(batch, logits.relatedness, positive, torch.ones_like(positive))
        return StepLosses(losses, counts=counts)


def _within(scope: Tensor | None, logits: Tensor) -> Tensor:
    return logits if scope is None else logits.masked_fill(~scope, NOT_ADMITTED)


def _cross_entropy(batch: PairBatch, logits: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    values = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    return mean_over_images(torch.where(counted, values, 0.0), batch.pair_image, batch.num_images)


def _same_first(target: Target, logits: Tensor) -> Tensor:
    # Of rows where some teacher was asked anything.
    agrees = target.scores.argmax(-1) == logits.argmax(-1)
    return agrees if target.scope is None else agrees[target.scope.any(-1)]
