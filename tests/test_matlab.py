"""MATLAB files are read in another process, whose death is told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

import hoi.matlab
from hoi.matlab import load_mat
from tests.fakes.pipelines import refused


def test_arrays_cells_structs_and_texts_come_back_as_they_are(tmp_path: Path) -> None:
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 0))
    savemat(tmp_path / "a.mat", {"cells": cells, "struct": {"name": "a.jpg", "size": {"width": 3}}, "other": 1})
    content = load_mat(tmp_path / "a.mat", ["cells"])
    assert content["cells"].shape == (1, 2)
    np.testing.assert_array_equal(content["cells"][0, 0], cells[0, 0])
    assert (content["cells"][0, 0].dtype, content["cells"][0, 1].shape) == (np.float32, (0, 0))
    plain = load_mat(tmp_path / "a.mat", ["struct"], plain=True)
    assert (plain["struct"].name, plain["struct"].size.width, list(plain)) == ("a.jpg", 3, ["struct"])
    assert refused(load_mat, tmp_path / "a.mat", ["absent"]).got == "no absent"


@pytest.mark.parametrize(
    ("script", "seconds", "got"),
    [("kill -s SEGV $$", 60, "SIGSEGV"), ("exit 3", 60, "exit code 3"), ("exec sleep 60", 0.3, "longer than 0.3 s")],
)
def test_the_death_of_the_reader_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, seconds: float, got: str
) -> None:
    savemat(tmp_path / "a.mat", {"a": 1})
    program = tmp_path / "reader"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(hoi.matlab, "MAX_SECONDS", seconds)
    error = refused(load_mat, tmp_path / "a.mat", ["a"])
    assert (error.what, error.where) == ("this MATLAB file cannot be read", tmp_path / "a.mat")
    assert got in str(error.got)
