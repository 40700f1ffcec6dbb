"""Several processes against one on the same batches, and how they end when one of them fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi.config import StudentConfig, TrainConfig
from hoi.distributed import Group, join
from hoi.errors import UserError, run_program
from hoi.matching import LabelTargets, label_targets
from hoi.records import PairBatch
from hoi.runs import RunFolder
from hoi.students import Student, build_student
from hoi.training import fit
from tests.synthetic import AXES, VOCABULARY, Split, make_split

CPU = torch.device("cpu")
SPLIT = make_split((3, 1, 0, 4, 2, 5, 1))
# 7 images in batches of 3: shares are unequal, and the last batch leaves one process without any.
TRAIN = TrainConfig(epochs=2, batch_images=3, checkpoint_every=1)
STUDENTS = {
    "faithful": StudentConfig(dropout=0.0),
    "all_heads": StudentConfig(
        dropout=0.0,
        image_target="pairs",
        aggregation="logsumexp",
        score_spatial_weight=0.5,
        score_relatedness_weight=0.5,
    ),
    "supervised": StudentConfig(dropout=0.0, supervision="labels", score_spatial_weight=0.5),
}


@dataclass(frozen=True)
class Shares:
    """One process's share of the batches of a split."""

    split: Split
    group: Group

    @property
    def num_images(self) -> int:
        return self.split.num_images

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        for batch in self.split.batches(batch_images, rng, extra):
            yield self.split.batch(self.group.own(batch.image_rows.numpy()))


def train(name: str, folder: Path, group: Group, config: TrainConfig = TRAIN) -> Student:
    settings = STUDENTS[name]
    labels: LabelTargets | None = None
    if settings.supervision == "labels":
        labels = label_targets(SPLIT.batches(4, None), SPLIT.labels, VOCABULARY, SPLIT.num_images)
    # Only the first process's weights count.
    student = build_student(settings, SPLIT.bank, VOCABULARY, AXES, seed=5 + group.rank)
    run = RunFolder(folder / name, settings, {"name": name})
    source = Shares(SPLIT, group)
    return fit(student, source, config, seed=5, device=CPU, labels=labels, run=run, group=group)[0]


def train_all(group: Group, folder: Path) -> None:
    torch.set_num_threads(1)
    for name in STUDENTS:
        student = train(name, folder, group)
        torch.save(student.state_dict(), folder / f"{name}-{group.rank}.pt")


def resume(group: Group, folder: Path) -> None:
    one_more = TRAIN.model_copy(update={"epochs": 2})
    torch.save(train("faithful", folder, group, one_more).state_dict(), folder / f"resumed-{group.rank}.pt")


def too_few_images(group: Group, folder: Path) -> None:
    train("faithful", folder, group, TRAIN.model_copy(update={"batch_images": 1}))


def fails_on_the_second(group: Group, folder: Path) -> None:
    if group.rank == 1:
        raise UserError("the second one cannot go on", where="here")
    group.add(torch.zeros(1))


def is_killed(group: Group, folder: Path) -> None:
    group.add(torch.zeros(1))
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.add(torch.zeros(1))


def process(rank: int, size: int, port: int, work: Callable[[Group, Path], None], folder: Path) -> None:
    """What torchrun does for each process, with its errors in a file."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def program() -> None:
        with join(CPU) as group:
            work(group, folder)

    with (folder / f"stderr-{rank}").open("w") as file, redirect_stderr(file):
        run_program(program)


def run_processes(size: int, work: Callable[[Group, Path], None], folder: Path) -> list[int | None]:
    """Exit codes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=process, args=(rank, size, port, work, folder)) for rank in range(size)]
    for one in started:
        one.start()
    for one in started:
        one.join(60)
    return [one.exitcode for one in started]


def errors(folder: Path, size: int) -> list[str]:
    return [line for rank in range(size) for line in (folder / f"stderr-{rank}").read_text().splitlines()]


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "eta_s")} for line in lines]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_share_batches_learn_what_one_learns_from_the_whole(tmp_path: Path, size: int) -> None:
    assert run_processes(size, train_all, tmp_path) == [0] * size, errors(tmp_path, size)
    for name in STUDENTS:
        alone = train(name, tmp_path / "alone", Group()).state_dict()
        found = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(size)]
        for key, expected in alone.items():
            torch.testing.assert_close(found[0][key], expected, rtol=0, atol=1e-6)
            assert all(torch.equal(other[key], found[0][key]) for other in found[1:])
        for here, there in zip(metrics(tmp_path / name), metrics(tmp_path / "alone" / name), strict=True):
            assert here == pytest.approx(there, rel=1e-4)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["metrics.jsonl", "state.safetensors"]
