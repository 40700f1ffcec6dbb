"""A run's figures for TensorBoard, beside metrics.jsonl; installed with the extra `tensorboard` only."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from hoi.errors import UserError


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
