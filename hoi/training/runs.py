"""The folder of one training run: checkpoint while it lasts, weights and record when it is done.

    .lock               held by the process that trains
    metrics.jsonl       one line per epoch
    tensorboard/        the same figures, if `train.tensorboard` is set
    state.safetensors   the last checkpoint; gone when the run is done
    model.safetensors   the weights
    run.json            settings, fingerprint, versions; written last, so its presence means complete

A run is identified by its settings: a folder made with others is refused, never reused and never overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hoi.config import StudentSettings
from hoi.errors import UserError, command
from hoi.files import (
    Finite,
    append_line,
    read_json,
    remove_file,
    write_atomically,
    write_json,
)
from hoi.provenance import flatten
from hoi.records import TextBank
from hoi.students.base import Student, build_student
from hoi.vocabulary import Vocabulary
from hoi.weights import first_line

Settings = dict[str, Any]


class RunRecord(TypedDict, total=False):
    """What is read again of run.json."""

    settings: Required[Settings]
    seconds: Finite
    chosen_epoch: Annotated[int, Meta(ge=1)]
    versions: dict[str, str]
    commit: str | None


@dataclass(frozen=True)
class RunFolder:
    """One run on disk."""

    path: Path
    student: StudentSettings
    settings: Settings  # all that decides the weights, as plain JSON data: student, training, seed, cache fingerprint

    def status(self) -> Literal["new", "started", "finished"]:
        """Return how far the run is; a UserError names each key in which a run in the folder has other settings."""
        if (self.path / "run.json").exists():
            self._refuse_other_settings(self.record()["settings"])
            return "finished"
        if (self.path / "state.safetensors").exists():
            self._refuse_other_settings(json.loads(self._state_header()["settings"]))
            return "started"
        return "new"

    def record(self) -> RunRecord:
        """Return what `finish` wrote; a UserError if there is no finished run, or its record is damaged."""
        fix = f"rm -r {self.path}"
        record: RunRecord | None = read_json(self.path / "run.json", RunRecord, "the record of a training run", fix)
        if record is None:
            raise UserError("there is no finished training run", where=self.path, fix=command("train"))
        return record

    def log(self, record: dict[str, Any]) -> None:
        append_line(self.path / "metrics.jsonl", json.dumps(record))

    def keep_metrics(self, num_lines: int) -> None:
        """Drop the lines of metrics.jsonl about epochs after the checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:num_lines]
            write_atomically(path, "".join(lines).encode())

    def save_state(self, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        """Replace the checkpoint, whole or not at all."""
        metadata = {**header, "settings": json.dumps(self.settings)}
        write_atomically(self.path / "state.safetensors", save(_plain(tensors), metadata))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the last checkpoint's tensors and header."""
        header = self._state_header()
        return load_file(self.path / "state.safetensors"), header

    def finish(self, student: Student, record: dict[str, Any]) -> None:
        """Write the weights, then the record that says the run is done, and drop the checkpoint."""
        write_atomically(self.path / "model.safetensors", save(_plain(student.state_dict())))
        write_json(self.path / "run.json", {**record, "settings": self.settings}, sort_keys=False)
        remove_file(self.path / "state.safetensors")

    def load_student(self, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int]) -> Student:
        """Return the trained student, in evaluation mode on the CPU; a UserError if there is none."""
        if self.status() != "finished":
            self.record()
        fix = f"rm -r {self.path}, then {command('train')}"
        return load_student(self.path / "model.safetensors", self.student, bank, vocabulary, axes, fix).eval()

    def _state_header(self) -> dict[str, str]:
        path = self.path / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                return file.metadata()
        except SafetensorError as error:
            raise UserError("a checkpoint is damaged", where=path, got=error, fix=f"rm -r {self.path}") from None

    def _refuse_other_settings(self, written: Settings) -> None:
        have, want = flatten(written), flatten(json.loads(json.dumps(self.settings)))
        differing = sorted(key for key in have.keys() | want.keys() if have.get(key) != want.get(key))
        if differing:
            raise UserError(
                "this folder holds a training run of other settings",
                where=self.path,
                expected=", ".join(f"{key} = {want.get(key)}" for key in differing),
                got=", ".join(f"{key} = {have.get(key)}" for key in differing),
                fix=f"rm -r {self.path}, or set another output",
            )


def seconds_of(folder: Path) -> float | None:
    """Return how long a run took; None for one that is not finished."""
    record: RunRecord | None = read_json(folder / "run.json", RunRecord, "the record of a training run")
    return None if record is None else record.get("seconds")


def load_student(
    path: Path,
    settings: StudentSettings,
    bank: TextBank,
    vocabulary: Vocabulary,
    axes: Mapping[str, int],
    fix: str | None = None,
) -> Student:
    """Return a student with the weights of a safetensors file.

    Names and shapes are compared with the file's header before anything of their size is allocated.

    Raises:
        UserError: the file is missing, damaged, not finite, or of another student.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        with torch.device("meta"):
            wanted = build_student(settings, bank, vocabulary, axes).state_dict()
        expected = {name: tuple(value.shape) for name, value in wanted.items()}
        if shapes != expected:
            name = min(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
            got = f"{name} of shape {shapes.get(name, 'none')}, expected {expected.get(name, 'none')}"
            raise UserError("the weights do not fit the student's settings", where=path, got=got, fix=fix)
        state = load_file(path)
        infinite = next((name for name, value in state.items() if not torch.isfinite(value).all()), None)
        if infinite is not None:
            raise UserError("the weights of a student are not finite", where=path, got=infinite, fix=fix)
        student = build_student(settings, bank, vocabulary, axes)
        student.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        what = "the weights of a student are missing or damaged"
        raise UserError(what, where=path, got=first_line(error), fix=fix) from None
    return student


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def check_tensorboard() -> None:
    """Raise if TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError(
            "TensorBoard is not installed",
            where="train.tensorboard",
            fix="pip install 'hoi-distill[tensorboard]' (in a checkout: .venv/bin/pip install -e '.[tensorboard]'), "
            "or set train.tensorboard: false",
        )


class TensorBoardLogger:
    """Writes what `tensorboard --logdir FOLDER` shows of a run; epochs after `epochs_done` are dropped."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def log(self, epoch: int, record: Mapping[str, float]) -> None:
        """Add an epoch's figures; `loss_union` is shown as a part of `loss`."""
        for name, value in record.items():
            kind, _, part = name.partition("_")
            tag = f"{kind}/{part}" if kind in ("loss", "agreement") and part else name
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
