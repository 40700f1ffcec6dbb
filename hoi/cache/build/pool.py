"""Run tasks in this process, on local workers or on a cluster. The only module that knows dask.

A task is a function of a module and a few strings and numbers; its result is small. Arrays never come this way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import resource_tracker
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from hoi.config import CacheConfig
from hoi.errors import UserError
from hoi.machine import keeping_to_own_threads, visible_devices

if TYPE_CHECKING:
    from hoi.cache.build.worker_check import Answer, WorkerCheck

TASKS_PER_WORKER = 2
"""Tasks in flight per worker: one that computes, and one that waits or already writes."""
MAX_DEFAULT_WORKERS = 8
WORKER_BYTES = 2 << 30
"""Memory of a default worker: torch, a detector and a teacher of the usual sizes, a shard computed and one written."""
INTERRUPTED_CLOSE_S = 2.0
FIRST_WORKER_S = 60.0
COUNT_INTERVAL_S = 5.0
"""How often the workers are counted, so that those that join later get tasks, too."""
KEPT_BYTES = 2**30
"""What a worker's allocator keeps for its next batch. Dask's default keeps next to none, at thrice the system time."""
RETRIES = 2
"""How often a task that failed is tried again."""

_give_up: ContextVar[Callable[[], None] | None] = ContextVar("give_up", default=None)
_writing = Lock()


@contextlib.contextmanager
def giving_up(how: Callable[[], None]) -> Iterator[None]:
    """Let the task that runs here call `give_up_slot` once."""
    with contextlib.ExitStack() as until_done:

        def give_up() -> None:
            until_done.enter_context(_writing)
            how()

        token = _give_up.set(give_up)
        try:
            yield
        finally:
            _give_up.reset(token)


def give_up_slot() -> None:
    """Let the next task of this worker begin: what is left of this one is writing, one task of a process at a time."""
    give_up = _give_up.get()
    if give_up is not None:
        _give_up.set(None)
        give_up()


@dataclass(frozen=True)
class Task:
    """One call of a function that workers can import; its name is unique within its group."""

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
        """Yield outcomes as they come. A task that fails is tried `RETRIES` times more, then given up.

        Raises UserError: a task met a user's mistake; no further task is begun.
        """


class SynchronousPool:
    """One task after the other, in this process and thread."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            error = ""
            for _ in range(1 + RETRIES):
                try:
                    attempt = timed_call(task.function, task.arguments)
                except Exception:
                    error = traceback.format_exc()
                else:
                    yield outcome_of(task, attempt)
                    break
            else:
                yield Outcome(task, None, None, error)


Attempt = tuple[float, dict[str, Any] | UserError]
"""Seconds, and the result or the user's mistake: as a value it is neither retried nor logged."""


def timed_call(function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> Attempt:
    start = time.monotonic()
    try:
        result = function(*arguments)
        return time.monotonic() - start, result
    except UserError as error:
        return time.monotonic() - start, error


def outcome_of(task: Task, attempt: Attempt) -> Outcome:
    seconds, result = attempt
    if isinstance(result, UserError):
        raise result
    return Outcome(task, result, seconds, None)


class DaskPool:
    """A window of tasks in flight on a dask.distributed cluster, whose workers have to pass a check, if any."""

    def __init__(self, client: Any, check: WorkerCheck | None = None) -> None:
        self._client, self._num_workers, self._counted = client, 0, 0.0
        self._check = check
        if check is not None:
            # A worker that dies meanwhile is left out, and asked when it comes back.
            answers = client.run(_answer, check, on_error="return")
            present = {address: answer for address, answer in answers.items() if not isinstance(answer, OSError)}
            if not present:
                fix = "start workers, then run again"
                raise UserError("no worker answers", where=client.scheduler.address, fix=fix)
            self._check = check.settle(present)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        from distributed import as_completed

        remaining = iter(tasks)
        in_flight: dict[Any, Task] = {}

        def submit() -> Iterator[Any]:
            for task in islice(remaining, max(1, self._window() - len(in_flight))):
                arguments = (task.function, task.arguments, self._check)
                future = self._client.submit(_on_worker, *arguments, pure=False, retries=RETRIES)
                in_flight[future.key] = task
                yield future

        completed = as_completed(list(submit()))
        for future in completed:
            task = in_flight.pop(future.key)
            if future.status == "finished":
                yield outcome_of(task, future.result())
            elif future.status == "error":
                yield Outcome(task, None, None, "".join(traceback.format_exception(future.exception())))
            else:
                raise _lost_scheduler(self._client)
            future.release()
            completed.update(list(submit()))

    def _window(self) -> int:
        if time.monotonic() - self._counted > COUNT_INTERVAL_S:
            try:
                self._num_workers = len(self._client.nthreads())
            except OSError:
                raise _lost_scheduler(self._client) from None
            self._counted = time.monotonic()
        return TASKS_PER_WORKER * max(1, self._num_workers)


def _lost_scheduler(client: Any) -> UserError:
    return UserError(
        "the connection to the scheduler is lost",
        where=client.scheduler.address if client.scheduler is not None else None,
        fix="start it again, then run the same command again: finished shards are kept",
    )


def _on_worker(
    function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], check: WorkerCheck | None
) -> Attempt:
    from distributed import get_worker, secede

    if check is not None:
        try:
            check.admit(get_worker().state.nthreads)
        except UserError as error:
            return 0.0, error
    with giving_up(secede), keeping_to_own_threads():
        return timed_call(function, arguments)


async def _answer(check: WorkerCheck, dask_worker: Any) -> Answer:
    # In a thread, since imports and images take seconds in which the worker has to go on saying that it lives.
    return await asyncio.to_thread(check.answer, dask_worker.state.nthreads)


@contextlib.contextmanager
def open_pool(
    config: CacheConfig, check: WorkerCheck | None = None, leave: Callable[[], None] | None = None
) -> Iterator[Pool]:
    """Open what a cache section names to run tasks on; what is started here is stopped at the end.

    Workers that live on are asked to `leave`. Raises a UserError if the scheduler is unknown or does not answer, or a
    worker does not pass the check.
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
        if config.scheduler == "local":
            client = _local_client(config, stack)
        else:
            client = _join(config.scheduler, stack)
            if leave is not None:

                @stack.callback
                def tell_all() -> None:
                    # Workers and scheduler may be gone by then; there is nothing to leave in order.
                    with contextlib.suppress(Exception):
                        client.run(leave, on_error="ignore")

        yield DaskPool(client, check)


def _local_client(config: CacheConfig, stack: contextlib.ExitStack) -> Any:
    import dask
    from distributed import Client, LocalCluster

    devices, num_workers = visible_devices(config.device), num_local_workers(config)

    class OneDeviceEach(LocalCluster):
        """A local cluster whose workers differ in their environment: a GPU each."""

        def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
            spec = super().new_worker_spec()
            for name, worker in spec.items():
                worker["options"] = {**worker["options"], "env": worker_environment(int(name), devices)}
            return spec

    # A worker needs these before it imports numpy. This process's environment has priority over what dask is told, so
    # the threads, which the fingerprint names, are set here.
    threads = {f"{library}_NUM_THREADS": str(config.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    stack.enter_context(_environment(threads))
    allocator = {"MALLOC_TRIM_THRESHOLD_": KEPT_BYTES, "MALLOC_MMAP_THRESHOLD_": KEPT_BYTES}
    settings = {f"distributed.nanny.pre-spawn-environ.{k}": v for k, v in {**threads, **allocator}.items()}
    stack.enter_context(dask.config.set(settings))
    with _keep_interruptions():
        cluster = OneDeviceEach(
            n_workers=0,
            processes=True,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            # Without a dashboard, too, the scheduler takes a port, and says so where another build took it before.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=50,
        )
    stack.push(partial(_close, cluster))
    cluster.scale(num_workers)
    client = Client(cluster)
    stack.push(partial(_close, client))
    client.wait_for_workers(num_workers)
    return client


def _close(started: Any, kind: type[BaseException] | None, error: object, trace: object) -> None:
    # Errors of the closing hide no other error, and a worker that is slow to end spoils no finished work.
    with contextlib.suppress(Exception):
        if kind is None or issubclass(kind, Exception):
            started.close()
        else:
            # Workers that are ended in the middle of an answer are an error to dask's log, which outlives the cluster.
            for handler in logging.getLogger("distributed").handlers:
                handler.addFilter(lambda record: False)
            # At the end of this process dask would wait for workers that are still starting; they end with it anyway.
            started.shutdown_on_close = False
            started.close(timeout=INTERRUPTED_CLOSE_S)


@contextlib.contextmanager
def _keep_interruptions() -> Iterator[None]:
    # Threads started here, and their processes, never see Ctrl-C: the driver ends them. The tracker's first start would
    # let it through again in such a thread, so it happens before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in values if name in before})


def _join(address: str, stack: contextlib.ExitStack) -> Any:
    from distributed import Client

    # Dask has lines of its own about a lost scheduler; ours say what to do. Its import sets these levels.
    for logger in (logging.getLogger("distributed"), logging.getLogger("distributed.client")):
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    try:
        client = Client(address)
    except (OSError, asyncio.TimeoutError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            "no scheduler answers",
            where=address,
            got=str(error),
            fix="start one (dask scheduler) and its workers (dask worker ADDRESS), or set cache.scheduler=local",
        ) from None
    stack.push(partial(_close, client))
    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER_S)
    except (TimeoutError, asyncio.TimeoutError):
        fix = f"dask worker {address} --nthreads 1 --memory-limit 0"
        raise UserError("this cluster has no workers", where=address, fix=fix) from None
    return client


def worker_environment(number: int, devices: Sequence[str]) -> dict[str, str]:
    """Return the environment that is a worker's own: one GPU, taken in turn, where there are any."""
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if devices else {}


def num_local_workers(config: CacheConfig) -> int:
    return config.workers or len(visible_devices(config.device)) or default_workers(config.threads)


def default_workers(threads: int) -> int:
    """Return how many processes the cores and the memory that this process may use can serve, up to a limit."""
    from distributed.system import MEMORY_LIMIT

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_DEFAULT_WORKERS, cores // threads, MEMORY_LIMIT // WORKER_BYTES))
