"""A worker on a CPU keeps to the threads it was given; a process alone, and a GPU's worker, read ahead."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from hoi.cache.build.pool import Task, open_pool
from hoi.cache.build.worker import read_ahead
from hoi.config import CacheConfig
from hoi.datasets import UnreadableImage
from hoi.machine import keeping_to_own_threads, may_have_side_threads


@dataclass
class Watched:
    """Images that say in which thread they were read."""

    image_ids: tuple[str, ...] = ("a", "b", "c")
    threads: set[int] = field(default_factory=set)

    def read(self, row: int) -> np.ndarray:
        self.threads.add(threading.get_ident())
        if row == 1:
            raise UnreadableImage("torn")
        return np.full((2, 2, 3), row, np.uint8)


@pytest.mark.parametrize(
    ("device", "keeps", "in_own"), [("cpu", True, True), ("cpu", False, False), ("cuda", True, False)]
)
def test_a_cpu_worker_reads_images_in_its_own_thread(device: str, keeps: bool, in_own: bool) -> None:
    source = Watched()
    if keeps:
        with keeping_to_own_threads():
            found = list(read_ahead(source, range(3), device))
    else:
        found = list(read_ahead(source, range(3), device))
    assert [row for row, _ in found] == [0, 1, 2]
    assert found[1][1] == "torn"
    assert (found[2][1] == 2).all()
    assert (source.threads == {threading.get_ident()}) == in_own


def _allowed() -> dict[str, bool]:
    return {"allowed": may_have_side_threads()}


@pytest.mark.slow
def test_a_task_on_a_worker_may_not_have_side_threads() -> None:
    for scheduler, allowed in (("local", False), ("synchronous", True)):
        with open_pool(CacheConfig(folder="unused", scheduler=scheduler, workers=1, device="cpu")) as pool:
            (outcome,) = pool.run([Task("train", "shard", _allowed, ())])
        assert outcome.result == {"allowed": allowed}
