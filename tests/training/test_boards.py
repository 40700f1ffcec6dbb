"""TensorBoard's files beside metrics.jsonl, where it is installed, and what is said where it is not."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from hoi.config import TrainConfig
from hoi.errors import UserError
from hoi.students.base import build_student
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.training.loop import fit
from hoi.training.runs import RunFolder, TensorBoardLogger
from tests.fakes.splits import AXES, VOCABULARY, make_split

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra tensorboard is not there")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoi.training.runs.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"TensorBoard is not installed.*next: pip install 'hoi-distill\[tensorboard\]'"
    ):
        TensorBoardLogger(tmp_path / "tensorboard", 0)
    assert not list(tmp_path.iterdir())


@needs_tensorboard
def test_it_shows_every_figure_of_metrics_jsonl(tmp_path: Path) -> None:
    split, settings = make_split(), MultiLevelConfig()
    config = TrainConfig(epochs=2, batch_images=3, tensorboard=True)
    student = build_student(settings, split.bank, VOCABULARY, AXES)
    fit(student, split, config, seed=5, device=torch.device("cpu"), run=RunFolder(tmp_path, settings, {}))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shown = scalars(tmp_path / "tensorboard")
    assert {"loss", "loss/human_object", "agreement/union", "gradient_norm", "images_per_s", "eta_s"} < set(shown)
    assert len(shown) == len(lines[0]) - 1
    assert [shown["loss/union"][epoch] for epoch in (1, 2)] == pytest.approx([line["loss_union"] for line in lines])


@needs_tensorboard
def test_epochs_that_are_done_again_are_shown_once(tmp_path: Path) -> None:
    interrupted = TensorBoardLogger(tmp_path, 0)
    for epoch in (1, 2, 3):
        interrupted.log(epoch, {"loss": 10.0 * epoch})
    interrupted.close()
    resumed = TensorBoardLogger(tmp_path, 1)
    resumed.log(2, {"loss": 7.0})
    resumed.close()
    assert scalars(tmp_path)["loss"] == {1: 10.0, 2: 7.0}
