"""Files are byte-reproducible, readable by a stranger, and never read when they are not whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hoi.cache.base_pass import FIELDS, pack_tables
from hoi.cache.schema import SCHEMA_VERSION
from hoi.cache.shard import BrokenFile, encode_file, inspect_shard, read_header, read_text
from hoi.errors import UserError
from tests.fakes.extractors import AXES, random_signals

TABLES = pack_tables(["bär", "b", "c"], [random_signals("bär", 3, 4), "gone", random_signals("c", 1, 0)], AXES)
ATTRIBUTES: dict[str, Any] = {
    "schema_version": SCHEMA_VERSION,
    "fingerprint": "f" * 64,
    "fingerprint_parts": {"teacher": {"model": "x"}},
    "split": "train",
    "index": 0,
    "start": 0,
    "num_images": 3,
    "image_ids_sha256": "0" * 64,
    "axes": AXES,
}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard-00000.h5"
    path.write_bytes(encode_file(TABLES, ATTRIBUTES))
    return path


@pytest.mark.parametrize("mapped", [False, True])
def test_tables_and_attributes_come_back(shard: Path, mapped: bool) -> None:
    header = inspect_shard(shard, FIELDS)
    assert header.attributes == ATTRIBUTES
    assert set(header.locations) == set(TABLES)
    for name, table in TABLES.items():
        np.testing.assert_array_equal(header.table(name, mapped), table)
    assert read_text(header.table("image_id")) == ["bär", "b", "c"]


def test_datasets_lie_as_the_document_says(shard: Path) -> None:
    with h5py.File(shard) as file:
        for dataset in file.values():
            assert (dataset.chunks, dataset.compression) == (None, None)
            assert dataset.size == 0 or dataset.id.get_offset() % 64 == 0
            assert dataset.dtype.byteorder != ">"
        assert h5py.check_string_dtype(file["image_id"].dtype) == ("utf-8", 4)


def test_a_stranger_reads_it_with_the_lines_of_the_document(
    shard: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = (Path(__file__).parents[2] / "cache" / "FORMAT.md").read_text()
    code = re.search(r"```python\n(.*?)```", document, re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(shard.parent)
    exec(code[1], {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bär [100 120]"
    assert len(lines) == 1 + 4
    human = TABLES["pairs_ho"][0, 0]
    assert lines[1].startswith(str(TABLES["boxes_xyxy"][human]))


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_file_cut_short_is_never_read(shard: Path, keep: float) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(BrokenFile):
        read_header(shard)


def test_a_file_of_another_schema_version_is_refused_by_name(shard: Path) -> None:
    shard.write_bytes(encode_file(TABLES, {**ATTRIBUTES, "schema_version": 99}))
    with pytest.raises(UserError, match=r"another schema version .* expected: 1 · got: 99 .* next: delete"):
        inspect_shard(shard, FIELDS)


def test_a_file_without_an_attribute_or_a_field_is_broken(shard: Path) -> None:
    shard.write_bytes(encode_file(TABLES, {k: v for k, v in ATTRIBUTES.items() if k != "split"}))
    with pytest.raises(BrokenFile, match="attribute split is missing"):
        inspect_shard(shard, FIELDS)
    shard.write_bytes(encode_file({k: v for k, v in TABLES.items() if k != "scores"}, ATTRIBUTES))
    with pytest.raises(BrokenFile, match="field scores is missing"):
        inspect_shard(shard, FIELDS)
