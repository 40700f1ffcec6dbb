"""A manifest comes back as it was, names nothing outside its folder, and is refused when damaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hoi.cache.manifest import (
    BankReceipt,
    IndexReceipt,
    Manifest,
    Receipt,
    has_all_files,
    hash_of_shards,
    read_manifest,
    read_receipt,
    write_manifest,
)
from hoi.errors import UserError

BANK = BankReceipt("f", {"a": 1}, {"b": 2}, 2, "ids", 3, {"K": 3}, "sha", 10, {"device": "cpu"})
RECEIPT = Receipt("shard-00000.h5", "f", "ids", 2, 5, 4, 3, "sha", (("b", "missing"),))
SHARDS = (RECEIPT, replace(RECEIPT, name="shard-100000.h5", failed=()))
MANIFEST = Manifest("train", BANK, SHARDS, {"commit": None}, IndexReceipt("sha", 4))


def test_it_comes_back(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == MANIFEST
    assert read_manifest(tmp_path / "elsewhere") is None
    assert (MANIFEST.num_images, MANIFEST.failed) == (4, [("b", "missing")])


def test_every_file_is_needed_in_its_size(tmp_path: Path) -> None:
    for name, size in (("bank.h5", 10), ("index.h5", 4), *((shard.name, 3) for shard in SHARDS)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "bank.json").write_text(json.dumps(asdict(BANK)))
    assert has_all_files(tmp_path, MANIFEST)
    (tmp_path / "index.h5").write_bytes(b"xxx")
    assert not has_all_files(tmp_path, MANIFEST)


def test_the_hash_of_shards_is_over_their_hashes_in_order() -> None:
    receipts = [replace(RECEIPT, sha256=text) for text in ("ab", "c")]
    assert hash_of_shards(receipts) == hashlib.sha256(b"ab\nc\n").hexdigest()
    assert hash_of_shards(receipts) != hash_of_shards(receipts[::-1])


@pytest.mark.parametrize("name", ["../shard-00000.h5", "/etc/passwd", "shard-1.h5", "shard-00000.h5/..", ""])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    plain = json.loads(path.read_text())
    plain["shards"][0]["name"] = name
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"this manifest is damaged .* is no name of a shard"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "hoi-distill teacher cache", "schema_version": 1}'])
def test_a_damaged_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"this manifest is damaged · where: .*manifest.json .* next: delete"):
        read_manifest(tmp_path)


def test_another_schema_version_is_refused_by_name(tmp_path: Path) -> None:
    write_manifest(tmp_path, MANIFEST)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(UserError, match=r"another schema version .* expected: 1 · got: 7"):
        read_manifest(tmp_path)


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
