"""The folder of one training run: checkpoint while it lasts, weights and record when it is done.

    metrics.jsonl       one line an epoch
    tensorboard/        the same, where `train.tensorboard` asks for it
    state.safetensors   the last checkpoint; gone when the run is done
    model.safetensors   the weights
    run.json            settings, fingerprint, versions; written last, so its presence means complete

A run is its settings: a folder made with others is refused, never reused and never overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hoi.config import StudentSettings
from hoi.errors import UserError
from hoi.records import TextBank
from hoi.students.base import Student, build_student
from hoi.vocabulary import Vocabulary

Settings = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Args:
        path: Its folder.
        student: What is trained there.
        settings: All that decides the weights, as plain JSON data: student, training, seed, cache fingerprint.
    """

    path: Path
    student: StudentSettings
    settings: Settings

    def status(self) -> Literal["new", "started", "finished"]:
        """How far the run is.

        Raises:
            UserError: the folder holds a run of other settings, naming each key that differs.
        """
        if (self.path / "run.json").exists():
            self._check(self.record()["settings"])
            return "finished"
        if (self.path / "state.safetensors").exists():
            self._check(json.loads(self._state_header()["settings"]))
            return "started"
        return "new"

    def record(self) -> dict[str, Any]:
        """What `finish` wrote.

        Raises:
            UserError: there is no finished run here, or its record is damaged.
        """
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                "there is no finished training run", where=self.path, fix="make train (python -m hoi.training.train)"
            ) from None
        except ValueError:
            raise UserError(
                "the record of a training run is damaged", where=self.path / "run.json", fix=f"rm -r {self.path}"
            ) from None

    def log(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def keep_metrics(self, num_lines: int) -> None:
        """Drops what metrics.jsonl says of epochs after the checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:num_lines]
            _replace(path, "".join(lines).encode())

    def save_state(self, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        """Replaces the checkpoint, whole or not at all."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {**header, "settings": json.dumps(self.settings)}
        _replace(self.path / "state.safetensors", save(plain, metadata))

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The last checkpoint's tensors and header, as `save_state` got them."""
        header = self._state_header()
        return load_file(self.path / "state.safetensors"), header

    def finish(self, student: Student, record: dict[str, Any]) -> None:
        """Writes the weights, then the record that says the run is done, and drops the checkpoint."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
        _replace(self.path / "model.safetensors", save(weights))
        text = json.dumps({**record, "settings": self.settings}, indent=2) + "\n"
        _replace(self.path / "run.json", text.encode())
        (self.path / "state.safetensors").unlink(missing_ok=True)

    def load_student(self, bank: TextBank, vocabulary: Vocabulary, axes: Mapping[str, int]) -> Student:
        """The trained student, in evaluation mode on the CPU.

        Args:
            bank, vocabulary, axes: Of the cache that it was trained from.

        Raises:
            UserError: no finished run, a run of other settings, or damaged weights.
        """
        if self.status() != "finished":
            self.record()
        student = build_student(self.student, bank, vocabulary, axes)
        path = self.path / "model.safetensors"
        try:
            student.load_state_dict(load_file(path))
        except (SafetensorError, FileNotFoundError, RuntimeError) as error:
            raise UserError(
                "the weights of a training run are missing or damaged",
                where=path,
                got=str(error).splitlines()[0],
                fix=f"rm -r {self.path}, then make train",
            ) from None
        return student.eval()

    def _state_header(self) -> dict[str, str]:
        path = self.path / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                return file.metadata()
        except SafetensorError as error:
            raise UserError("a checkpoint is damaged", where=path, got=error, fix=f"rm -r {self.path}") from None

    def _check(self, found: Settings) -> None:
        have, want = _flat(found), _flat(json.loads(json.dumps(self.settings)))
        differing = sorted(key for key in have.keys() | want.keys() if have.get(key) != want.get(key))
        if differing:
            raise UserError(
                "this folder holds a training run of other settings",
                where=self.path,
                expected=", ".join(f"{key} = {want.get(key)}" for key in differing),
                got=", ".join(f"{key} = {have.get(key)}" for key in differing),
                fix=f"rm -r {self.path}, or set another output",
            )


def _flat(settings: Settings, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _replace(path: Path, data: bytes) -> None:
    """Writes beside the path, flushes to disk, renames: a reader sees the old file or the new one, whole."""
    new = path.with_name(path.name + ".part")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write a file into a line for the user."""
    try:
        yield
    except OSError as error:
        raise UserError(
            "a file cannot be written",
            where=path,
            got=error.strerror,
            fix="free space or mend the permissions, then run the same command again: finished runs are kept",
        ) from error


def check_tensorboard() -> None:
    """Whether TensorBoard's files can be written at all.

    Raises:
        UserError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UserError(
            "TensorBoard is not installed",
            where="train.tensorboard",
            fix="pip install 'hoi-distill[tensorboard]' (in a checkout: .venv/bin/pip install -e '.[tensorboard]'), "
            "or set train.tensorboard: false",
        )


class Board:
    """What `tensorboard --logdir FOLDER` shows of a run.

    Args:
        folder: Where to.
        epochs_done: What the folder says of later epochs is dropped: an interrupted run does them again.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def log(self, epoch: int, record: Mapping[str, float]) -> None:
        """Adds an epoch's figures; `loss_union` and the like are shown as parts of `loss`."""
        for name, value in record.items():
            kind, _, part = name.partition("_")
            tag = f"{kind}/{part}" if kind in ("loss", "agreement") and part else name
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
