"""Tasks run on this process or on others with the same outcomes; failures are retried, users' mistakes are not."""

from __future__ import annotations

import contextlib
import multiprocessing
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
    _close,
    default_workers,
    give_up_slot,
    giving_up,
    open_pool,
)
from hoi.cache.build.worker import read_ahead
from hoi.config import CacheConfig
from hoi.datasets import UnreadableImage
from hoi.machine import keeping_to_own_threads, may_have_side_threads, visible_devices, worker_environment
from tests.fakes import worker_tasks
from tests.fakes.pipelines import refused


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


def test_a_task_that_breaks_is_tried_again_then_given_up(pool: Pool, tmp_path: Path) -> None:
    tasks = [Task("g", str(i), worker_tasks.double, (i,)) for i in range(5)]
    for name, calls in (("mended", RETRIES), ("broken", 99)):
        (tmp_path / name).mkdir()
        tasks.append(Task("g", name, worker_tasks.break_until, (str(tmp_path / name), calls)))
    outcomes = {o.task.name: o for o in pool.run(tasks)}
    assert len(outcomes) == 7
    assert outcomes["mended"].result == {"calls": RETRIES}
    assert outcomes["broken"].result is None
    assert "RuntimeError: call 2" in (outcomes["broken"].error or "")
    assert len(list((tmp_path / "broken").iterdir())) == 1 + RETRIES


def test_a_users_mistake_reaches_the_driver_at_once(pool: Pool, tmp_path: Path) -> None:
    error = refused(list, pool.run([Task("g", "a", worker_tasks.complain, (str(tmp_path),))]))
    assert (error.what, error.where, error.fix) == ("the folder is gone", "worker", "bring it back")
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


def _allowed() -> dict[str, bool]:
    return {"allowed": may_have_side_threads()}


@pytest.mark.slow
def test_a_second_build_beside_the_first_starts_without_a_word(
    local_pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with open_pool(settings(scheduler="local", workers=1)) as pool:
            assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "1")
            [outcome] = pool.run([Task("g", "a", _allowed, ())])
    # A task on a worker may not have side threads, and the shell has its variables back.
    assert outcome.result == {"allowed": False}
    assert next(SynchronousPool().run([Task("g", "a", _allowed, ())])).result == {"allowed": True}
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def _kill_first_new_process(others: set[int | None], killed: threading.Event) -> None:
    while not killed.wait(0.002):
        for process in multiprocessing.active_children():
            if process.pid not in {*others, None}:
                process.kill()
                killed.set()


@pytest.mark.slow
def test_a_worker_killed_while_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (10, 0):
        monkeypatch.setattr(schedule, "MOST_FAILED_STARTS", most)
        others = {process.pid for process in multiprocessing.active_children()}
        killer = threading.Thread(target=_kill_first_new_process, args=(others, threading.Event()))
        killer.start()
        opened = open_pool(settings(scheduler="local", workers=1))
        if most:
            with opened as pool:
                [outcome] = pool.run([Task("g", "a", worker_tasks.double, (1,))])
                assert outcome.error is None
        else:
            error = refused(opened.__enter__)
            assert (error.what, error.got) == ("worker processes die while they start", 1)
        killer.join()


def test_each_worker_sees_one_gpu_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [worker_environment(number, ["2", "5"]) for number in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["2", "5", "2"]
    assert worker_environment(0, []) == {}
    for no_gpu in ("-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", no_gpu)
        assert visible_devices("auto") == []


def test_default_workers_are_bounded_by_cores_and_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 64 << 30)
    assert [default_workers(threads) for threads in (1, 2, 4, 16)] == [6, 3, 1, 1]
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 5 << 30)
    assert default_workers(1) == 2


@pytest.mark.slow
def test_a_cluster_is_joined_once_it_has_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    monkeypatch.setattr(schedule, "FIRST_WORKER_S", 0.2)
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        joined = settings(scheduler=cluster.scheduler_address)
        error = refused(open_pool(joined).__enter__)
        assert (error.what, "--nthreads 1" in str(error.fix)) == ("this cluster has no workers", True)
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
            error = refused(open_pool(settings(scheduler=address)).__enter__)
            assert (error.what, error.where, reason in str(error.got)) == ("no scheduler answers", address, True)


def test_workers_without_shared_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(multiprocessing.get_context("spawn")), "Lock", no_lock)
    error = refused(open_pool(settings(scheduler="local", workers=1)).__enter__)
    assert ("shared memory" in error.what, error.where, error.got) == (True, "/dev/shm", "No space left on device")


def test_an_unknown_scheduler_is_refused() -> None:
    error = refused(open_pool(settings(scheduler="sluurm")).__enter__)
    assert (error.what, error.where, error.got) == ("unknown scheduler", "cache.scheduler", "sluurm")


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


def test_a_worker_that_is_slow_to_end_spoils_no_finished_build() -> None:
    class Slow:
        def close(self) -> None:
            raise TimeoutError

    _close(Slow(), None, None, None)
