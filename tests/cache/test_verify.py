"""Every way in which a cache can be bad is found under its own name; a good one has no problem."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from hoi.cache.base_pass import FIELDS
from hoi.cache.manifest import read_manifest
from hoi.cache.read.split import CacheSplit
from hoi.cache.shard import encode_file, inspect_shard
from hoi.cache.tools.verify import verify_split
from hoi.errors import UserError
from tests.fakes.pipelines import built_photos, cut, flip
from tests.fuzz.mutations import STORED
from tests.fuzz.targets import seal_cache


def found(folder: Path) -> list[tuple[str, str]]:
    return [(problem.name, problem.kind) for problem in verify_split(folder)]


def test_a_fresh_split_has_no_problem_with_receipts_or_without(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    assert found(folder) == []
    (folder / "shard-00001.json").unlink()
    assert found(folder) == []


@pytest.mark.parametrize("name", ["shard-00001.h5", "bank.h5", "index.h5"])
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    _, folder = built_photos(tmp_path)
    whole = (folder / name).read_bytes()
    for damage, kind in ((Path.unlink, "missing"), (cut, "truncated"), (flip, "changed")):
        damage(folder / name)
        assert found(folder) == [(name, kind)]
        (folder / name).write_bytes(whole)


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    path = folder / "shard-00000.h5"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 12).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert [name for name, _ in found(folder)] == ["shard-00000.h5"], place


def test_a_foreign_shard_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path / "a")
    shutil.copy(folder / "shard-00001.h5", folder / "shard-00000.h5")
    [problem] = verify_split(folder)
    assert (problem.name, problem.kind) == ("shard-00000.h5", "foreign")
    assert problem.text.startswith("index is 1, expected 0; start is 2, expected 0")
    _, other = built_photos(tmp_path / "b", teacher={"precision": "bf16"})
    shutil.copy(other / "shard-00000.h5", folder / "shard-00000.h5")
    [problem] = verify_split(folder)
    assert (problem.kind, problem.text) == ("foreign", "teacher.precision (cache: fp32, now: bf16)")


def test_leftovers_and_shards_beyond_the_last_are_found(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    shutil.copy(folder / "shard-00001.h5", folder / "shard-00007.h5")
    (folder / ".shard-00001.h5.abc.part").write_bytes(b"half")
    assert found(folder) == [(".shard-00001.h5.abc.part", "stray"), ("shard-00007.h5", "foreign")]


def test_a_whole_file_with_wrong_tables_is_found_by_the_schema(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    header = inspect_shard(folder / "shard-00002.h5", FIELDS)
    tables = {name: header.table(name) for name in header.locations}
    tables["pairs_ho"] = tables["pairs_ho"] + 100
    (folder / "manifest.json").unlink()
    (folder / "shard-00002.json").unlink()
    (folder / "shard-00002.h5").write_bytes(encode_file(tables, header.attributes))
    problems = {problem.name: problem for problem in verify_split(folder)}
    assert problems["manifest.json"].text == "the split is not sealed: 3 of 3 shards are there"
    assert problems["shard-00002.h5"].text == "pairs_ho names a detection outside its image"


@pytest.mark.parametrize(
    ("file", "table", "value", "text"),
    [
        ("index.h5", "pair_offsets", 1 << 60, "it is not the index of these shards"),
        ("index.h5", "size_hw", 5, "it is not the index of these shards"),
        ("shard-00001.h5", "boxes_xyxy", np.nan, "boxes_xyxy is not finite"),
        ("shard-00001.h5", "union_similarity", np.inf, "union_similarity is not finite"),
        ("shard-00001.h5", "size_hw", 0, "a readable image has no side"),
        ("shard-00001.h5", "labels", 99, "labels go from"),
        ("bank.h5", "text_embedding", np.nan, "a table of texts is not finite"),
    ],
)
def test_values_are_judged_whatever_the_hashes_say(
    tmp_path: Path, file: str, table: str, value: float, text: str
) -> None:
    _, folder = built_photos(tmp_path)
    with h5py.File(folder / file, "r+") as opened:
        rows = opened[table][()]
        rows.reshape(-1)[-1] = value
        opened[table][()] = rows
    seal_cache(folder.parent)
    assert any(text in problem.text for problem in verify_split(folder))


@pytest.mark.parametrize("kind", STORED)
def test_a_table_of_another_kind_is_never_mapped(tmp_path: Path, kind: str) -> None:
    _, folder = built_photos(tmp_path)
    for file, table in (("index.h5", "pair_offsets"), ("shard-00001.h5", "union_embedding")):
        whole = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with h5py.File(folder / file, "r+") as opened:
            before = opened[table][()]
            del opened[table]
            STORED[kind](opened, table, before, folder / file)
        seal_cache(folder.parent)
        assert verify_split(folder)
        with pytest.raises(UserError, match=r"is damaged|does not belong to this cache"):
            list(CacheSplit.open(folder.parent, "test").batches(8))
        for path, data in whole.items():
            path.write_bytes(data)


def test_manifest_and_receipts_must_agree(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    receipt = json.loads((folder / "shard-00000.json").read_text())
    (folder / "shard-00000.json").write_text(json.dumps({**receipt, "num_pairs": 99}))
    (folder / "bank.json").write_text("{")
    assert found(folder) == [("bank.json", "damaged"), ("shard-00000.json", "changed")]


def test_a_damaged_manifest_is_one_problem(tmp_path: Path) -> None:
    _, folder = built_photos(tmp_path)
    plain = json.loads((folder / "manifest.json").read_text())
    plain["shards"].reverse()
    (folder / "manifest.json").write_text(json.dumps(plain))
    assert found(folder) == [("manifest.json", "damaged")]
    (folder / "manifest.json").write_text("{}")
    (folder / "shard-00001.h5").write_bytes(b"short")
    assert found(folder) == [("manifest.json", "damaged"), ("shard-00001.h5", "truncated")]


def test_an_absent_split_and_an_unfinished_one_are_problems(tmp_path: Path) -> None:
    assert found(tmp_path / "nowhere") == [("manifest.json", "missing")]
    _, folder = built_photos(tmp_path)
    (folder / "manifest.json").unlink()
    (folder / "shard-00001.h5").unlink()
    [problem] = verify_split(folder)
    assert (problem.kind, problem.text) == ("incomplete", "the split is not sealed: 2 of 3 shards are there")
    assert read_manifest(folder) is None
