"""A split kept on the training device, or only its first images: the same batches, or some of them."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch

from hoi.cache.build.run import build_cache
from hoi.cache.read.split import (
    CacheSplit,
    FirstImages,
    Mode,
    ResidentSplit,
    feature_bytes,
    is_resident,
    training_source,
)
from hoi.errors import UserError
from hoi.training.distributed import Group
from hoi.training.loop import BatchSource
from tests.fakes.extractors import PASS, RandomSignals, VlmSignalsOf
from tests.fakes.pipelines import photo_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CacheSplit:
    sections = {"teacher": {"spatial_map": True}, "vlms": {"coca": PASS}}
    config = photo_pipeline(tmp_path_factory.mktemp("dataset"), (2, 0, 1, 5, 3, 1), **sections)
    build_cache(config, RandomSignals, VlmSignalsOf("coca"))
    return CacheSplit.open(config.cache.folder, "test")


@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_batches_of_a_resident_split_are_the_same_bit_for_bit(split: CacheSplit, mode: Mode) -> None:
    split = CacheSplit.open(split.folder.parent, "test", mode=mode)
    source = training_source(split, CPU, "always")
    assert isinstance(source, ResidentSplit)
    assert isinstance(source, BatchSource)
    assert source.num_images == split.num_images
    extra = ("union_embedding", "spatial_map", "coca/vlm_scores", "coca/vlm_pair_scores")
    usual = list(split.batches(2, np.random.default_rng(0), extra))
    for ours, theirs in zip(source.batches(2, np.random.default_rng(0), extra), usual, strict=True):
        for field in fields(theirs):
            found, expected = getattr(ours, field.name), getattr(theirs, field.name)
            pairs = [(found[name], expected[name]) for name in extra] if field.name == "extra" else [(found, expected)]
            for tensor, other in pairs:
                assert tensor.dtype == other.dtype, field.name
                assert torch.equal(tensor, other), field.name


def test_a_device_holds_only_the_features_batches_need(split: CacheSplit) -> None:
    names = ("image_embedding", "image_similarity", "detection_feature", "union_feature", "union_similarity")
    assert feature_bytes(split) == sum(split.table(name).nbytes for name in names)
    # Image scores in float16 of three interactions for six images, pair scores for twelve pairs.
    assert split.num_bytes("coca/vlm_scores") == 6 * 3 * 2
    assert split.num_bytes("coca/vlm_pair_scores") == 12 * 3 * 2


def test_a_split_is_kept_on_a_gpu_if_half_of_it_is_enough(split: CacheSplit) -> None:
    assert training_source(split, CPU, "auto") is split
    assert training_source(split, CPU, "never") is split
    assert is_resident(500, 1000, "auto")
    assert not is_resident(501, 1000, "auto")
    assert is_resident(1000, 1000, "always")
    assert not is_resident(1, 1000, "never")
    with pytest.raises(UserError, match=r"no room for the cached features · where: train.resident · expected: 1.0 GB"):
        is_resident(10**9, 10**9 - 1, "always")


def test_a_cuda_device_is_where_batches_are_made(split: CacheSplit) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for ours, theirs in zip(ResidentSplit(split, torch.device("cuda")).batches(2), split.batches(2), strict=True):
        assert ours.union_similarity.device.type == ours.labels_o.device.type == "cuda"
        assert torch.equal(ours.human_feature.cpu(), theirs.human_feature)


def test_a_larger_number_keeps_the_smaller_ones_images(split: CacheSplit) -> None:
    assert isinstance(FirstImages(split, 3), BatchSource)
    chosen = [set(FirstImages(split, number).rows.tolist()) for number in (1, 3, 5, 6, 99)]
    assert [len(rows) for rows in chosen] == [1, 3, 5, 6, 6]
    assert all(fewer <= more for fewer, more in pairwise(chosen))
    assert FirstImages(split, 99).num_images == 6


@pytest.mark.parametrize("is_resident", [False, True])
def test_all_images_give_the_batches_of_the_split(split: CacheSplit, is_resident: bool) -> None:
    source = ResidentSplit(split, torch.device("cpu")) if is_resident else split
    names = ("union_embedding",)
    usual = split.batches(4, np.random.default_rng(2), names)
    for ours, theirs in zip(FirstImages(source, 6).batches(4, np.random.default_rng(2), names), usual, strict=True):
        assert torch.equal(ours.image_rows, theirs.image_rows)
        assert torch.equal(ours.pair_rows, theirs.pair_rows)
        assert torch.equal(ours.union_similarity, theirs.union_similarity)
        assert torch.equal(ours.extra["union_embedding"], theirs.extra["union_embedding"])


def test_every_chosen_image_comes_once_an_epoch_and_no_other(split: CacheSplit) -> None:
    few = FirstImages(split, 3)
    seen = torch.cat([batch.image_rows for batch in few.batches(2, np.random.default_rng(0))])
    assert sorted(seen.tolist()) == few.rows.tolist()


@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_processes_share_every_batch(split: CacheSplit, mode: Mode) -> None:
    split = CacheSplit.open(split.folder.parent, "test", mode=mode)
    whole = FirstImages(split, None).batches(5, np.random.default_rng(1))
    shares = [FirstImages(split, None, Group(rank, 2).own).batches(5, np.random.default_rng(1)) for rank in range(2)]
    counts = []
    for batch, first, second in zip(whole, *shares, strict=True):
        counts.append((batch.num_images, first.num_images, second.num_images))
        for name in ("image_rows", "pair_rows", "union_similarity", "human_feature", "boxes_o"):
            together = torch.cat([getattr(first, name), getattr(second, name)])
            assert torch.equal(together, getattr(batch, name))
        assert torch.equal(torch.cat([first.pair_image, second.pair_image + first.num_images]), batch.pair_image)
    assert counts == [(5, 2, 3), (1, 0, 1)]
