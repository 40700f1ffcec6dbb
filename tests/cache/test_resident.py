"""A split kept on the training device gives the same batches; whether it is kept follows from its size."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import CacheSplit, Mode, ResidentSplit, feature_bytes, is_resident, training_source
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.training.loop import BatchSource
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import photo_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    config = photo_pipeline(tmp_path_factory.mktemp("dataset"), (2, 0, 1, 5, 3, 1), teacher={"spatial_map": True})
    teacher_cache.build_cache(config, RandomSignals)
    return config


@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_batches_of_a_resident_split_are_the_same_bit_for_bit(config: PipelineConfig, mode: Mode) -> None:
    split = CacheSplit.open(config.cache.folder, "test", mode=mode)
    source = training_source(split, CPU, "always")
    assert isinstance(source, ResidentSplit)
    assert isinstance(source, BatchSource)
    assert source.num_images == split.num_images
    extra = ("union_embedding", "spatial_map")
    usual = list(split.batches(2, np.random.default_rng(0), extra))
    for ours, theirs in zip(source.batches(2, np.random.default_rng(0), extra), usual, strict=True):
        for field in fields(theirs):
            found, expected = getattr(ours, field.name), getattr(theirs, field.name)
            pairs = [(found[name], expected[name]) for name in extra] if field.name == "extra" else [(found, expected)]
            for tensor, other in pairs:
                assert tensor.dtype == other.dtype, field.name
                assert torch.equal(tensor, other), field.name


def test_a_device_holds_only_the_features_batches_need(config: PipelineConfig) -> None:
    split = CacheSplit.open(config.cache.folder, "test")
    names = ("image_embedding", "image_similarity", "detection_feature", "union_feature", "union_similarity")
    assert feature_bytes(split) == sum(split.table(name).nbytes for name in names)


def test_a_split_is_kept_on_a_gpu_if_half_of_it_is_enough(config: PipelineConfig) -> None:
    split = CacheSplit.open(config.cache.folder, "test")
    assert training_source(split, CPU, "auto") is split
    assert training_source(split, CPU, "never") is split
    assert is_resident(500, 1000, "auto")
    assert not is_resident(501, 1000, "auto")
    assert is_resident(1000, 1000, "always")
    assert not is_resident(1, 1000, "never")
    with pytest.raises(UserError, match=r"no room for the cached features · where: train.resident · expected: 1.0 GB"):
        is_resident(10**9, 10**9 - 1, "always")


def test_a_cuda_device_is_where_batches_are_made(config: PipelineConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    split = CacheSplit.open(config.cache.folder, "test")
    for ours, theirs in zip(ResidentSplit(split, torch.device("cuda")).batches(2), split.batches(2), strict=True):
        assert ours.union_similarity.device.type == ours.labels_o.device.type == "cuda"
        assert torch.equal(ours.human_feature.cpu(), theirs.human_feature)
