"""What HOICLIP is made of, by hand: attention to two memories, positions, prototypes, soft targets, frozen layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hoi.students.hoiclip.networks import (
    Attention,
    DecoderLayer,
    DualAttention,
    FrozenHead,
    Memory,
    cells_in_square,
    in_square,
    instances_of,
    sine_positions,
)
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.hoiclip.targets import ClassScales, PairTargets, RegionSums, verb_prototypes
from hoi.students.layers import RaggedIndex
from hoi.teachers import build_teacher
from hoi.vocabulary import Vocabulary
from tests.fakes.models import teacher_config
from tests.fakes.splits import ADMITTED, VOCABULARY, make_bank, make_map_split


@torch.no_grad()
def copy_attention(own: Attention, torchs: nn.MultiheadAttention) -> None:
    parts = (own.query, own.key, own.value)
    torchs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    torchs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    torchs.out_proj.load_state_dict(own.out.state_dict())


def of_one_image(num_rows: int) -> RaggedIndex:
    return RaggedIndex.of(torch.zeros(num_rows).long(), 1)


def test_each_memorys_result_is_normalised_before_the_sum() -> None:
    torch.manual_seed(0)
    dual, torchs = DualAttention(16, 4, 0.1).eval(), nn.MultiheadAttention(16, 4, batch_first=True)
    copy_attention(dual.attention, torchs)
    queries, positions = torch.randn(3, 16), torch.randn(3, 16)
    memories = [Memory(torch.randn(n, 16), torch.randn(n, 16), of_one_image(n)) for n in (5, 2)]
    expected = torch.zeros(3, 16)
    for memory in memories:
        keys = memory.tokens + memory.positions
        found, _ = torchs((queries + positions)[None], keys[None], memory.tokens[None])
        expected += F.layer_norm(queries + found[0], (16,))
    result = dual(queries, positions, of_one_image(3), memories)
    assert torch.allclose(result, expected, atol=1e-5)


def test_a_layer_with_one_memory_is_torchs_decoder_layer() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(16, 4, 24, 0.1).eval()
    torchs = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True, norm_first=False).eval()
    copy_attention(layer.among_queries, torchs.self_attn)
    copy_attention(layer.to_memories.attention, torchs.multihead_attn)
    norms = ((torchs.norm1, layer.norm_first), (torchs.norm2, layer.to_memories.norm), (torchs.norm3, layer.norm_last))
    for theirs, own in (*norms, (torchs.linear1, layer.network[0]), (torchs.linear2, layer.network[3])):
        theirs.load_state_dict(own.state_dict())
    queries, tokens = torch.randn(4, 16), torch.randn(6, 16)
    memory = Memory(tokens, torch.zeros(6, 16), of_one_image(6))
    found = layer(queries, torch.zeros(4, 16), of_one_image(4), [memory])
    assert torch.allclose(found, torchs(queries[None], tokens[None])[0], atol=1e-5)


def test_every_detection_of_the_pairs_is_one_instance() -> None:
    batch = make_map_split((2, 1)).whole
    # Image 0: a human with a bicycle and with another person. Image 1: rows that come before those of image 0.
    batch = replace(
        batch,
        rows_h=torch.tensor([7, 7, 2]),
        rows_o=torch.tensor([9, 8, 3]),
        labels_o=torch.tensor([1, 0, 2]),
        boxes_o=torch.arange(12, dtype=torch.float32).view(3, 4),
    )
    found = instances_of(batch, person_idx=0)
    assert found.image.tolist() == [0, 0, 0, 1, 1]
    assert found.labels.tolist() == [0, 0, 1, 0, 2]
    assert torch.equal(found.boxes[1:3], batch.boxes_o[[1, 0]])
    assert torch.equal(found.feature[0], batch.human_feature[0])
    alone = instances_of(replace(batch, rows_o=batch.rows_h, labels_o=torch.tensor([3, 3, 3])), person_idx=0)
    assert alone.labels.tolist() == [0, 0]


def test_boxes_and_cells_stand_in_the_same_padded_square() -> None:
    # An image of 100 x 200 (height x width) is padded to 200 x 200: its top left quarter starts at y = 50.
    boxes, size = torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([[100.0, 200.0]])
    assert in_square(boxes, size).tolist() == [[0.25, 0.5, 0.5, 0.5]]
    cells = cells_in_square(2, 2, torch.device("cpu"))
    assert cells.tolist()[:3] == [[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.75, 0.25, 0.5, 0.5]]
    assert in_square(torch.tensor([[100.0, 0.0, 200.0, 50.0]]), size)[0, :2].tolist() == [0.75, 0.375]
    found = sine_positions(cells, 18)
    assert found.shape == (5, 18)
    assert (found[:, 16:] == 0).all()
    assert len({tuple(row) for row in found.tolist()}) == 5


def pairs(*interactions: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(interactions), 6).float()


def test_a_verb_is_the_mean_of_unions_without_objects() -> None:
    # "ride bicycle" twice in one image and once in another: every pair counts.
    sums = RegionSums.empty(VOCABULARY, 4)
    axis = torch.eye(4)
    sums.add(pairs(0, 0), axis[[0, 1]], axis[[3, 3]], torch.tensor([1, 1]))
    sums.add(pairs(0), axis[[0]], axis[[3]], torch.tensor([1]))
    texts = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    found, seen = verb_prototypes(sums, texts, VOCABULARY)
    assert seen.tolist() == [True, False, False, False, False]
    union = torch.tensor([2.0, 1.0, 0.0, 0.0]) / 5**0.5
    assert torch.allclose(found[0], F.normalize(union - axis[3], dim=-1), atol=1e-6)
    assert torch.allclose(found.norm(dim=-1), torch.ones(5), atol=1e-6)


def test_a_verb_without_a_label_is_made_of_texts() -> None:
    # The public code takes prototypes of unseen verbs from their labels.
    texts = torch.from_numpy(make_bank().text_embedding)
    found = []
    for seed in (0, 1):
        sums = RegionSums.empty(VOCABULARY, 16)
        pictures = F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)
        sums.add(pairs(0, 4) * torch.tensor([[1.0], [0.0]]), pictures, pictures.flip(1), torch.tensor([1, 2]))
        found.append(verb_prototypes(sums, texts, VOCABULARY)[0])
    assert not torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1:], found[1][1:])
    of_dogs = F.normalize(texts[3:].sum(0), dim=-1)
    assert torch.allclose(found[0][3], F.normalize(texts[4] - of_dogs, dim=-1), atol=1e-5)


def test_sums_are_the_same_to_the_bit_in_any_order_of_shards() -> None:
    rng = np.random.default_rng(0)
    num = 400
    features = torch.from_numpy(rng.normal(size=(num, 8))).half().float()
    weights = torch.from_numpy(rng.uniform(size=(num, 6)) ** 4).float()
    labels = torch.from_numpy(rng.integers(0, 4, num))
    whole, in_parts = RegionSums.empty(VOCABULARY, 8), RegionSums.empty(VOCABULARY, 8)
    whole.add(weights, features, features.flip(1), labels)
    for rows in np.array_split(rng.permutation(num), 7):
        in_parts.add(weights[rows], features[rows], features[rows].flip(1), labels[rows])
    assert torch.equal(whole.union, in_parts.union)
    assert torch.equal(whole.object, in_parts.object)


def test_a_class_s_top_pairs_have_the_target_one() -> None:
    scales = ClassScales(share=0.01, least=3)
    raw = torch.zeros(400, 2)
    raw[:, 0], raw[:5, 1] = torch.arange(400) / 1000, torch.tensor([0.1, 0.5, 0.3, 0.2, 0.4])
    admitted = torch.ones(400, 2, dtype=torch.bool)
    admitted[5:, 1] = False
    scales.add(raw[:250], admitted[:250])
    scales.add(raw[250:], admitted[250:])
    found = scales.scales(3)
    # A hundredth of 400 pairs are four; of five pairs the least of three; no pair admits the last class.
    assert found.tolist() == pytest.approx([0.396, 0.3, 1.0])
    assert ((raw[:, 0] / found[0]).clamp(max=1) == 1).sum() == 4
    assert ClassScales(share=0.0, least=3).scales(2).tolist() == [1, 1]


def test_targets_are_union_scores_times_the_images() -> None:
    split = make_map_split((2, 1))
    batch, scale = split.whole, split.bank.logit_scale
    admitted = ADMITTED[batch.labels_o]
    config = HoiclipConfig(method="hoiclip", targets={"image_exponent": 0.5})
    found = PairTargets(config, split.bank).raw(batch, admitted, admitted)
    union = (scale * batch.union_similarity[:, 0].float() / 2).softmax(-1)
    image = (scale * batch.image_similarity.float() / 2).softmax(-1)
    gate = (image / image.max(1, keepdim=True).values)[batch.pair_image].sqrt()
    assert torch.allclose(found, union * gate * admitted)
    ungated = HoiclipConfig(method="hoiclip", targets={"image_exponent": 0.0})
    assert torch.allclose(PairTargets(ungated, split.bank).raw(batch, admitted, admitted), union * admitted)


VOCABULARY_OF_TEXTS = Vocabulary(("person", "dog"), ("pet",), (("pet", "dog"),))


@torch.no_grad()
def test_a_vits_cells_are_projected_by_its_last_layers(tmp_path: Path) -> None:
    teacher: Any = build_teacher(teacher_config(tmp_path, "vit", spatial_map=True), "cpu")
    visual = teacher._model.visual
    visual.ln_post.weight.uniform_(0.5, 1.5)
    visual.ln_post.bias.normal_()
    head = FrozenHead(teacher.text_bank(VOCABULARY_OF_TEXTS).visual)
    maps = torch.randn(2, 32, 4, 4)
    embedding = F.normalize(torch.randn(2, 16), dim=-1)
    tokens = head.tokens(maps, embedding)
    expected = visual.ln_post(maps.flatten(2).transpose(1, 2)) @ visual.proj
    assert torch.allclose(head.project(tokens)[:, 1:], expected, atol=1e-5)
    pooled = head.project(tokens)[:, 0]
    assert torch.allclose(F.normalize(pooled, dim=-1), embedding, atol=1e-4)
    assert torch.allclose(pooled.norm(dim=-1), expected.norm(dim=-1).mean(1), rtol=1e-3)


@torch.no_grad()
def test_a_resnets_cells_are_projected_by_its_pool(tmp_path: Path) -> None:
    teacher: Any = build_teacher(teacher_config(tmp_path, "resnet", spatial_map=True), "cpu")
    pool = teacher._model.visual.attnpool
    # Without queries and positions the pool attends to its cells, and to their mean, alike.
    for zero in (pool.q_proj.weight, pool.q_proj.bias, pool.positional_embedding):
        zero.zero_()
    for bias in (pool.v_proj.bias, pool.c_proj.bias):
        bias.normal_()
    head = FrozenHead(teacher.text_bank(VOCABULARY_OF_TEXTS).visual)
    maps = torch.randn(2, 256, 2, 2)
    cells = head.project(head.tokens(maps, torch.zeros(2, 16))[:, 1:])
    assert torch.allclose(cells.mean(1), pool(maps), atol=1e-5)


def test_a_bank_has_a_head_only_where_maps_are_cached(tmp_path: Path) -> None:
    for kind, spatial_map in (("vit", False), ("vit_attention", True), ("timm_convolution", True)):
        teacher = build_teacher(teacher_config(tmp_path / str(spatial_map), kind, spatial_map=spatial_map), "cpu")
        assert teacher.text_bank(VOCABULARY_OF_TEXTS).visual is None
