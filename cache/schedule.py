"""Tasks to outcomes, on this process, on local workers or on a cluster. The only module that knows dask.

A task is a function of a module and a few strings and numbers; its result is small. Arrays never come this way.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from hoi.config import CacheConfig
from hoi.errors import UserError

RETRIES = 2
TASKS_PER_WORKER = 2
"""Tasks in flight per worker: one that computes, one that waits, so that a lost worker loses little."""
MAX_DEFAULT_WORKERS = 8
KEPT_BYTES = 2**30
"""What a worker's allocator keeps for its next batch. Dask's default keeps next to none, at thrice the system time."""


@dataclass(frozen=True)
class Task:
    """One call on a worker.

    Args:
        group: What the task belongs to.
        name: Readable key, unique within its group.
        function: A function that workers can import.
        arguments: A few strings and numbers.
    """

    group: str
    name: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its result and the seconds it took, or the traceback of its last attempt."""

    task: Task
    result: dict[str, Any] | None
    seconds: float | None
    error: str | None


class Pool(Protocol):
    """Runs tasks, in any order of completion."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Tasks to outcomes as they come. A task that fails is tried `RETRIES` times more, then given up.

        Raises:
            UserError: a task met a user's mistake; no further task is begun.
        """
        ...


class SynchronousPool:
    """One task after the other, in this process and thread."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Pool.run`."""
        for task in tasks:
            yield _attempt_here(task)


def _attempt_here(task: Task) -> Outcome:
    error = ""
    for _ in range(1 + RETRIES):
        try:
            seconds, result = _timed(task.function, task.arguments)
        except Exception:
            error = traceback.format_exc()
        else:
            return _outcome(task, seconds, result)
    return Outcome(task, None, None, error)


def _timed(
    function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> tuple[float, dict[str, Any] | UserError]:
    """On a worker: a user's mistake travels as a value, so that it is neither retried nor logged."""
    start = time.monotonic()
    try:
        result = function(*arguments)
        return time.monotonic() - start, result
    except UserError as error:
        return time.monotonic() - start, error


def _outcome(task: Task, seconds: float, result: dict[str, Any] | UserError) -> Outcome:
    if isinstance(result, UserError):
        raise result
    return Outcome(task, result, seconds, None)


class DaskPool:
    """A window of tasks in flight on a dask.distributed cluster."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Pool.run`."""
        from distributed import as_completed

        remaining = iter(tasks)
        in_flight: dict[Any, Task] = {}

        def submit(number: int) -> list[Any]:
            futures = []
            for task in islice(remaining, number):
                future = self._client.submit(_timed, task.function, task.arguments, pure=False, retries=RETRIES)
                in_flight[future.key] = task
                futures.append(future)
            return futures

        num_workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))
        completed = as_completed(submit(TASKS_PER_WORKER * num_workers))
        for future in completed:
            task = in_flight.pop(future.key)
            if future.status == "finished":
                yield _outcome(task, *future.result())
            else:
                yield Outcome(task, None, None, "".join(traceback.format_exception(future.exception())))
            future.release()
            completed.update(submit(1))


@contextlib.contextmanager
def open_pool(config: CacheConfig) -> Iterator[Pool]:
    """A cache section to somewhere to run tasks; what was started is stopped at the end.

    Raises:
        UserError: `scheduler` is none of the known forms, or nothing answers at its address.
    """
    if config.scheduler == "synchronous":
        yield SynchronousPool()
        return
    if config.scheduler != "local" and "://" not in config.scheduler:
        raise UserError(
            "unknown scheduler",
            where="cache.scheduler",
            expected="local, synchronous, or an address such as tcp://host:8786",
            got=config.scheduler,
        )
    with contextlib.ExitStack() as stack:
        yield DaskPool(_local_client(config, stack) if config.scheduler == "local" else _join(config.scheduler, stack))


def _local_client(config: CacheConfig, stack: contextlib.ExitStack) -> Any:
    import dask
    from distributed import Client, LocalCluster

    devices = visible_devices(config.device)
    num_workers = config.workers or len(devices) or default_workers(config.threads)

    class OneDeviceEach(LocalCluster):
        """A local cluster whose workers differ in their environment: a GPU each."""

        def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
            spec = super().new_worker_spec()
            for name, worker in spec.items():
                worker["options"] = {**worker["options"], "env": worker_environment(int(name), devices)}
            return spec

    # These must be there before a worker imports numpy, which an environment of its own would be too late for.
    environment = {f"{library}_NUM_THREADS": config.threads for library in ("OMP", "MKL", "OPENBLAS")}
    environment |= {"MALLOC_TRIM_THRESHOLD_": KEPT_BYTES, "MALLOC_MMAP_THRESHOLD_": KEPT_BYTES}
    before = "distributed.nanny.pre-spawn-environ"
    stack.enter_context(dask.config.set({f"{before}.{name}": value for name, value in environment.items()}))
    cluster = stack.enter_context(
        OneDeviceEach(
            n_workers=0,
            processes=True,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            # Without a dashboard, too, the scheduler takes a port, and says so where another build took it before.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        )
    )
    cluster.scale(num_workers)
    client = stack.enter_context(Client(cluster))
    client.wait_for_workers(num_workers)
    return client


def _join(address: str, stack: contextlib.ExitStack) -> Any:
    from distributed import Client

    try:
        client = stack.enter_context(Client(address))
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(
            "no scheduler answers",
            where=address,
            got=str(error),
            fix="start one (dask scheduler) and its workers (dask worker ADDRESS), or set cache.scheduler=local",
        ) from None
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise UserError("this cluster has no workers", where=address, fix=f"dask worker {address} --nthreads 1")
    return client


def worker_environment(number: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment that is a worker's own: one GPU, taken in turn, where there are any."""
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}


def default_workers(threads: int) -> int:
    """As many processes as the cores that this process may use can serve, up to a limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_DEFAULT_WORKERS, cores // threads))


def visible_devices(device: str) -> list[str]:
    """The GPUs of this machine as `CUDA_VISIBLE_DEVICES` names them; none where the CPU is asked for."""
    if device == "cpu":
        return []
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(index) for index in range(torch.cuda.device_count())]
