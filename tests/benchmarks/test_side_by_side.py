"""Ratios by hand, and a whole small measurement."""

from __future__ import annotations

from benchmarks import extraction, reader
from benchmarks.side_by_side import Rounds, ratio_table, run_in_turn


def test_ratios_are_taken_by_round_and_their_median_is_shown() -> None:
    rounds = Rounds({"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 1.0]})
    assert rounds.ratios("slow", "fast") == [2, 3, 4]
    header, _, _, row = ratio_table("title", rounds, [("slow", "fast")]).splitlines()
    assert header == "title · median of 3 rounds"
    assert row.split() == ["slow", "/", "fast", "3.00", "2.00", "–", "4.00", "4.000", "/", "1.000"]


def test_every_way_runs_once_unmeasured_and_then_once_a_round() -> None:
    calls: list[str] = []
    rounds = run_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(times) for name, times in rounds.seconds.items()} == {"a": 2, "b": 2}


def test_the_reader_is_measured_on_a_cache_of_several_shards() -> None:
    assert "70 images" in reader.measure(num_images=70, num_rounds=1)


def test_stage_one_is_measured_against_every_way() -> None:
    table = extraction.measure("world", "cpu", num_rounds=1, num_images=1)
    for way in ("bare forward passes", "stage one"):
        assert f" / {way} " in table
    assert "1 scenes at 192 px" in table
