"""The student `clhoi`: a vision language model's scores of whole images, brought to pairs by two networks.

A translator turns CLIP's map into words and learns them from a caption (context distillation). In a cognition network
pairs attend to one another, to the map and to those words; they are pooled to their image, where they learn the
teacher's confidences (interaction distillation). Both learn by contrast. So much is in the paper's abstract; every
layer, loss and value is our reconstruction.

Shapes: B images, P pairs, K interactions, D the joint width, Z tokens of the translator.

Source: Gao et al., CL-HOI: Cross-Level Human-Object Interaction Distillation from Vision Large Language Models, 2024,
arXiv 2410.15657.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hoi.errors import UserError
from hoi.machine import full_precision
from hoi.matching import LabelTargets
from hoi.records import BranchScores, PairBatch, TextBank
from hoi.students.base import StepLosses, Student
from hoi.students.clhoi.networks import FIRST_TEMPERATURE, IGNORED, Cognition, MapEncoder, Translator, context_loss
from hoi.students.clhoi.settings import ClhoiConfig
from hoi.students.layers import NUM_TERMS, RaggedIndex, ScoreForm, mean_over_images, soft_focal, spatial_code
from hoi.vocabulary import Vocabulary

MAX_SCALE = 100.0
"""Of learned similarities, as CLIP's own."""


def pool_pairs(
    index: RaggedIndex,
    logits: Float[Tensor, "P K"],
    vectors: Float[Tensor, "P D"],
    log_interactive: Float[Tensor, " P"],
    admitted: Bool[Tensor, "P K"],
    temperature: float,
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K D"], Bool[Tensor, "B K"]]:
    """Pool the pairs of each image: a_pk = softmax_p(z_pk / temperature + log r_p), Z_k = Σ a z, G_k = Σ a g.

    Return Z and G, 0 for an interaction that no pair's object admits, and which some pair's does.
    """
    takes_part = index.pad(admitted)
    weights = index.pad(logits / temperature + log_interactive[:, None])
    weights = weights.masked_fill(~takes_part, IGNORED).softmax(1) * takes_part
    pooled = (weights * index.pad(logits)).sum(1)
    return pooled, torch.einsum("bqk,bqd->bkd", weights, index.pad(vectors)), takes_part.any(1)


def interaction_contrast(
    vectors: Float[Tensor, "B K D"],
    texts: Float[Tensor, "K D"],
    positive: Bool[Tensor, "B K"],
    asked: Bool[Tensor, "B K"],
    object_of: Int64[Tensor, " K"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the InfoNCE loss between the pooled vectors of interactions that the teacher has seen, and their texts.

    An anchor is an interaction seen in an image. The negatives of its vector are the texts of the object's other
    interactions that were asked there and not seen, and the texts of the batch's other anchors; those of its text are
    the vectors of the batch's other anchors. Whatever else is seen in an image is no negative there. Means over an
    image's anchors, then over all images.
    """
    image, seen = positive.nonzero(as_tuple=True)
    anchors = F.normalize(vectors[image, seen], dim=-1)
    is_same_object = object_of[seen][:, None] == object_of
    is_hard = is_same_object & asked[image] & ~positive[image]
    others = torch.eye(len(image), dtype=torch.bool, device=image.device).logical_not()
    is_seen_too = positive[image][:, seen] & others
    nearness = (scale * anchors @ texts[seen].T).masked_fill(is_seen_too, IGNORED)
    hard = (scale * anchors @ texts.T).masked_fill(~is_hard, IGNORED)
    to_texts = torch.cat([nearness, hard], 1).log_softmax(1)
    to_vectors = nearness.log_softmax(0)
    per_anchor = -(to_texts[:, : len(image)].diagonal() + to_vectors.diagonal()) / 2
    num_anchors = positive.sum(1).clamp(min=1)
    return (per_anchor / num_anchors[image]).sum() / len(positive)


@dataclass(frozen=True)
class PairLogits:
    """Outputs of the networks."""

    logits: Float[Tensor, "P K"]  # z, whatever the pair's object
    vectors: Float[Tensor, "P D"]  # g, unit norm
    log_interactive: Float[Tensor, " P"]  # log r
    words: Float[Tensor, "B Z D"] | None  # unit norm; None without a translator


class ClhoiStudent(Student):
    """Scores pairs by what a vision language model's view of their images has taught."""

    config: ClhoiConfig
    text_embedding: Tensor
    object_of: Tensor

    def __init__(self, config: ClhoiConfig, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int]) -> None:
        super().__init__(config, vocabulary)
        if "C" not in axes:
            raise UserError(
                "a student of method clhoi reads CLIP's spatial map, which this cache does not hold",
                where="teacher.spatial_map",
                expected="true",
                fix="set teacher.spatial_map: true and build the cache anew in another cache.folder",
            )
        self.logit_scale, self.logit_bias = bank.logit_scale, bank.logit_bias or 0.0
        self.form = ScoreForm("softmax" if bank.logit_bias is None else "sigmoid", config.targets.temperature)
        texts = torch.from_numpy(bank.text_embedding).float()
        joint, width, dropout = texts.shape[1], config.width, config.dropout
        self.register_buffer("text_embedding", texts)
        self.register_buffer("object_of", torch.from_numpy(vocabulary.object_of), persistent=False)

        features = (2 * axes["L"] + axes["M" if config.union_views == "all" else "L"]) * joint
        self.norm_features, self.norm_spatial = nn.LayerNorm(features), nn.LayerNorm(NUM_TERMS)
        self.to_pair = nn.Linear(features + NUM_TERMS, width)
        self.encode_map = MapEncoder(axes["C"], width)
        self.translator = (
            Translator(config.translator_queries, config.translator_layers, width, config.heads, dropout, joint)
            if config.translator
            else None
        )
        self.cognition = Cognition(config.cognition_layers, width, config.heads, dropout, config.translator)
        self.to_joint = nn.Linear(width, joint)
        if config.start == "union":
            nn.init.zeros_(self.to_joint.weight)
            nn.init.zeros_(self.to_joint.bias)
        self.to_interactive = nn.Linear(width, 1) if config.interactiveness else None
        # z is read by a sigmoid, and cosines to interaction texts share a large common part: a reference text, which
        # starts as the mean of the bank, takes it off, and a bias starts at odds of 1 to K.
        self.reference = nn.Parameter(texts.mean(0))
        self.bias = nn.Parameter(torch.tensor(-math.log(len(texts))))
        self.log_scale = nn.Parameter(torch.tensor(math.log(min(bank.logit_scale, MAX_SCALE))))
        self.log_contrast = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

    @property
    def extra_fields(self) -> tuple[str, ...]:
        name, config = self.config.vlm, self.config
        fields = [*self.scoring_fields, f"{name}/vlm_scores", f"{name}/vlm_asked"]
        if config.translator and config.context_weight > 0:
            fields += [f"{name}/context_embedding", f"{name}/context_mask"]
        if config.pair_weight > 0:
            fields.append(f"{name}/vlm_pair_scores")
        return tuple(fields)

    @property
    def scoring_fields(self) -> tuple[str, ...]:
        return ("spatial_map", "union_embedding") if self.config.union_views == "all" else ("spatial_map",)

    def forward(self, batch: PairBatch) -> PairLogits:
        levels = batch.extra["union_embedding"] if self.config.union_views == "all" else batch.union_feature
        regions = [batch.human_feature, batch.object_feature, levels]
        features = self.norm_features(torch.cat([region.float().flatten(1) for region in regions], -1))
        spatial = self.norm_spatial(spatial_code(batch.boxes_h, batch.boxes_o, batch.size_hw[batch.pair_image]))
        spatial_map = batch.extra["spatial_map"].float()
        cells = self.encode_map(spatial_map)
        context = None if self.translator is None else self.translator(cells)
        pairs = self.to_pair(torch.cat([features, spatial], -1))
        pairs = self.cognition(batch, pairs, cells, spatial_map.shape[2:], context)
        vectors = self.to_joint(pairs).float()
        if self.config.start == "union":
            vectors = vectors + F.normalize(levels.float().mean(1), dim=-1)
        vectors = F.normalize(vectors, dim=-1)
        with full_precision(vectors.device):
            scale = self.log_scale.exp().clamp(max=MAX_SCALE)
            cosine = vectors @ self.text_embedding.T - (vectors @ self.reference)[:, None]
            logits = scale * cosine + self.bias
        if self.to_interactive is None:
            log_interactive = torch.zeros_like(vectors[:, 0])
        else:
            log_interactive = F.logsigmoid(self.to_interactive(pairs)[:, 0].float())
        words = None if self.translator is None or context is None else self.translator.words(context)
        return PairLogits(logits, vectors, log_interactive, words)

    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        """Return the weighted losses, each a mean over images; contrasts are within one process's share of a batch."""
        config, name, outputs = self.config, self.config.vlm, self(batch)
        confidence = batch.extra[f"{name}/vlm_scores"].float()
        admitted = self.admitted[batch.labels_o]
        with full_precision(confidence.device):
            pooled, vectors, has_pair = pool_pairs(
                RaggedIndex.of(batch.pair_image, batch.num_images),
                outputs.logits,
                outputs.vectors,
                outputs.log_interactive,
                admitted,
                config.pooling_temperature,
            )
            asked = (batch.extra[f"{name}/vlm_asked"] > 0) & has_pair
            losses = {
                "interaction": config.interaction_weight
                * soft_focal(pooled, confidence, asked, config.focal_gamma).sum(1).mean()
            }
            if config.contrast_weight > 0:
                best = torch.where(asked, confidence, 0.0).amax(1, keepdim=True)
                positive = asked & (confidence >= config.positive_share * best) & (best > 0)
                scale = self.log_contrast.exp().clamp(max=MAX_SCALE)
                contrast = interaction_contrast(vectors, self.text_embedding, positive, asked, self.object_of, scale)
                losses["contrast"] = config.contrast_weight * contrast
            if config.union_weight > 0:
                similarity = batch.union_similarity.float()
                similarity = similarity.mean(1) if config.union_views == "all" else similarity[:, 0]
                of_clip = self.form.scores(self.logit_scale * similarity + self.logit_bias)
                divergence = self.form.divergence(of_clip, outputs.logits)
                losses["union"] = config.union_weight * mean_over_images(divergence, batch.pair_image, batch.num_images)
            if config.pair_weight > 0:
                of_pairs = batch.extra[f"{name}/vlm_pair_scores"].float()
                counted = asked[batch.pair_image] & admitted
                distance = soft_focal(outputs.logits, of_pairs, counted, config.focal_gamma).sum(1)
                losses["pair"] = config.pair_weight * mean_over_images(distance, batch.pair_image, batch.num_images)
            if self.translator is not None and outputs.words is not None and config.context_weight > 0:
                sentences = batch.extra[f"{name}/context_embedding"].float()
                mask = batch.extra[f"{name}/context_mask"] > 0
                scale = self.translator.log_scale.exp().clamp(max=MAX_SCALE)
                context = context_loss(outputs.words, sentences, mask, batch.image_embedding.float(), scale)
                losses["context"] = config.context_weight * context
        unlikely = torch.finfo(confidence.dtype).min
        of_teacher, of_student = (x.masked_fill(~asked, unlikely).argmax(1) for x in (confidence, pooled))
        return StepLosses(losses, {"interaction": (of_teacher == of_student)[asked.any(1)]})

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return r^w · the pair's own scores, and these alone as `interaction`."""
        score, outputs = self.config.score, self(batch)
        forms = {"sigmoid": outputs.logits.sigmoid(), "softmax": self.form.scores(outputs.logits)}
        interaction = forms["sigmoid"] * forms["softmax"] if score.form == "product" else forms[score.form]
        interactive = (score.interactiveness_exponent * outputs.log_interactive).exp()[:, None]
        rows = self.gate(interactive * interaction, batch)
        return {"student": rows["student"], "interaction": interaction, **rows}
