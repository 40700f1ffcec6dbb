"""The multi-level student: a global, a union and a human-object branch over one knowledge bank of interaction texts.

Late fusion of their scores, and what supervises which branch, follow the paper; its code is unpublished, so the layers
are our reading of it.

Letters: B images, P pairs, K interactions, D the joint width, L levels of region features.

Source: Wan & Tuytelaars, Exploiting CLIP for Zero-shot HOI Detection Requires Knowledge Distillation at Multiple
Levels, WACV 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hoi.config import StudentConfig
from hoi.errors import UserError
from hoi.gating import gated
from hoi.losses import ScoreForm, aggregate, focal_loss, mean_over_images
from hoi.matching import LabelTargets
from hoi.records import BranchScores, PairBatch, TextBank
from hoi.students.base import StepLosses, Student
from hoi.students.spatial import NUM_TERMS, spatial_code
from hoi.vocabulary import Vocabulary

BRANCHES = ("global", "union", "human_object")
NOT_ADMITTED = -1e4
"""Logit of an interaction that the pair's object does not admit, where targets are masked by object."""
TARGET_PRIOR_EXPONENT = 0.5
"""Of (s_h · s_o) in the image's targets that are taken from its pairs."""


@dataclass(frozen=True)
class BranchLogits:
    """What each branch says, before softmax or sigmoid.

    Args:
        image: [B, K], the global branch.
        union, human_object: [P, K].
    """

    image: Float[Tensor, "B K"]
    union: Float[Tensor, "P K"]
    human_object: Float[Tensor, "P K"]


class Adapter(nn.Module):
    """[R, D_in] features to a correction [R, D] that is zero before the first step."""

    def __init__(self, width_in: int, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width), nn.GELU(), nn.Dropout(dropout))
        self.last = nn.Linear(width, width_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.last(self.layers(features))


class PairEncoder(nn.Module):
    """Human and object features and their spatial code to one unit vector [P, D] that asks the knowledge bank."""

    def __init__(self, width_in: int, width: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.norm_features = nn.LayerNorm(width_in)
        self.norm_spatial = nn.LayerNorm(NUM_TERMS)
        self.layers = nn.Sequential(
            nn.Linear(width_in + NUM_TERMS, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width_out),
        )

    def forward(self, features: Tensor, spatial: Tensor) -> Tensor:
        inputs = torch.cat([self.norm_features(features), self.norm_spatial(spatial)], -1)
        return F.normalize(self.layers(inputs), dim=-1)


class SigmoidOffsets(nn.Module):
    """What sigmoids need and softmax does not: each branch's zero point.

    Cosines to interaction texts share a large common part, so a logit is taken against a learned reference text, which
    starts as the mean of the bank, plus a bias, which starts at odds of 1 to K.
    """

    def __init__(self, text_embedding: Tensor) -> None:
        super().__init__()
        self.reference = nn.ParameterDict({name: nn.Parameter(text_embedding.mean(0)) for name in BRANCHES})
        self.bias = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(-math.log(len(text_embedding)))) for name in BRANCHES}
        )


class MultiLevelStudent(Student):
    """Pairs and images of a batch to HOI scores on three levels.

    Args:
        config: Settings.
        bank: The teacher's texts and logit scale.
        vocabulary: Which interactions an object admits.
        num_levels: L.
    """

    text_embedding: Tensor
    admitted: Tensor
    is_real: Tensor

    def __init__(self, config: StudentConfig, bank: TextBank, vocabulary: Vocabulary, num_levels: int) -> None:
        super().__init__()
        self.config = config
        self.logit_scale = bank.logit_scale
        self.by_labels = config.supervision == "labels"
        self.form = _score_form(config, bank)
        self.logit_bias = (bank.logit_bias or 0.0) if self.form.kind == "sigmoid" and not self.by_labels else 0.0

        text_embedding = torch.from_numpy(bank.text_embedding).float()
        joint, width, dropout = text_embedding.shape[1], config.width, config.dropout
        self.register_buffer("text_embedding", text_embedding)
        self.register_buffer("admitted", torch.from_numpy(vocabulary.object_mask), persistent=False)
        self.register_buffer("is_real", torch.from_numpy(~vocabulary.is_no_interaction), persistent=False)
        self.adapt_text = Adapter(joint, width, joint, dropout)
        self.adapt_image = Adapter(joint, width, joint, dropout)
        self.adapt_union = Adapter(num_levels * joint, width, joint, dropout)
        self.encode_pair = PairEncoder(2 * num_levels * joint, width, joint, dropout)
        self.norm_pair = nn.LayerNorm(joint)
        self.offsets = SigmoidOffsets(text_embedding) if self.by_labels else None

    def forward(self, batch: PairBatch) -> BranchLogits:
        """Batch to the logits of each branch; before training, global and union are frozen CLIP's own."""
        bank = F.normalize(self.text_embedding + self.adapt_text(self.text_embedding), dim=-1)

        image = F.normalize(batch.image_embedding.float(), dim=-1)
        image = F.normalize(image + self.adapt_image(image), dim=-1)

        levels = batch.union_feature.float()
        union = F.normalize(levels.mean(1), dim=-1)
        union = F.normalize(union + self.adapt_union(levels.flatten(1)), dim=-1)

        features = torch.cat([batch.human_feature.float().flatten(1), batch.object_feature.float().flatten(1)], -1)
        pair = self.encode_pair(features, spatial_code(batch.boxes_h, batch.boxes_o, batch.size_hw[batch.pair_image]))
        attention = (self.logit_scale * pair @ bank.T).softmax(-1)
        pair = F.normalize(self.norm_pair(pair + attention @ bank), dim=-1)

        return BranchLogits(
            image=self._logits("global", image, bank),
            union=self._logits("union", union, bank),
            human_object=self._logits("human_object", pair, bank),
        )

    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        """Batch to KL(t_g‖s_g) + mean_p KL(t_u‖s_u) + KL(t_i‖s_img), or to focal losses where labels are given.

        t_i is t_g, or is made of the pairs' t_u: `StudentConfig.image_target`.
        """
        logits = self(batch)
        if self.by_labels:
            if labels is None:
                raise ValueError("a student with supervision `labels` was given no labels")
            return self._losses_of_labels(batch, logits, labels)
        targets_image = self._targets(batch.image_similarity)
        targets_union = self._targets(batch.union_similarity[:, 0])
        pair_logits, targets_from_pairs = logits.human_object, targets_image
        if self.config.image_target == "pairs":
            targets_from_pairs = self._targets_of_pairs(batch, targets_union)
            pair_logits = pair_logits.masked_fill(~self.admitted[batch.labels_o], NOT_ADMITTED)
        aggregated, has_pairs = aggregate(
            pair_logits / self.form.temperature, batch.pair_image, batch.num_images, self.config.aggregation
        )
        from_pairs = aggregated * self.form.temperature
        divergence_image = self.form.divergence(targets_from_pairs, from_pairs)
        losses = {
            "global": self.form.divergence(targets_image, logits.image).mean(),
            "union": mean_over_images(
                self.form.divergence(targets_union, logits.union), batch.pair_image, batch.num_images
            ),
            "human_object": torch.where(has_pairs, divergence_image, 0.0).mean(),
        }
        agreement = {
            "global": _same_first(targets_image, logits.image),
            "union": _same_first(targets_union, logits.union),
            "human_object": _same_first(targets_from_pairs, from_pairs)[has_pairs & targets_from_pairs.any(1)],
        }
        return StepLosses(losses, agreement)

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to the fused scores s_u · s_ho [· s_g^w] and those of each branch alone; unmasked."""
        logits = self(batch)
        image = self.form.scores(logits.image)[batch.pair_image]
        union, human_object = self.form.scores(logits.union), self.form.scores(logits.human_object)
        fused = union * human_object
        if self.config.score_global_weight > 0:
            fused = fused * image**self.config.score_global_weight
        scores = {"student": fused, "global": image, "union": union, "human_object": human_object}
        if self.config.gate_exponent == 0:
            return scores
        is_real = self.is_real & self.admitted[batch.labels_o]
        student = gated(fused, is_real, batch.rows_h, batch.rows_o, self.config.gate_exponent)
        return {**scores, "student": student, "ungated": fused}

    def _logits(self, branch: str, vectors: Tensor, bank: Tensor) -> Tensor:
        logits = self.logit_scale * vectors @ bank.T + self.logit_bias
        if self.offsets is None:
            return logits
        zero = self.logit_scale * vectors @ self.offsets.reference[branch]
        return logits - zero[:, None] + self.form.temperature * self.offsets.bias[branch]

    def _targets(self, similarity: Tensor) -> Tensor:
        return self.form.scores(self.logit_scale * similarity.float() + self.logit_bias)

    def _targets_of_pairs(self, batch: PairBatch, targets_union: Tensor) -> Float[Tensor, "B K"]:
        """The best of an image's pairs at each interaction; for softmax a distribution again."""
        prior = (batch.scores_h * batch.scores_o)[:, None] ** TARGET_PRIOR_EXPONENT
        likely = targets_union * prior * self.admitted[batch.labels_o]
        index = batch.pair_image[:, None].expand_as(likely)
        best = likely.new_zeros(batch.num_images, likely.shape[1]).scatter_reduce(0, index, likely, "amax")
        if self.form.kind == "sigmoid":
            return best
        return best / best.sum(1, keepdim=True).clamp(min=torch.finfo(best.dtype).tiny)

    def _losses_of_labels(self, batch: PairBatch, logits: BranchLogits, labels: LabelTargets) -> StepLosses:
        pairs, images = labels.of(batch)
        admitted = self.admitted[batch.labels_o]
        temperature, focus = self.form.temperature, self.config.focal_gamma
        return StepLosses(
            {
                "global": focal_loss(logits.image / temperature, images, torch.ones_like(images), focus),
                "union": focal_loss(logits.union / temperature, pairs, admitted, focus),
                "human_object": focal_loss(logits.human_object / temperature, pairs, admitted, focus),
            }
        )


def _score_form(config: StudentConfig, bank: TextBank) -> ScoreForm:
    if config.supervision == "labels":
        return ScoreForm("sigmoid", config.target_temperature)
    if config.score_form == "teacher":
        return ScoreForm("softmax" if bank.logit_bias is None else "sigmoid", config.target_temperature)
    if config.score_form == "sigmoid" and bank.logit_bias is None:
        raise UserError(
            "the teacher has no logit bias, so its similarities give no sigmoid scores",
            where="score_form of the student",
            expected="teacher or softmax",
            got="sigmoid",
            fix="set score_form: teacher, or choose a SigLIP model",
        )
    return ScoreForm(config.score_form, config.target_temperature)


def _same_first(targets: Tensor, logits: Tensor) -> Tensor:
    return targets.argmax(-1) == logits.argmax(-1)
