"""Batches hold exactly what the records held, in both modes; a cache that is not the right one is refused."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi.cache.build import run as teacher_cache
from hoi.cache.read import split as dataset
from hoi.cache.read.split import CacheSplit, Mode, open_split
from hoi.config import PipelineConfig
from hoi.datasets import load_vocabulary, open_images
from hoi.errors import UserError
from hoi.records import ImageSignals, PairBatch
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import photo_pipeline

NUM_PAIRS = (2, 0, 1, 5, 3, 1)
UNREADABLE = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    folder = tmp_path_factory.mktemp("dataset")
    config = photo_pipeline(folder, NUM_PAIRS, teacher={"spatial_map": True})
    (folder / "images" / f"{UNREADABLE:02d}.png").write_bytes(b"no image")
    teacher_cache.build_cache(config, RandomSignals)
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
    humans = [r.pairs_ho[:, 0] for r in chosen]
    objects = [r.pairs_ho[:, 1] for r in chosen]
    expected = {
        "size_hw": np.stack([r.size_hw for r in chosen]),
        "image_embedding": np.stack([r.image_embedding for r in chosen]),
        "image_similarity": np.stack([r.image_similarity for r in chosen]),
        "pair_image": np.repeat(np.arange(len(rows)), [len(h) for h in humans]),
        "boxes_h": np.concatenate([r.detections.boxes_xyxy[h] for r, h in zip(chosen, humans, strict=True)]),
        "boxes_o": np.concatenate([r.detections.boxes_xyxy[o] for r, o in zip(chosen, objects, strict=True)]),
        "scores_h": np.concatenate([r.detections.scores[h] for r, h in zip(chosen, humans, strict=True)]),
        "scores_o": np.concatenate([r.detections.scores[o] for r, o in zip(chosen, objects, strict=True)]),
        "labels_o": np.concatenate([r.detections.labels[o] for r, o in zip(chosen, objects, strict=True)]),
        "human_feature": np.concatenate([r.detection_feature[h] for r, h in zip(chosen, humans, strict=True)]),
        "object_feature": np.concatenate([r.detection_feature[o] for r, o in zip(chosen, objects, strict=True)]),
        "union_feature": np.concatenate([r.union_feature for r in chosen]),
        "union_similarity": np.concatenate([r.union_similarity for r in chosen]),
    }
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
        with pytest.raises(UserError, match=f"no field '{name}' of images or pairs .* one of size_hw"):
            split.batch(np.array([0]), extra=(name,))


def test_batches_planned_together_equal_those_made_alone(split: CacheSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [split.batch(np.array(rows), ("union_embedding", "spatial_map")) for rows in ([0, 1], [2, 3], [5])]
    for planned in (1, 4, 512):
        monkeypatch.setattr(dataset, "PLANNED_IMAGES", planned)
        together = list(split.batches(2, extra=("union_embedding", "spatial_map")))
        assert [digest(batch) for batch in together] == [digest(batch) for batch in alone]


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
    assert not [name for name in open_files() if name.endswith(".h5")]
    assert all(len(pickle.dumps(split)) < 1000 for split in splits)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(epoch_digests, splits, chunksize=1) == expected


def digest(batch: PairBatch) -> str:
    """Name, dtype, shape and bytes of everything that a batch holds."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "extra"}
    parts = sorted({**tensors, **batch.extra}.items())
    described = [f"{name} {t.dtype} {tuple(t.shape)}".encode() + t.numpy().tobytes() for name, t in parts]
    return hashlib.sha256(b"".join(described)).hexdigest()


def epoch_digests(split: CacheSplit) -> list[str]:
    return [digest(batch) for batch in split.batches(1, np.random.default_rng(0))]


def open_files() -> list[str]:
    return [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]


def copy_of(config: PipelineConfig, folder: Path) -> Path:
    shutil.copytree(config.cache.folder, folder, dirs_exist_ok=True)
    return folder / "test"


def test_a_cache_that_is_not_there_or_not_complete_is_refused(config: PipelineConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no teacher cache · where: .*/test .*"):
        CacheSplit.open(tmp_path, "test")
    folder = copy_of(config, tmp_path)
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(UserError, match=r"not complete .* a file is missing or has another size"):
        CacheSplit.open(tmp_path, "test")
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"not complete .* got: no manifest.json"):
        CacheSplit.open(tmp_path, "test")


def test_other_settings_are_refused(config: PipelineConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made with other settings .* expected: fingerprint abc"):
        CacheSplit.open(config.cache.folder, "test", fingerprint="abc")
    other = config.model_copy(update={"pairs": config.pairs.model_copy(update={"max_humans": 3})})
    with pytest.raises(UserError, match=r"other settings .* pairs.max_humans \(cache: 15, now: 3\)"):
        open_split(other, "test", same_images=False)
    fingerprint = open_split(config, "test", same_images=False).fingerprint
    CacheSplit.open(config.cache.folder, "test", fingerprint=fingerprint)


def test_a_damaged_shard_is_refused(config: PipelineConfig, tmp_path: Path) -> None:
    folder = copy_of(config, tmp_path)
    first = folder / "shard-00000.h5"
    whole = first.read_bytes()
    first.write_bytes(b"x" * len(whole))
    with pytest.raises(UserError, match=r"a shard is damaged · where: .*shard-00000.h5 .* next: delete"):
        CacheSplit.open(tmp_path, "test").table("scores")
    first.write_bytes(whole)
    assert CacheSplit.open(tmp_path, "test").table("scores").any()
