"""Fewer images of a split, as a training source of their own."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import CacheSplit, FirstImages, ResidentSplit
from hoi.config import PipelineConfig
from hoi.training.distributed import Group
from hoi.training.loop import BatchSource
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import photo_pipeline


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> CacheSplit:
    config: PipelineConfig = photo_pipeline(tmp_path_factory.mktemp("dataset"), (2, 0, 1, 5, 3, 1))
    teacher_cache.build_cache(config, RandomSignals)
    return CacheSplit.open(config.cache.folder, "test")


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
def test_processes_share_every_batch(split: CacheSplit, mode: Literal["memory", "mapped"]) -> None:
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
