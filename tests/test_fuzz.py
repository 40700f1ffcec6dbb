"""A short part of `make fuzz`: what needs no model, spoiled in a few hundred ways, ends in a result or in one line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.__main__ import draw
from tests.fuzz.forked import outcome_of, run_forked
from tests.fuzz.targets import Target, of_annotations, of_caches, of_predictions, of_settings


@pytest.mark.parametrize("made", [of_annotations, of_caches, of_predictions, of_settings])
def test_spoiled_files_end_in_a_result_or_one_line(made: Callable[[Path], list[Target]], tmp_path: Path) -> None:
    known = made(tmp_path)
    assert [outcome_of(target.case(-1, tmp_path / "sound")).kind for target in known] == ["read"] * len(known)
    work = tmp_path / "work"
    work.mkdir()
    cases = [known[row].case(variant, work) for row, variant in draw(known, 30, seed=0)]
    wrong = [
        (cases[number].__name__, outcome)
        for number, outcome in run_forked(cases)
        if outcome.kind not in ("read", "refused")
    ]
    assert wrong == []


def test_what_dies_hangs_or_raises_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.forked.TIMEOUT_S", 0.5)
    cases = [
        lambda: None,
        lambda: os.kill(os.getpid(), signal.SIGSEGV),
        lambda: [][0],
        lambda: time.sleep(9),
        lambda: bytearray(5 << 30),
    ]
    kinds = [outcome.kind for _, outcome in run_forked(cases)]
    assert kinds == ["read", "signal", "raw exception", "hang", "raw exception"]
