"""The spatial code by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hoi.students.layers import LOG_FLOOR, spatial_code


def test_spatial_code_by_hand() -> None:
    human = torch.tensor([[0.0, 0.0, 40.0, 80.0]])
    thing = torch.tensor([[20.0, 60.0, 60.0, 100.0]])
    code = spatial_code(human, thing, torch.tensor([[100.0, 200.0]]))[0]
    overlap, union = 20 * 20, 40 * 80 + 40 * 40 - 20 * 20
    by_hand = [
        *(0.1, 0.4, 0.2, 0.8),
        *(0.2, 0.8, 0.2, 0.4),
        *(3200 / 20000, 1600 / 20000, 0.5),
        *(0.5, 1.0),
        overlap / union,
        *(0.5, 0.0, 0.5, 0.0),
    ]
    assert code[:18].tolist() == pytest.approx(by_hand, abs=1e-6)
    assert code[18:].tolist() == pytest.approx([math.log(term + LOG_FLOOR) for term in by_hand], abs=1e-4)


def test_an_object_to_the_upper_left_fills_the_other_offsets() -> None:
    human = torch.tensor([[50.0, 50.0, 60.0, 70.0]])
    thing = torch.tensor([[30.0, 30.0, 40.0, 50.0]])
    code = spatial_code(human, thing, torch.tensor([[100.0, 100.0]]))[0]
    assert code[13:18].tolist() == pytest.approx([0.0, 0.0, 2.0, 0.0, 1.0])


def test_flat_boxes_and_no_pairs_stay_finite() -> None:
    line = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert torch.isfinite(spatial_code(line, line, torch.tensor([[10.0, 10.0]]))).all()
    assert spatial_code(line[:0], line[:0], torch.zeros(0, 2)).shape == (0, 36)
