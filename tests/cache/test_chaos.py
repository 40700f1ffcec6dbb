"""Some cases of `python -m tests.chaos`; the others take minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.builds import NotHere, kill_drivers
from tests.chaos.faults import flipped_byte, two_builders
from tests.chaos.machines import lost_node
from tests.chaos.verbs import kill_verb

pytestmark = pytest.mark.slow


def test_a_killed_driver_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    assert kill_drivers(tmp_path, number=4, seed=1).number == 4


def test_of_many_builders_on_one_folder_one_builds(tmp_path: Path) -> None:
    two_builders(tmp_path)


def test_a_flipped_bit_is_found_and_mended(tmp_path: Path) -> None:
    assert all(name in flipped_byte(tmp_path) for name in ("shard-00007.h5", "bank.h5", "index.h5"))


def test_two_nodes_one_killed_give_the_bytes_of_a_local_run(tmp_path: Path) -> None:
    try:
        lost_node(tmp_path)
    except NotHere as error:
        pytest.skip(f"no network namespaces: {error}")


@pytest.mark.parametrize("verb", ["checkpoint", "pull", "predict"])
def test_a_killed_verb_goes_on_to_the_same_bytes(tmp_path: Path, verb: str) -> None:
    assert "1 SIGKILL and 1 SIGTERM" in kill_verb(verb, tmp_path, number=1, seed=1)
