"""Workers that cannot take part, or differ from the others, are named before they get a task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hoi.cache.build.pool import Task, open_pool
from hoi.cache.build.worker_check import Answer, WorkerCheck, worker_check
from hoi.cache.manifest import WORKERS_NAME
from hoi.cache.plan import request_parts
from hoi.config import PipelineConfig
from tests.fakes import worker_tasks
from tests.fakes.pipelines import photo_pipeline, refused

SAME = {"python": "3.12.1", "torch": "2.15.0", "device": "cpu"}


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return photo_pipeline(tmp_path, cache={"scheduler": "local", "workers": 1})


@pytest.fixture
def check(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerCheck]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with worker_check(config, request_parts(config)) as made:
        assert made is not None
        yield made


def answer(problems: tuple[str, ...] = (), **facts: str) -> Answer:
    return Answer("somewhere, process 7", {**SAME, **facts}, problems, None)


@pytest.mark.slow
def test_a_worker_like_the_driver_passes(config: PipelineConfig) -> None:
    with worker_check(config, request_parts(config)) as made:
        assert made is not None
        with open_pool(config.cache, made) as pool:
            [outcome] = pool.run([Task("g", "a", worker_tasks.double, (1,))])
            assert outcome.error is None
            # The driver's token, what the worker answered at the start, and again before its first task.
            assert len(list((Path(config.cache.folder) / WORKERS_NAME).iterdir())) == 3
    assert list(Path(config.cache.folder).iterdir()) == []


def test_the_worker_that_differs_is_named_with_what_differs(check: WorkerCheck) -> None:
    def complaint(*others: Answer | Exception) -> str:
        answers = {f"tcp://{letter}:1": each for letter, each in zip("abc", (answer(), *others), strict=False)}
        return str(refused(check.settle, answers).got)

    of_b = "tcp://b:1 (somewhere, process 7): "
    assert complaint(answer(torch="2.14.1"), answer()) == f"{of_b}torch is 2.14.1, elsewhere 2.15.0"
    assert f"{of_b}device is cuda, elsewhere cpu" in complaint(answer(device="cuda"))
    assert f"{of_b}timm is 1.0, elsewhere absent" in complaint(answer(timm="1.0"))
    said = complaint(ModuleNotFoundError("No module named 'cache'"))
    assert said.startswith("tcp://b:1: ")
    assert said.endswith("No module named 'cache'); install hoi-distill there")
    assert check.settle({"tcp://a:1": answer(), "tcp://c:1": answer()}).facts == SAME


def test_what_a_worker_writes_must_arrive(check: WorkerCheck, config: PipelineConfig) -> None:
    given = check.answer(slots=1)
    assert given.written is not None
    check.settle({"tcp://a:1": given})
    (Path(config.cache.folder) / given.written).unlink()
    complaint = f": what it writes into {config.cache.folder} does not arrive here"
    assert complaint in str(refused(check.settle, {"tcp://a:1": given}).got)


def test_another_folder_under_the_same_name_is_found_out(check: WorkerCheck, config: PipelineConfig) -> None:
    folder = Path(config.cache.folder)
    folder.rename(folder.with_name("elsewhere"))
    assert check.answer(slots=1).problems == (
        f"it does not see the driver's cache folder as {folder}; "
        "mount the shared folder there, or give an absolute cache.folder that all machines share",
    )
    folder.with_name("elsewhere").rename(folder)


def test_images_that_only_the_driver_can_read_are_named(check: WorkerCheck, tmp_path: Path) -> None:
    (tmp_path / "images" / "00.png").unlink()
    said = "it cannot read the first image of split 'test' (unreadable: 00.png, the file is missing)"
    assert check.answer(slots=1).problems == (said,)


def test_other_files_under_the_pipelines_names_are_found(check: WorkerCheck, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.yaml"
    vocabulary.write_text("[{verb: ride, object: horse}]")
    assert check.answer(slots=1).problems == ("the pipeline names other files there: vocabulary differ",)
    vocabulary.unlink()
    [problem] = check.answer(slots=1).problems
    assert "vocabulary.yaml" in problem
    assert f"working directory {os.getcwd()}" in problem
    # Nor need it be a mistake of the user's that a file cannot be read.
    vocabulary.symlink_to("vocabulary.yaml")
    [problem] = check.answer(slots=1).problems
    assert "Too many levels of symbolic links" in problem


def test_threads_and_slots_are_asked_for(check: WorkerCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    slots, threads = check.answer(slots=8).problems
    assert slots == "it runs 8 tasks at once; start it with --nthreads 1"
    assert threads == ("numpy would compute with 3 threads, cache.threads is 1; start it with OMP_NUM_THREADS=1")


def test_a_gpu_that_is_not_there_is_named(
    check: WorkerCheck, config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = config.model_copy(update={"cache": config.cache.model_copy(update={"device": "cuda"})})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [problem] = replace(check, config_json=on_gpu.model_dump_json()).answer(slots=1).problems
    assert problem.startswith("no GPU can be used here")


def test_a_later_worker_is_held_to_what_was_agreed(check: WorkerCheck) -> None:
    agreed = check.settle({"tcp://a:1": check.answer(slots=1)})
    assert agreed.facts is not None
    other = replace(agreed, facts={**agreed.facts, "h5py": "3.1"})
    said = str(refused(other.admit, slots=1).got)
    assert ", which joined later: h5py is " in said
    assert said.endswith(", elsewhere 3.1")
    agreed.admit(slots=1)
    # It has passed, and is not asked again.
    other.admit(slots=1)
