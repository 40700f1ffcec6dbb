"""Files are whole or absent; a manifest comes back as it was, names nothing outside its folder, and may be damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
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
    sole_builder,
    write_manifest,
)
from hoi.files import read_json, size_text, write_atomically, write_json
from tests.fakes.pipelines import refused, small_files

BANK = BankReceipt("f", {"a": 1}, {"b": 2}, 2, "ids", 3, {"K": 3}, "sha", 10, {"device": "cpu"})
RECEIPT = Receipt("shard-00000.h5", "f", "ids", 2, 5, 4, 3, "sha", (("b", "missing"),))
SHARDS = (RECEIPT, replace(RECEIPT, name="shard-100000.h5", failed=()))
MANIFEST = Manifest("train", BANK, SHARDS, {"commit": None, "config": {}}, IndexReceipt("sha", 4))


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
        assert "Expected a plain name" in str(refused(read_manifest, tmp_path).got)


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


def test_a_full_disk_is_one_line_and_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "shard-00000.h5"
    write_atomically(path, b"old")
    with small_files(4096):
        error = refused(write_atomically, path, b"x" * 10_000)
    assert (error.what, error.where) == ("the disk is full", path)
    assert str(error.fix).startswith("free space")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["shard-00000.h5"]


def test_a_killed_writer_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "train" / "shard-00000.h5"
    code = (
        "import os, signal, sys; from pathlib import Path; from hoi.files import write_atomically\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), b'half')"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert len(list(path.parent.iterdir())) == 1
    with sole_builder(tmp_path):
        assert list(path.parent.iterdir()) == []


def test_a_second_builder_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    with sole_builder(tmp_path):
        assert refused(sole_builder(tmp_path).__enter__).what == "another process is building this cache"
    with sole_builder(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert "no file locks" in refused(sole_builder(tmp_path).__enter__).what


def test_json_comes_back_and_equal_data_gives_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None], "a": "ä"})
    write_json(tmp_path / "b.json", {"a": "ä", "b": [1, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": "ä", "b": [1, None]}
    assert read_json(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(0, "0 bytes"), (999, "999 bytes"), (4_096, "4.096 kB"), (12_345_678_901, "12.346 GB")]
)
def test_a_size_keeps_its_digits(num_bytes: int, said: str) -> None:
    assert size_text(num_bytes, 3) == said
