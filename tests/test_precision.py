"""What mixed precision lowers, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hoi.config import TrainConfig
from hoi.machine import choose_precision, mixed
from hoi.students.base import Student, build_student
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.training.loop import fit
from tests.fakes.pipelines import refused
from tests.fakes.splits import AXES, VOCABULARY, make_split

CPU = torch.device("cpu")
SPLIT = make_split((3, 1, 0, 4, 2, 5, 1))
EVERY_HEAD: dict[str, Any] = {"score": {"weights": {"spatial": 0.5, "relatedness": 0.5}}, "targets": {"image": "pairs"}}


def fresh(**settings: Any) -> Student:
    return build_student(MultiLevelConfig(dropout=0.0, **settings), SPLIT.bank, VOCABULARY, AXES, seed=5)


def trained(precision: Any) -> Student:
    config = TrainConfig(epochs=6, batch_images=3, precision=precision)
    return fit(fresh(**EVERY_HEAD), SPLIT, config, seed=5, device=CPU)[0]


def test_auto_on_a_cpu_is_float32_bit_for_bit() -> None:
    assert choose_precision("auto", CPU) == choose_precision("fp32", CPU) == "fp32"
    auto, plain = trained("auto").state_dict(), trained("fp32").state_dict()
    assert all(torch.equal(auto[name], plain[name]) for name in plain)


@pytest.mark.parametrize("settings", [EVERY_HEAD, {"supervision": "labels"}, {"fusion": "early"}])
def test_similarities_and_what_follows_stay_float32(settings: dict[str, Any]) -> None:
    student = fresh(**settings)
    batch = SPLIT.batch(np.array([0, 1, 3]))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        plain = student(batch)
        with mixed("bf16", CPU):
            lowered = student(batch)
    for name in ("image", "human_object", "union", "spatial", "relatedness"):
        exact, found = getattr(plain, name), getattr(lowered, name)
        if exact is not None:
            assert found.dtype == torch.float32
            assert not torch.equal(found, exact)
            # Cosines of a scale of 20, off by what layers in bf16 are off by.
            torch.testing.assert_close(found, exact, rtol=0, atol=0.2)


def test_bf16_loses_nothing_before_the_first_step() -> None:
    student, batch = fresh(), SPLIT.batch(np.array([0, 1, 3]))
    with mixed("bf16", CPU):
        lowered = student(batch)
    # Corrections are zero then, and what is left is the cached features' own cosines.
    assert torch.equal(lowered.union, student(batch).union)
    assert torch.equal(lowered.image, student(batch).image)


def test_bf16_training_keeps_float32_weights() -> None:
    students = fresh(**EVERY_HEAD), trained("fp32"), trained("bf16")
    assert {tensor.dtype for tensor in students[2].state_dict().values()} == {torch.float32}
    untrained, exact, found = (float(each.losses(SPLIT.whole, None).total.detach()) for each in students)
    assert exact < 0.9 * untrained
    assert found == pytest.approx(exact, rel=0.02)


def test_a_gpu_without_bf16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    assert choose_precision("auto", torch.device("cuda")) == "fp32"
    error = refused(choose_precision, "bf16", torch.device("cuda"))
    assert "does not compute in bf16" in error.what
    assert (error.got, "precision: auto" in str(error.fix)) == ("bf16 on Tesla V100", True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
