"""Batches hold exactly what the records held, wherever the tables lie; a cache that is not the right one is refused."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi.cache.build.run import build_cache
from hoi.cache.read import split as dataset
from hoi.cache.read.split import (
    CacheSplit,
    FirstImages,
    Mode,
    ResidentSplit,
    feature_bytes,
    is_resident,
    open_split,
    training_source,
)
from hoi.config import PipelineConfig
from hoi.datasets import load_vocabulary, open_images
from hoi.records import ImageSignals, PairBatch
from hoi.training.distributed import Group
from hoi.training.loop import BatchSource
from tests.fakes.extractors import PASS, RandomSignals, VlmSignalsOf
from tests.fakes.pipelines import photo_pipeline, refused

CPU = torch.device("cpu")
NUM_PAIRS = (2, 0, 1, 5, 3, 1)
UNREADABLE = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("dataset")
    config = photo_pipeline(folder, NUM_PAIRS, teacher={"spatial_map": True}, vlms={"coca": PASS})
    (folder / "images" / f"{UNREADABLE:02d}.png").write_bytes(b"no image")
    build_cache(config, RandomSignals, VlmSignalsOf("coca"))
    return config


@pytest.fixture(params=["memory", "mapped"])
def split(config: PipelineConfig, request: pytest.FixtureRequest) -> CacheSplit:
    mode: Mode = request.param
    return CacheSplit.open(config.cache.folder, "test", mode=mode)


@pytest.fixture(scope="module")
def records(config: PipelineConfig) -> list[ImageSignals | None]:
    source = open_images(config.dataset, "test")
    extractor = RandomSignals(config, load_vocabulary(config.dataset), "cpu")
    rows = range(len(NUM_PAIRS))
    return [extractor.extract([source.image_ids[r]], [source.read(r)])[0] if r != UNREADABLE else None for r in rows]


@pytest.mark.parametrize("rows", [[0], [1], [3, 0], [5, 3, 2, 1, 0], [2, 2]])
def test_a_batch_holds_what_the_records_held(
    split: CacheSplit, records: list[ImageSignals | None], rows: list[int]
) -> None:
    batch = split.batch(np.array(rows), extra=("spatial_map", "union_embedding"))
    chosen = [record for record in (records[row] for row in rows) if record is not None]
    humans, objects = ([r.pairs_ho[:, column] for r in chosen] for column in (0, 1))
    of_image = ("size_hw", "image_embedding", "image_similarity")
    expected = {name: np.stack([getattr(r, name) for r in chosen]) for name in of_image}
    expected["pair_image"] = np.repeat(np.arange(len(rows)), [len(r.pairs_ho) for r in chosen])
    for suffix, role, paired in (("h", "human", humans), ("o", "object", objects)):
        of = list(zip(chosen, paired, strict=True))
        expected[f"boxes_{suffix}"] = np.concatenate([r.detections.boxes_xyxy[row] for r, row in of])
        expected[f"scores_{suffix}"] = np.concatenate([r.detections.scores[row] for r, row in of])
        expected[f"{role}_feature"] = np.concatenate([r.detection_feature[row] for r, row in of])
    expected["labels_o"] = np.concatenate([r.detections.labels[row] for r, row in of])
    for name in ("union_feature", "union_similarity"):
        expected[name] = np.concatenate([getattr(r, name) for r in chosen])
    for name, value in expected.items():
        np.testing.assert_array_equal(getattr(batch, name).numpy(), value, err_msg=name)
    np.testing.assert_array_equal(batch.extra["union_embedding"], np.concatenate([r.union_embedding for r in chosen]))
    np.testing.assert_array_equal(batch.extra["spatial_map"], np.stack([r.spatial_map for r in chosen]))
    np.testing.assert_array_equal(split.table("union_similarity")[batch.pair_rows], batch.union_similarity)
    # Pairs of one image that share a human, or an object, and no others, share a row of the split's detections.
    keys = [[(row, n) for row, some in zip(rows, of, strict=True) for n in some] for of in (humans, objects)]
    for shared, detections in zip(keys, (batch.rows_h, batch.rows_o), strict=True):
        assert [[a == b for b in shared] for a in shared] == (detections[:, None] == detections).tolist()
    np.testing.assert_array_equal(split.boxes_xyxy[batch.rows_h], batch.boxes_h)
    np.testing.assert_array_equal(split.boxes_xyxy[batch.rows_o], batch.boxes_o)
    floats = (batch.size_hw, batch.union_similarity, batch.human_feature, batch.boxes_h, batch.extra["spatial_map"])
    assert {t.dtype for t in floats} == {torch.float32}
    whole = (batch.image_rows, batch.pair_image, batch.labels_o, batch.pair_rows, batch.rows_h, batch.rows_o)
    assert {t.dtype for t in whole} == {torch.int64}


def test_the_tables_lie_flat_over_all_shards(split: CacheSplit, records: list[ImageSignals | None]) -> None:
    assert len(split.manifest.shards) == 3
    assert split.image_ids == [f"{row:02d}.png" for row in range(6)]
    assert split.is_readable.tolist() == [row != UNREADABLE for row in range(6)]
    assert np.diff(split.pair_offsets).tolist() == [2, 0, 1, 5, 0, 1]
    assert np.diff(split.detection_offsets).tolist() == [3, 0, 2, 6, 0, 2]
    assert (split.num_images, split.num_pairs) == (6, 9)
    assert split.pair_image.tolist() == [0, 0, 2, 3, 3, 3, 3, 3, 5]
    kept = [r for r in records if r is not None]
    np.testing.assert_array_equal(split.boxes_xyxy, np.concatenate([r.detections.boxes_xyxy for r in kept]))
    first = [0, 3, 5, 11]
    expected = [r.pairs_ho + start for r, start in zip([r for r in kept if len(r.pairs_ho)], first, strict=True)]
    np.testing.assert_array_equal(split.pairs_ho, np.concatenate(expected))


def test_the_vocabulary_and_the_texts_come_with_it(split: CacheSplit, config: PipelineConfig) -> None:
    vocabulary = load_vocabulary(config.dataset)
    bank = RandomSignals(config, vocabulary, "cpu").text_bank
    assert split.vocabulary == vocabulary
    np.testing.assert_array_equal(split.text_bank.text_embedding, bank.text_embedding)
    assert (split.text_bank.logit_scale, split.text_bank.logit_bias) == (50.0, None)
    assert split.text_bank.prompts == bank.prompts


def test_an_epoch_holds_every_readable_image_once(split: CacheSplit) -> None:
    def rows(rng: np.random.Generator | None) -> list[int]:
        return [row for batch in split.batches(2, rng) for row in batch.image_rows.tolist()]

    assert rows(None) == [0, 1, 2, 3, 5]
    shuffled = rows(np.random.default_rng(1))
    assert sorted(shuffled) == [0, 1, 2, 3, 5] != shuffled
    assert rows(np.random.default_rng(1)) == shuffled


def test_an_unreadable_image_or_an_unknown_field_is_no_batch(split: CacheSplit) -> None:
    with pytest.raises(ValueError, match="asks for an unreadable image"):
        split.batch(np.array([0, UNREADABLE]))
    for name in ("mystery", "scores", "image_id", "pair_offsets"):
        error = refused(split.batch, np.array([0]), extra=(name,))
        assert error.what == f"this cache has no field '{name}' of images or pairs"
        assert str(error.expected).startswith("one of size_hw")


def test_batches_planned_together_equal_those_made_alone(split: CacheSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("union_embedding", "spatial_map")
    alone = [split.batch(np.array(rows), names) for rows in ([0, 1], [2, 3], [5])]
    for planned in (1, 4, 512):
        monkeypatch.setattr(dataset, "PLANNED_IMAGES", planned)
        assert digests(split.batches(2, extra=names)) == digests(alone)


def test_a_batch_without_pairs_or_images_has_no_rows(split: CacheSplit) -> None:
    for rows in ([1], []):
        batch = split.batch(np.array(rows, np.int64))
        assert (batch.num_images, batch.num_pairs) == (len(rows), 0)
        assert batch.union_similarity.shape == (0, *split.table("union_similarity").shape[1:])
        assert batch.human_feature.shape == (0, *split.table("detection_feature").shape[1:])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_several_processes_read_what_this_one_reads(config: PipelineConfig, method: str) -> None:
    modes: tuple[Mode, ...] = ("memory", "mapped")
    splits = [CacheSplit.open(config.cache.folder, "test", mode=mode) for mode in modes]
    expected = [epoch_digests(split) for split in splits]
    opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert not [name for name in opened if name.endswith(".h5")]
    assert all(len(pickle.dumps(split)) < 1000 for split in splits)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(epoch_digests, splits, chunksize=1) == expected


def digest(batch: PairBatch) -> str:
    """Name, dtype, shape and bytes of everything that a batch holds."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "extra"}
    parts = sorted({**tensors, **batch.extra}.items())
    described = [f"{name} {t.dtype} {tuple(t.shape)}".encode() + t.numpy().tobytes() for name, t in parts]
    return hashlib.sha256(b"".join(described)).hexdigest()


def digests(batches: Iterable[PairBatch]) -> list[str]:
    return list(map(digest, batches))


def epoch_digests(split: CacheSplit) -> list[str]:
    return digests(split.batches(1, np.random.default_rng(0)))


def test_a_cache_that_is_not_there_or_not_complete_is_refused(config: PipelineConfig, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    assert refused(CacheSplit.open, tmp_path, "test").what == "there is no teacher cache"
    shutil.copytree(config.cache.folder, tmp_path, dirs_exist_ok=True)
    first = folder / "shard-00000.h5"
    whole = first.read_bytes()
    first.write_bytes(b"x" * len(whole))
    error = refused(CacheSplit.open(tmp_path, "test").table, "scores")
    assert (error.what, error.where) == ("a shard is damaged", first)
    first.write_bytes(whole)
    assert CacheSplit.open(tmp_path, "test").table("scores").any()
    first.unlink()
    error = refused(CacheSplit.open, tmp_path, "test")
    assert (error.what, error.where) == ("this teacher cache is not complete", folder)
    assert error.got == "a file is missing or has another size"
    (folder / "manifest.json").unlink()
    assert refused(CacheSplit.open, tmp_path, "test").got == "no manifest.json"


def test_other_settings_are_refused(config: PipelineConfig) -> None:
    error = refused(CacheSplit.open, config.cache.folder, "test", fingerprint="abc")
    assert (error.what, error.expected) == ("this cache was made with other settings", "fingerprint abc")
    other = config.model_copy(update={"pairs": config.pairs.model_copy(update={"max_humans": 3})})
    error = refused(open_split, other, "test", same_images=False)
    assert error.got == "pairs.max_humans (cache: 15, now: 3)"
    fingerprint = open_split(config, "test", same_images=False).fingerprint
    CacheSplit.open(config.cache.folder, "test", fingerprint=fingerprint)


def test_batches_of_a_resident_split_are_the_same_bit_for_bit(split: CacheSplit) -> None:
    source = training_source(split, CPU, "always")
    assert isinstance(source, ResidentSplit)
    assert isinstance(source, BatchSource)
    assert source.num_images == split.num_images
    extra = ("union_embedding", "spatial_map", "coca/vlm_scores", "coca/vlm_pair_scores")
    usual = split.batches(2, np.random.default_rng(0), extra)
    assert digests(source.batches(2, np.random.default_rng(0), extra)) == digests(usual)


def test_a_device_holds_only_the_features_batches_need(split: CacheSplit) -> None:
    names = ("image_embedding", "image_similarity", "detection_feature", "union_feature", "union_similarity")
    assert feature_bytes(split) == sum(split.table(name).nbytes for name in names)
    # Image scores in float16 of three interactions for six images, pair scores for nine pairs.
    assert split.num_bytes("coca/vlm_scores") == 6 * 3 * 2
    assert split.num_bytes("coca/vlm_pair_scores") == 9 * 3 * 2


def test_a_split_is_kept_on_a_gpu_if_half_of_it_is_enough(split: CacheSplit) -> None:
    assert training_source(split, CPU, "auto") is split
    assert training_source(split, CPU, "never") is split
    assert is_resident(500, 1000, "auto")
    assert not is_resident(501, 1000, "auto")
    assert is_resident(1000, 1000, "always")
    assert not is_resident(1, 1000, "never")
    error = refused(is_resident, 10**9, 10**9 - 1, "always")
    assert (error.where, error.expected) == ("train.resident", "1.000 GB free")


def test_a_cuda_device_is_where_batches_are_made(split: CacheSplit) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    for ours, theirs in zip(ResidentSplit(split, torch.device("cuda")).batches(2), split.batches(2), strict=True):
        assert ours.union_similarity.device.type == ours.labels_o.device.type == "cuda"
        assert torch.equal(ours.human_feature.cpu(), theirs.human_feature)


def test_a_larger_number_keeps_the_smaller_ones_images(split: CacheSplit) -> None:
    few = [FirstImages(split, number) for number in (1, 3, 5, 99)]
    assert [source.num_images for source in few] == [1, 3, 5, 5]
    assert all(set(fewer.rows) <= set(more.rows) for fewer, more in pairwise(few))
    for source in few:
        assert isinstance(source, BatchSource)
        seen = torch.cat([batch.image_rows for batch in source.batches(2, np.random.default_rng(0))])
        assert sorted(seen.tolist()) == source.rows.tolist()


@pytest.mark.parametrize("is_resident", [False, True])
def test_all_images_give_the_batches_of_the_split(split: CacheSplit, is_resident: bool) -> None:
    source = ResidentSplit(split, CPU) if is_resident else split
    usual = split.batches(4, np.random.default_rng(2), ("union_embedding",))
    assert digests(FirstImages(source, 9).batches(4, np.random.default_rng(2), ("union_embedding",))) == digests(usual)


def test_processes_share_every_batch(split: CacheSplit) -> None:
    whole = FirstImages(split, None).batches(4, np.random.default_rng(1))
    shares = [FirstImages(split, None, Group(rank, 2).own).batches(4, np.random.default_rng(1)) for rank in range(2)]
    counts = []
    for batch, first, second in zip(whole, *shares, strict=True):
        counts.append((batch.num_images, first.num_images, second.num_images))
        for name in ("image_rows", "pair_rows", "union_similarity", "human_feature", "boxes_o"):
            together = torch.cat([getattr(first, name), getattr(second, name)])
            assert torch.equal(together, getattr(batch, name))
        assert torch.equal(torch.cat([first.pair_image, second.pair_image + first.num_images]), batch.pair_image)
    assert counts == [(4, 2, 2), (1, 0, 1)]
