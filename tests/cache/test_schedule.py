"""Tasks run on this process or on others with the same outcomes; failures are retried, users' mistakes are not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import LocalCluster

from hoi.cache.build import pool as schedule
from hoi.cache.build.pool import (
    KEPT_BYTES,
    RETRIES,
    Pool,
    SynchronousPool,
    Task,
    default_workers,
    give_up_slot,
    giving_up,
    open_pool,
    worker_environment,
)
from hoi.cache.build.worker import read_ahead
from hoi.config import CacheConfig
from hoi.datasets import UnreadableImage
from hoi.errors import UserError
from hoi.machine import keeping_to_own_threads, may_have_side_threads, visible_devices
from tests.fakes import worker_tasks


def settings(**keys: Any) -> CacheConfig:
    return CacheConfig(folder="unused", device="cpu", **keys)


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@pytest.fixture(scope="module")
def local_pool() -> Iterator[Pool]:
    with pytest.MonkeyPatch.context() as patch:
        # What stands in the environment goes before what dask is told, but for the threads that the config asks for.
        for name in THREADS:
            patch.setenv(name, "7")
        for name in ALLOCATOR:
            patch.delenv(name, raising=False)
        with open_pool(settings(scheduler="local", workers=2, threads=2)) as pool:
            yield pool


@pytest.fixture(params=["synchronous", "local"])
def pool(request: pytest.FixtureRequest) -> Pool:
    return SynchronousPool() if request.param == "synchronous" else request.getfixturevalue("local_pool")


def test_every_task_has_one_outcome(pool: Pool) -> None:
    outcomes = list(pool.run(Task("g", str(i), worker_tasks.double, (i,)) for i in range(9)))
    assert sorted((o.task.name, o.result and o.result["number"]) for o in outcomes) == [
        (str(i), 2 * i) for i in range(9)
    ]
    assert all(o.error is None and o.seconds is not None for o in outcomes)
    assert list(pool.run([])) == []


def test_a_task_that_breaks_is_tried_again(pool: Pool, tmp_path: Path) -> None:
    [outcome] = pool.run([Task("g", "a", worker_tasks.break_until, (str(tmp_path), RETRIES))])
    assert outcome.result == {"calls": RETRIES}


def test_a_task_that_keeps_breaking_is_given_up(pool: Pool, tmp_path: Path) -> None:
    tasks = [Task("g", "broken", worker_tasks.break_until, (str(tmp_path), 99))]
    tasks += [Task("g", str(i), worker_tasks.double, (i,)) for i in range(5)]
    outcomes = {o.task.name: o for o in pool.run(tasks)}
    assert len(outcomes) == 6
    assert outcomes["broken"].result is None
    assert "RuntimeError: call 2" in (outcomes["broken"].error or "")
    assert len(list(tmp_path.iterdir())) == 1 + RETRIES


def test_a_users_mistake_reaches_the_driver_at_once(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder is gone · where: worker · next: bring it back"):
        list(pool.run([Task("g", "a", worker_tasks.complain, (str(tmp_path),))]))
    assert len(list(tmp_path.iterdir())) == 1


def test_local_workers_have_their_threads_and_allocator_set(local_pool: Pool) -> None:
    results = [o.result or {} for o in local_pool.run(Task("g", str(i), worker_tasks.double, (i,)) for i in range(8))]
    assert os.getpid() not in {r["process"] for r in results}
    for name in THREADS:
        assert {r["environment"][name] for r in results} == {"2"}
    for name in ALLOCATOR:
        assert {r["environment"][name] for r in results} == {str(KEPT_BYTES)}


def test_a_killed_worker_costs_its_task_a_second_try(local_pool: Pool, tmp_path: Path) -> None:
    [outcome] = local_pool.run([Task("g", "a", worker_tasks.die_once, (str(tmp_path / "mark"),))])
    assert outcome.result == {}


@pytest.mark.slow
def test_a_worker_begins_its_next_task_while_the_last_one_writes(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    both = [(one, other), (other, one)]
    with open_pool(settings(scheduler="local", workers=1)) as pool:
        done = list(pool.run(Task("g", mine, worker_tasks.write_while_another_computes, (mine, o)) for mine, o in both))
    assert [outcome.result and outcome.result["met"] for outcome in done] == [True, True]
    assert len({outcome.result["process"] for outcome in done if outcome.result}) == 1


def test_only_one_task_writes_without_its_slot() -> None:
    said: list[str] = []
    computed = [threading.Event(), threading.Event()]

    def task(number: int) -> None:
        with giving_up(partial(said.append, f"{number} gives its slot up")):
            computed[number].set()
            give_up_slot()
            if number == 0:
                other.start()
                assert computed[1].wait(20)
                # The other has all the time to give its slot up as well, if nothing keeps it.
                time.sleep(0.05)
            said.append(f"{number} has written")

    other = threading.Thread(target=task, args=(1,))
    task(0)
    other.join(20)
    assert said == ["0 gives its slot up", "0 has written", "1 gives its slot up", "1 has written"]


def test_a_task_that_breaks_while_writing_frees_the_next() -> None:
    said: list[str] = []
    for number in range(2):
        with contextlib.suppress(OSError), giving_up(partial(said.append, f"{number}")):
            give_up_slot()
            give_up_slot()
            raise OSError
    assert said == ["0", "1"]
    give_up_slot()


@pytest.mark.slow
def test_a_second_build_beside_the_first_starts_without_a_word(local_pool: Pool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with open_pool(settings(scheduler="local", workers=1)) as pool:
            [outcome] = pool.run([Task("g", "a", worker_tasks.double, (1,))])
    assert outcome.error is None


def test_each_worker_sees_one_gpu_in_turn() -> None:
    seen = [worker_environment(number, ["2", "5"]) for number in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["2", "5", "2"]
    assert worker_environment(0, []) == {}


@pytest.mark.parametrize("named", ["-1", "NoDevFiles"])
def test_a_name_of_no_gpu_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_devices("auto") == []


def test_default_workers_are_bounded_by_cores_and_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 64 << 30)
    assert [default_workers(threads) for threads in (1, 2, 4, 16)] == [6, 3, 1, 1]
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 5 << 30)
    assert default_workers(1) == 2


@pytest.mark.slow
def test_the_shell_has_its_thread_variables_back_after_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with open_pool(settings(scheduler="local", workers=1)):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_a_cluster_is_joined_once_it_has_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setattr(schedule, "FIRST_WORKER_S", 0.2)
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        joined = settings(scheduler=cluster.scheduler_address)
        with pytest.raises(UserError, match=r"this cluster has no workers .* --nthreads 1"), open_pool(joined):
            pass
        cluster.scale(1)
        cluster.wait_for_workers(1)
        with open_pool(joined, leave=partial(worker_tasks.leave_mark, str(mark))) as pool:
            [outcome] = pool.run([Task("g", "a", worker_tasks.double, (1,))])
            assert outcome.error is None
            assert not mark.exists()
        assert mark.exists()


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_named() -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        for address, reason in (("tcp://127.0.0.1:1", "127.0.0.1:1"), ("tls://127.0.0.1:1", "ssl_context")):
            with (
                pytest.raises(UserError, match=f"no scheduler answers .*{reason}"),
                open_pool(settings(scheduler=address)),
            ):
                pass


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown scheduler .* got: slurm"), open_pool(settings(scheduler="slurm")):
        pass


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
    with keeping_to_own_threads() if keeps else contextlib.nullcontext():
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
        with open_pool(settings(scheduler=scheduler, workers=1)) as pool:
            (outcome,) = pool.run([Task("train", "shard", _allowed, ())])
        assert outcome.result == {"allowed": allowed}
