"""A cluster of machines that share a folder and nothing else; what else can go there is in `python -m tests.chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.machines import lost_node
from tests.chaos.nodes import NoNodes


def test_two_nodes_one_of_them_killed_midway_give_the_bytes_of_a_local_run(tmp_path: Path) -> None:
    try:
        lost_node(tmp_path)
    except NoNodes as error:
        pytest.skip(f"no network namespaces: {error}")
