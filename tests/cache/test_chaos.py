"""Three cases of `python -m tests.chaos`; the others take minutes."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.faults import flipped_byte, two_builders
from tests.chaos.kills import kill_drivers


def test_a_driver_killed_at_random_moments_leaves_what_an_undisturbed_one_gives(tmp_path: Path) -> None:
    assert kill_drivers(tmp_path, number=4, seed=1).number == 4


def test_of_many_builders_on_one_folder_one_builds_and_the_others_are_told(tmp_path: Path) -> None:
    two_builders(tmp_path)


def test_a_flipped_bit_in_shard_bank_or_index_is_found_and_mended(tmp_path: Path) -> None:
    assert all(name in flipped_byte(tmp_path) for name in ("shard-00007.h5", "bank.h5", "index.h5"))
