"""Tasks run on this process or on others with the same outcomes; failures are retried, users' mistakes are not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.schedule import KEPT_BYTES, RETRIES, Pool, SynchronousPool, Task, open_pool, worker_environment
from hoi.config import CacheConfig
from hoi.errors import UserError
from tests import worker_tasks


def settings(**keys: Any) -> CacheConfig:
    return CacheConfig(folder="unused", device="cpu", **keys)


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@pytest.fixture(scope="module")
def local_pool() -> Iterator[Pool]:
    with pytest.MonkeyPatch.context() as patch:
        # What stands in the environment already goes before what dask is told.
        for name in (*THREADS, *ALLOCATOR):
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


def test_a_task_that_keeps_breaking_is_given_up_and_the_others_run(pool: Pool, tmp_path: Path) -> None:
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


def test_local_workers_are_other_processes_with_their_threads_and_allocator_set(local_pool: Pool) -> None:
    results = [o.result or {} for o in local_pool.run(Task("g", str(i), worker_tasks.double, (i,)) for i in range(8))]
    assert os.getpid() not in {r["process"] for r in results}
    for name in THREADS:
        assert {r["environment"][name] for r in results} == {"2"}
    for name in ALLOCATOR:
        assert {r["environment"][name] for r in results} == {str(KEPT_BYTES)}


def test_a_killed_worker_costs_its_task_a_second_try(local_pool: Pool, tmp_path: Path) -> None:
    [outcome] = local_pool.run([Task("g", "a", worker_tasks.die_once, (str(tmp_path / "mark"),))])
    assert outcome.result == {}


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


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown scheduler .* got: slurm"), open_pool(settings(scheduler="slurm")):
        pass
