"""The index says what the shards say, is made from them alone, and lets no row of another shard through."""

from __future__ import annotations

import mmap
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoi.cache.base_pass import FIELDS, pack_tables
from hoi.cache.build import run as teacher_cache
from hoi.cache.index import index_tables, write_index
from hoi.cache.manifest import Manifest, read_manifest, write_manifest
from hoi.cache.read.opened import OpenedPass
from hoi.cache.read.split import CacheSplit
from hoi.cache.schema import INDEX_FIELDS, SCHEMA_VERSION, shape_of
from hoi.cache.shard import SHARD_ATTRIBUTES, Header, MappedFile, encode_file, inspect_shard, read_header
from hoi.config import PipelineConfig
from tests.fakes.extractors import AXES, RandomSignals, random_signals
from tests.fakes.pipelines import photo_pipeline, refused

NUM_PAIRS = (2, 0, 1, 5, 0, 0, 3)
UNREADABLE = 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """Seven images in four shards: one is unreadable, and the third shard has no detection."""
    folder = tmp_path_factory.mktemp("index")
    config = photo_pipeline(folder, NUM_PAIRS, teacher={"spatial_map": True})
    (folder / "images" / f"{UNREADABLE:02d}.png").write_bytes(b"no image")
    teacher_cache.build_cache(config, RandomSignals)
    return config


@pytest.fixture
def folder(config: PipelineConfig, tmp_path: Path) -> Path:
    """A copy of the split, to be spoiled."""
    shutil.copytree(config.cache.folder, tmp_path / "cache")
    return tmp_path / "cache" / "test"


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def shards_of(folder: Path) -> list[Header]:
    return [inspect_shard(path, FIELDS) for path in sorted(folder.glob("shard-*.h5"))]


def test_its_tables_have_the_dtypes_and_shapes_of_the_document(folder: Path) -> None:
    header = read_header(folder / "index.h5")
    num_rows = {"image": 7, "offset": 8, "shard": 4, "shard offset": 5, "field": len(FIELDS)}
    assert set(header.locations) == {field.name for field in INDEX_FIELDS}
    for field in INDEX_FIELDS:
        location = header.locations[field.name]
        assert location.shape == shape_of(field, num_rows[field.rows], {"F": len(FIELDS)}), field.name
        assert location.dtype.kind == "S" if field.is_text else location.dtype == np.dtype(field.dtype), field.name


def test_every_field_of_every_shard_is_found_without_its_header(folder: Path) -> None:
    opened = OpenedPass(folder, manifest_of(folder))
    index = opened.index
    assert list(index.fields) == [field.name for field in FIELDS]
    for number, shard in enumerate(shards_of(folder)):
        for name in index.fields:
            assert index.location(number, name) == shard.locations[name]
            rows = opened.rows(number, name)
            np.testing.assert_array_equal(rows, shard.table(name))
            assert not rows.flags.writeable or not rows.size
    with pytest.raises(KeyError, match="mystery"):
        opened.rows(0, "mystery")


def test_it_is_made_again_from_the_shards_alone(folder: Path) -> None:
    path = folder / "index.h5"
    before, manifest = path.read_bytes(), manifest_of(folder)
    path.unlink()
    assert write_index(folder, "test", manifest.bank.fingerprint, manifest.shards) == manifest.index
    assert path.read_bytes() == before


def test_opening_reads_no_shard_and_a_shard_is_mapped_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def inspect(path: Path, *arguments: object) -> Header:
        opened.append(path.name)
        return inspect_shard(path, FIELDS)

    monkeypatch.setattr("hoi.cache.index.inspect_shard", inspect)
    split = CacheSplit.open(folder.parent, "test", mode="mapped")
    assert (split.num_images, split.num_pairs, split.image_ids[3]) == (7, 10, "03.png")
    assert split.size_hw[UNREADABLE].tolist() == [0, 0]
    assert opened == []
    batches = [split.batch(np.array([3])) for _ in range(2)]
    np.testing.assert_array_equal(batches[0].union_feature, batches[1].union_feature)
    assert opened == ["shard-00001.h5"]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    assert [line.rpartition("/")[2] for line in maps if "shard-" in line] == ["shard-00001.h5"]


def test_a_mapping_that_the_system_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    large = tmp_path / "shard-00000.h5"
    large.touch()
    os.truncate(large, 1 << 34)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    try:
        error = refused(MappedFile, large)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (error.where, error.got) == (large, "Cannot allocate memory")


def test_a_foreign_shard_of_the_right_size_is_refused(folder: Path) -> None:
    path = folder / "shard-00001.h5"
    whole, header = path.read_bytes(), inspect_shard(path, FIELDS)

    def put(data: bytes) -> None:
        path.write_bytes(data + b"\0" * (len(whole) - len(data)))

    tables = {name: header.table(name) for name in header.locations}
    put(encode_file(tables, {**header.attributes, "fingerprint": "f" * 64}))

    def read() -> int:
        return CacheSplit.open(folder.parent, "test").batch(np.array([3])).num_pairs

    error = refused(read)
    assert error.what == "a shard does not belong to this cache"
    assert str(error.got).startswith("fingerprint ffffffffffff, split test")
    put(encode_file(tables, {**header.attributes, "schema_version": 7}))
    error = refused(read)
    assert (error.what, error.expected, error.got) == ("this shard has another schema version", 1, 7)

    # The same images, made with the same settings, but with fewer pairs: an earlier state of the same shard.
    signals = ["no image", random_signals("03.png", 2, 1, with_map=True)]
    fewer = pack_tables(["02.png", "03.png"], signals, header.attributes["axes"])
    put(encode_file(fewer, header.attributes))
    error = refused(read)
    assert error.what == "a shard does not belong to this cache"
    assert str(error.expected).startswith("size_hw int32 (2, 2)")
    path.write_bytes(whole)
    assert read() == 5


def test_an_index_of_other_shards_or_a_damaged_one_is_refused(folder: Path) -> None:
    path, manifest = folder / "index.h5", manifest_of(folder)
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    error = refused(CacheSplit.open, folder.parent, "test")
    assert (error.what, error.where) == ("this index is damaged", path)
    assert str(error.fix).startswith(f"delete {path}, then")
    path.write_bytes(whole[:-1])
    assert refused(CacheSplit.open, folder.parent, "test").got == "a file is missing or has another size"
    path.write_bytes(whole)
    shards = (*manifest.shards[:2], replace(manifest.shards[2], sha256="0" * 64), manifest.shards[3])
    write_manifest(folder, replace(manifest, shards=shards))
    what = "this index is of other shards than the manifest: shards_sha256"
    assert refused(CacheSplit.open, folder.parent, "test").what == what
    write_manifest(folder, manifest)
    assert CacheSplit.open(folder.parent, "test").num_images == 7


def test_a_shard_that_is_not_its_receipts_stops_the_sealing(folder: Path) -> None:
    manifest, first = manifest_of(folder), folder / "shard-00000.h5"
    shutil.copy(folder / "shard-00001.h5", first)
    for what in ("a shard does not belong to this cache", "a shard is missing"):
        error = refused(write_index, folder, "test", manifest.bank.fingerprint, manifest.shards)
        assert (error.what, error.where) == (what, first)
        first.unlink(missing_ok=True)


def test_ids_of_any_length_fit_and_other_counts_are_refused(tmp_path: Path) -> None:
    shards = []
    for number, ids in enumerate((["a"], ["bär", "b"], ["c"])):
        path = tmp_path / f"shard-{number:05d}.h5"
        signals = [random_signals(image_id, number, number) for image_id in ids]
        path.write_bytes(
            encode_file(
                pack_tables(ids, signals, AXES),
                {name: kind() for name, kind in SHARD_ATTRIBUTES.items()}
                | {"schema_version": SCHEMA_VERSION, "num_images": len(ids), "axes": AXES},
            )
        )
        shards.append(inspect_shard(path, FIELDS))
    _, tables = index_tables(shards, 4, FIELDS)
    assert [image_id.decode() for image_id in tables["image_id"].tolist()] == ["a", "bär", "b", "c"]
    assert tables["row_bytes"][:, 0].tolist() == [1, 4, 1]
    assert tables["byte_offset"][0, [field.name for field in FIELDS].index("scores")] == 0
    for wrong in (3, 5):
        with pytest.raises(ValueError):
            index_tables(shards, wrong, FIELDS)
