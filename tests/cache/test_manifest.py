"""A manifest comes back as it was, names nothing outside its folder, and is refused when damaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hoi.cache.manifest import (
    BankReceipt,
    IndexReceipt,
    Manifest,
    Receipt,
    hash_of_shards,
    read_manifest,
    read_receipt,
    write_manifest,
)
from tests.fakes.pipelines import refused

BANK = BankReceipt("f", {"a": 1}, {"b": 2}, 2, "ids", 3, {"K": 3}, "sha", 10, {"device": "cpu"})
RECEIPT = Receipt("shard-00000.h5", "f", "ids", 2, 5, 4, 3, "sha", (("b", "missing"),))
SHARDS = (RECEIPT, replace(RECEIPT, name="shard-100000.h5", failed=()))
MANIFEST = Manifest("train", BANK, SHARDS, {"commit": None}, IndexReceipt("sha", 4))


@pytest.fixture
def whole(tmp_path: Path) -> str:
    write_manifest(tmp_path, MANIFEST)
    return (tmp_path / "manifest.json").read_text()


def test_it_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert read_manifest(tmp_path / "elsewhere") is None
    assert (MANIFEST.num_images, MANIFEST.failed) == (4, [("b", "missing")])


def test_the_hash_of_shards_is_over_their_hashes_in_order() -> None:
    receipts = [replace(RECEIPT, sha256=text) for text in ("ab", "c")]
    assert hash_of_shards(receipts) == hashlib.sha256(b"ab\nc\n").hexdigest()
    assert hash_of_shards(receipts) != hash_of_shards(receipts[::-1])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "hoi-distill teacher cache", "schema_version": 1}'])
def test_a_damaged_one_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    error = refused(read_manifest, tmp_path)
    assert (error.what, error.where) == ("this manifest is damaged", path)
    assert str(error.fix).startswith(f"delete {path}")


def test_another_schema_or_a_shard_outside_the_folder_is_refused(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(whole.replace('"schema_version": 1', '"schema_version": 7'))
    error = refused(read_manifest, tmp_path)
    assert (error.what, error.expected, error.got) == ("this cache has another schema version", 1, 7)
    for name in ("../shard-00000.h5", "/etc/passwd", "shard-1.h5", ""):
        path.write_text(whole.replace(RECEIPT.name, name))
        assert "is no name of a shard" in str(refused(read_manifest, tmp_path).got)


def test_a_receipt_counts_only_with_its_own_file_in_full_size(tmp_path: Path) -> None:
    shard = tmp_path / RECEIPT.name
    shard.with_suffix(".json").write_text(json.dumps(RECEIPT.to_dict()))
    assert read_receipt(shard) is None
    shard.write_bytes(b"abc")
    assert read_receipt(shard) == RECEIPT
    shard.write_bytes(b"abcd")
    assert read_receipt(shard) is None
    shard.with_suffix(".json").write_text("{")
    assert read_receipt(shard) is None
