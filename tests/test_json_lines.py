"""Files of JSON lines that would unpack to more than anybody has."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

import hoi.json_lines
from hoi.json_lines import read_json_lines
from tests.fakes.pipelines import refused


def test_a_gzip_bomb_of_blank_lines_is_left_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoi.json_lines, "MAX_LINES", 100_000)
    (tmp_path / "lines.gz").write_bytes(gzip.compress(b"\n" * 10_000_000))
    (tmp_path / "bytes.gz").write_bytes(gzip.compress((b" " * 9999 + b"\n") * 7_000, 1))
    for name, line in (("lines.gz", 100_001), ("bytes.gz", 6_711)):
        error = refused(read_json_lines, tmp_path / name)
        assert (error.what, error.where) == ("this file is too large", f"{tmp_path / name}, line {line}")
