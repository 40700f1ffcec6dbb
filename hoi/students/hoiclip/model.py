"""HOICLIP on the cache: pairs attend to the frozen teacher's map and the image's detections.

The paper's parts: the interaction decoder with its shared attention over two memories, the frozen projection behind it,
a classifier of frozen texts, a verb adapter, a verb classifier that visual semantic arithmetic fills, and the
training-free enhancement. Its detector (box heads, Hungarian matching) is replaced by cached boxes: docs/hoiclip.md.

Shapes: B images, P pairs, K interactions, V verbs, M views, D the joint width, W the decoder's width.

Source: Ning et al., HOICLIP: Efficient Knowledge Transfer for HOI Detection with Vision-Language Models, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hoi.errors import UserError, command
from hoi.machine import full_precision
from hoi.matching import LabelTargets
from hoi.records import BranchScores, PairBatch, TextBank
from hoi.students.base import StepLosses, Student
from hoi.students.hoiclip.networks import (
    FrozenHead,
    InstanceTokens,
    InteractionClassifier,
    InteractionDecoder,
    Memory,
    PairQueries,
    cells_in_square,
    enhancement,
    in_square,
    instances_of,
    object_texts,
    sine_positions,
    union_of,
)
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.hoiclip.targets import ClassScales, PairTargets, RegionSums, verb_prototypes
from hoi.students.layers import RaggedIndex, focal_loss
from hoi.vocabulary import Vocabulary


class HoiclipStudent(Student):
    """Scores pairs from their own vector in the teacher's joint space."""

    config: HoiclipConfig
    target_scales: Tensor

    def __init__(self, config: HoiclipConfig, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int]) -> None:
        super().__init__(config, vocabulary)
        self.bank, self.vocabulary = bank, vocabulary
        if "C" not in axes or bank.visual is None:
            raise UserError(
                "this cache has no spatial map"
                if "C" not in axes
                else "this teacher takes no cell of its map to the joint space",
                where="method: hoiclip",
                expected="a cache made with teacher.spatial_map: true, by a CLIP ResNet or ViT",
                fix=f"build one: {command('teacher-cache', 'teacher.spatial_map=true', 'cache.folder=FOLDER')}",
            )
        self.head = FrozenHead(bank.visual)
        joint = bank.text_embedding.shape[1]
        width = config.width or self.head.width
        if width % config.heads:
            raise UserError(
                "the decoder's width is no multiple of its heads",
                where="width of the student",
                expected=f"a multiple of heads {config.heads}",
                got=width,
            )
        self.register_buffer("target_scales", torch.ones(len(vocabulary)))
        self.targets = PairTargets(config, bank)

        levels, views = axes["L"] * joint, {"none": 0, "first": 1, "all": axes["M"]}[config.query_union] * joint
        self.queries = PairQueries(levels, views, config.query_boxes, width)
        has_clip = config.layers > 0 and config.memories != "instances"
        has_instances = config.layers > 0 and config.memories != "clip"
        is_own_width = width == self.head.width
        self.from_map = nn.Linear(self.head.width, width) if has_clip and not is_own_width else None
        self.instances = InstanceTokens(object_texts(bank, vocabulary), levels, width) if has_instances else None
        self.decoder = InteractionDecoder(config.layers, width, config.heads, config.feedforward, config.dropout)
        self.to_token = None if is_own_width and not config.union_residual else nn.Linear(width, self.head.width)
        if config.union_residual and self.to_token is not None:
            # Before the first step, the union crop's own embedding is what the classifiers see.
            nn.init.zeros_(self.to_token.weight)
            nn.init.zeros_(self.to_token.bias)
        offset = config.targets.temperature if config.union_residual else None
        self.classify = InteractionClassifier(bank, vocabulary, config.verb_weight, offset)

    @property
    def extra_fields(self) -> tuple[str, ...]:
        sees_map = self.config.layers > 0 and self.config.memories != "instances"
        return (*(("spatial_map",) if sees_map else ()), "union_embedding")

    @torch.no_grad()
    def prepare(self, batches: Iterable[PairBatch], labels: LabelTargets | None) -> None:
        """Fill the verb classifier by visual semantic arithmetic, and set the scale of each class's soft target."""
        texts = torch.as_tensor(self.bank.text_embedding)
        sums = RegionSums.empty(self.vocabulary, texts.shape[1])
        scales = ClassScales(self.config.targets.top_share, self.config.targets.top_least)
        for batch in batches:
            here = batch.to(self.admitted.device)
            admitted = self.admitted[here.labels_o]
            if self.by_labels:
                assert labels is not None
                weights = (labels.of(here)[0] & admitted).float()
            else:
                weights = self.targets.raw(here, admitted, self.real(here))
                scales.add(weights, admitted)
            sums.add(weights, here.extra["union_embedding"][:, 0], here.object_feature[:, -1], here.labels_o)
        if not self.by_labels:
            self.target_scales.copy_(scales.scales(len(self.vocabulary)))
        if self.config.verb_weight > 0:
            self.classify.verbs.copy_(verb_prototypes(sums, texts, self.vocabulary)[0])

    def decoded(self, batch: PairBatch) -> list[Float[Tensor, "P D"]]:
        """Return the unit joint vector of every pair after each layer."""
        index = RaggedIndex.of(batch.pair_image, batch.num_images)
        size_hw = batch.size_hw[batch.pair_image]
        crops = batch.extra["union_embedding"].float()
        views = crops if self.config.query_union == "all" else crops[:, :1]
        queries = self.queries(batch, views)
        unions = union_of(batch.boxes_h, batch.boxes_o)
        positions = sine_positions(in_square(unions, size_hw), queries.shape[1])
        tokens = self.decoder(queries, positions, index, self._memories(batch, queries.shape[1]))
        if self.to_token is not None:
            tokens = [self.to_token(each) for each in tokens]
        with full_precision(batch.boxes_h.device):
            if not self.config.union_residual:
                return [F.normalize(self.head.project(each.float()), dim=-1) for each in tokens]
            union = F.normalize(views.mean(1), dim=-1)
            # Without the projection's bias, so that a zero token changes nothing.
            return [F.normalize(union + each.float() @ self.head.projection[:-1], dim=-1) for each in tokens]

    def forward(self, batch: PairBatch) -> Float[Tensor, "P K"]:
        """Return logits; −inf at interactions that the pair's object does not admit."""
        logits = self._logits(self.decoded(batch)[-1])
        return logits.masked_fill(~self.admitted[batch.labels_o], -torch.inf)

    def losses(self, batch: PairBatch, labels: LabelTargets | None) -> StepLosses:
        """Return the focal loss of every layer's logits, against labels or the teacher's rescaled scores."""
        config = self.config
        counted = admitted = self.admitted[batch.labels_o]
        if self.by_labels:
            assert labels is not None
            targets = labels.of(batch)[0].float()
            counted = admitted & labels.seen.to(admitted.device)
        else:
            raw = self.targets.raw(batch, admitted, self.real(batch))
            targets = (raw / self.target_scales).clamp(max=1)
        every = [self._logits(joint) for joint in self.decoded(batch)]
        losses = {
            f"layer_{number}": focal_loss(logits, targets, counted, config.focal_gamma, config.focal_alpha)
            for number, logits in enumerate(every, start=1)
        }
        count = torch.where(counted, targets, 0.0).sum()
        agreement = {}
        if not self.by_labels:
            likeliest = every[-1].masked_fill(~admitted, -torch.inf).argmax(-1)
            agreement["student"] = (targets.argmax(-1) == likeliest)[admitted.any(-1)]
        return StepLosses(losses, agreement, dict.fromkeys(losses, count))

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        config = self.config
        scores, most = self(batch).sigmoid(), 1.0
        if config.enhancement_classes > 0:
            gain = enhancement(batch.image_similarity.float(), config.enhancement_classes)
            scores, most = scores + gain[batch.pair_image], most + 0.5
        if config.score.fusion == "sum":
            scores, most = scores + batch.scores_o[:, None] ** 2, most + 1.0
        # Into [0, 1], which changes no ranking.
        scores = (scores / most).clamp(0, 1)
        if config.score.weights.union > 0:
            scores = scores * self.targets.of_unions(batch) ** config.score.weights.union
        return self.gate(scores, batch)

    def _logits(self, joint: Tensor) -> Tensor:
        with full_precision(joint.device):
            return self.classify(joint)

    def _memories(self, batch: PairBatch, width: int) -> list[Memory]:
        memories = []
        if "spatial_map" in self.extra_fields:
            spatial_map = batch.extra["spatial_map"].float()
            with full_precision(spatial_map.device):
                tokens = self.head.tokens(spatial_map, batch.image_embedding.float())
            cells = cells_in_square(spatial_map.shape[2], spatial_map.shape[3], spatial_map.device)
            positions = sine_positions(cells, width).repeat(batch.num_images, 1)
            image = torch.arange(batch.num_images, device=spatial_map.device).repeat_interleave(len(cells))
            flat = tokens.flatten(0, 1) if self.from_map is None else self.from_map(tokens.flatten(0, 1))
            memories.append(Memory(flat, positions, RaggedIndex.of(image, batch.num_images)))
        if self.instances is not None:
            instances = instances_of(batch, self.vocabulary.person_idx)
            tokens = self.instances(instances.feature.float(), instances.labels)
            positions = sine_positions(in_square(instances.boxes, batch.size_hw[instances.image]), width)
            memories.append(Memory(tokens, positions, RaggedIndex.of(instances.image, batch.num_images)))
        return memories
