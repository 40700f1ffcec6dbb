"""Several processes against one on the same batches, and how they end when one of them fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from hoi.config import TrainConfig
from hoi.errors import UserError, run_program
from hoi.matching import LabelTargets, label_targets
from hoi.records import PairBatch
from hoi.students.base import Student, build_student
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.training.distributed import Group, join, one_voice
from hoi.training.loop import fit
from hoi.training.runs import RunFolder
from tests.fakes.pipelines import refused
from tests.fakes.splits import AXES, CELLS, CHANNELS, SMALL_HOICLIP, VOCABULARY, Split, make_map_split, make_split

CPU = torch.device("cpu")
# Forks of a process that has nothing but imported this: torch is imported once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
SPLIT = make_split((3, 1, 0, 4, 2, 5, 1))
MAPS = make_map_split((3, 1, 0, 4, 2, 5, 1))
# 7 images in batches of 3: shares are unequal, and the last batch leaves one process without any.
TRAIN = TrainConfig(epochs=2, batch_images=3, checkpoint_every=1)
STUDENTS = {
    "faithful": MultiLevelConfig(dropout=0.0),
    "all_heads": MultiLevelConfig(
        dropout=0.0,
        targets={"image": "pairs"},
        aggregation="logsumexp",
        score={"weights": {"spatial": 0.5, "relatedness": 0.5}},
    ),
    "supervised": MultiLevelConfig(dropout=0.0, supervision="labels", score={"weights": {"spatial": 0.5}}),
    "hoiclip_teacher": HoiclipConfig(method="hoiclip", targets={"top_least": 2}, **SMALL_HOICLIP),
    "hoiclip_labels": HoiclipConfig(method="hoiclip", supervision="labels", **SMALL_HOICLIP),
}


@dataclass(frozen=True)
class Shares:
    """One process's share of the batches of a split."""

    split: Split
    group: Group

    @property
    def num_images(self) -> int:
        return self.split.num_images

    def batches(self, *arguments: Any) -> Iterator[PairBatch]:
        for batch in self.split.batches(*arguments):
            yield self.split.batch(self.group.own(batch.image_rows.numpy()))


class Interrupted(Shares):
    """Shares of one epoch; all processes are interrupted before the next."""

    def batches(self, *arguments: Any) -> Iterator[PairBatch]:
        vars(self)["epochs_begun"] = vars(self).get("epochs_begun", 0) + 1
        if vars(self)["epochs_begun"] == 2:
            raise KeyboardInterrupt
        return super().batches(*arguments)


def train(name: str, folder: Path, group: Group, config: TrainConfig = TRAIN, source: Shares | None = None) -> Student:
    settings = STUDENTS[name]
    split, axes = SPLIT, AXES
    if settings.method == "hoiclip":
        split, axes = MAPS, {**AXES, "C": CHANNELS, "H": CELLS, "W": CELLS}
    labels: LabelTargets | None = None
    if settings.supervision == "labels":
        labels = label_targets(split.batches(4, None), split.labels, VOCABULARY, split.num_images)
    # Only the first process's weights count.
    student = build_student(settings, split.bank, VOCABULARY, axes, seed=5 + group.rank)
    # Each process looks at all images, in an order of its own.
    student.prepare(split.batches(4, np.random.default_rng(group.rank)), labels)
    run = RunFolder(folder / name, settings, {"name": name})
    source = source or Shares(split, group)
    return fit(student, source, config, seed=5, device=CPU, labels=labels, run=run, group=group)[0]


def train_all(group: Group, folder: Path) -> None:
    for name in STUDENTS:
        torch.save(train(name, folder, group).state_dict(), folder / f"{name}-{group.rank}.pt")


def train_in_two_parts(group: Group, folder: Path) -> None:
    """Once as it is, and once with an interruption after the first epoch."""
    torch.save(train("faithful", folder / "whole", group).state_dict(), folder / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        train("faithful", folder / "parts", group, source=Interrupted(SPLIT, group))
    # The second process does not look into the folder.
    elsewhere = folder / "parts" if group.is_first else folder / "nowhere"
    torch.save(train("faithful", elsewhere, group).state_dict(), folder / "resumed.pt")


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
    """What torchrun does for each process, whose store it keeps; errors go to a file."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"

    def program() -> None:
        with one_voice(), join(CPU) as group:
            work(group, folder)

    with (folder / f"stderr-{rank}").open("w") as file, redirect_stderr(file):
        run_program(program)


def run_processes(size: int, work: Callable[[Group, Path], None], folder: Path) -> list[int | None]:
    """Exit codes by rank."""
    distributed: Any = torch.distributed
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [FORKS.Process(target=process, args=(rank, size, store.port, work, folder)) for rank in range(size)]
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


@pytest.mark.parametrize(("size", "got"), [("2", "MASTER_ADDR"), ("two", "'two'")])
def test_half_of_torchruns_settings_are_one_line(monkeypatch: pytest.MonkeyPatch, size: str, got: str) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", size)):
        monkeypatch.setenv(name, value)
    error = refused(one_voice().__enter__)
    assert "RANK and WORLD_SIZE say that others train" in error.what
    assert got in str(error.got)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    assert run_processes(2, train_all, tmp_path) == [0, 0], errors(tmp_path, 2)
    for name in STUDENTS:
        alone = train(name, tmp_path / "alone", Group()).state_dict()
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        for key, expected in alone.items():
            assert torch.equal(first[key], second[key])
            if key.endswith("key.bias"):
                # What all keys share moves no softmax, so its gradient is nothing but rounding.
                continue
            difference = (first[key] - expected).abs()
            # Adam divides a gradient by its own size, so weights whose gradient is all rounding may move a little more.
            assert difference.square().mean().sqrt() < 1e-6
            assert difference.max() < 1e-4
        for here, there in zip(metrics(tmp_path / name), metrics(tmp_path / "alone" / name), strict=True):
            # Losses sum terms of order 1 in float32, however small they are themselves.
            assert here == pytest.approx(there, rel=1e-4, abs=1e-6)
        # The second wrote nothing: one line an epoch.
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["metrics.jsonl", "state.safetensors"]


def test_processes_go_on_from_the_first_ones_checkpoint(tmp_path: Path) -> None:
    assert run_processes(2, train_in_two_parts, tmp_path) == [0, 0], errors(tmp_path, 2)
    undisturbed, resumed = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "resumed"))
    for key, expected in undisturbed.items():
        assert torch.equal(resumed[key], expected)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (fails_on_the_second, "error: the second one cannot go on · where: here"),
        (too_few_images, "error: a batch has fewer images than there are processes to share it · where: process"),
        (is_killed, "error: another process of this training ended without an error message · where: process 0 of 2"),
    ],
)
def test_a_process_that_fails_ends_all_with_one_line(
    tmp_path: Path, work: Callable[[Group, Path], None], said: str
) -> None:
    codes = run_processes(2, work, tmp_path)
    assert 0 not in codes
    (line,) = errors(tmp_path, 2)
    assert line.startswith(said)
