"""From pair scores to triplets; and the competition gate on masses worked out by hand, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from hoi.scoring import competition_gate, gated, score_split, score_triplets
from hoi.students.base import build_student
from hoi.students.multilevel.settings import MultiLevelConfig
from tests.fakes.splits import AXES, VOCABULARY, make_split


def test_triplets_by_hand() -> None:
    split = make_split((1, 0, 2)).with_pairs(
        labels_o=torch.tensor([2, 0, 1]),
        scores_h=torch.tensor([0.5, 1.0, 0.9]),
        scores_o=torch.tensor([0.5, 1.0, 0.4]),
    )
    scores = torch.arange(18.0).reshape(3, 6) / 18
    batch = split.batch(np.array([2, 0]))
    assert batch.labels_o.tolist() == [0, 1, 2]
    triplets = score_triplets(batch, scores, VOCABULARY, exponent=0.5)
    # The pair whose object is a person admits no interaction.
    assert triplets.image.tolist() == [2, 2, 2, 0, 0, 0]
    assert triplets.interaction.tolist() == [0, 1, 2, 3, 4, 5]
    assert triplets.score.tolist() == pytest.approx(
        [0.6 * s / 18 for s in (6, 7, 8)] + [0.5 * s / 18 for s in (15, 16, 17)]
    )
    assert np.array_equal(triplets.boxes_h[0], split.whole.boxes_h[2].numpy())


def test_no_triplet_names_another_object_than_its_pair() -> None:
    split = make_split((3, 2, 4))
    triplets = score_triplets(split.whole, torch.ones(9, 6), VOCABULARY, exponent=1.0)
    assert len(triplets) == 27
    assert (VOCABULARY.object_of[triplets.interaction] == np.repeat(split.whole.labels_o.numpy(), 3)).all()


def test_batch_size_does_not_change_triplets() -> None:
    split = make_split((3, 1, 0, 4, 2))
    student = build_student(MultiLevelConfig(), split.bank, VOCABULARY, AXES).eval()
    small, large = (score_split(student, split.batches(size, None), VOCABULARY, 1.0, "cpu") for size in (2, 5))
    assert list(small) == ["student", "global", "union", "human_object"]
    for name in small:
        assert np.array_equal(small[name].image, large[name].image)
        assert np.array_equal(small[name].interaction, large[name].interaction)
        assert np.allclose(small[name].score, large[name].score, rtol=1e-4)
    nothing = score_split(student, make_split((0, 0)).batches(1, None), VOCABULARY, 1.0, "cpu")
    assert [len(triplets) for triplets in nothing.values()] == [0] * 4


def rows(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def gate(masses: list[float], humans: Tensor, objects: Tensor) -> Tensor:
    """The gate of pairs that have these masses at one interaction."""
    scores = torch.tensor(masses)[:, None]
    return competition_gate(scores, torch.ones_like(scores, dtype=torch.bool), humans, objects)


@pytest.mark.parametrize(
    ("what", "masses", "humans", "objects", "expected"),
    [
        ("a pair alone has no rival", [0.01], rows(3), rows(8), [1]),
        ("two people share one object", [0.6, 0.2], rows(0, 1), rows(8, 8), [0.75, 0.25]),
        ("two objects share one person", [0.6, 0.2], rows(0, 0), rows(8, 9), [0.75, 0.25]),
        # Person 0 has 3/4 of object 8, person 1 the rest. Of person 1's own, 0.2 · 1/4 goes against 0.15 · 1.
        ("its own object first", [0.6, 0.2, 0.15], rows(0, 1, 1), rows(8, 8, 9), [0.75, 0.25 * 0.25, 0.75]),
        ("person 8 is not object 8", [0.5, 0.5], rows(8, 1), rows(9, 8), [1, 1]),
        ("zero mass", [0, 0, 0.3], rows(0, 1, 2), rows(8, 8, 9), [0, 0, 1]),
        ("a rival of zero mass", [0, 0.3], rows(0, 1), rows(8, 8), [0, 1]),
        # 1e-42 is below the smallest normal float32.
        ("next to no mass", [1e-42], rows(0), rows(8), [1]),
        ("no pair", [], rows(), rows(), []),
    ],
)
def test_a_gate_is_a_share_of_the_object_then_of_the_human(
    what: str, masses: list[float], humans: Tensor, objects: Tensor, expected: list[float]
) -> None:
    torch.testing.assert_close(gate(masses, humans, objects), torch.tensor(expected, dtype=torch.float32), msg=what)


def test_no_interaction_has_no_mass_and_no_gate() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.0, 0.0]])
    is_real = torch.tensor([[True, True, False], [True, True, False]])
    found = competition_gate(scores, is_real, rows(0, 1), rows(8, 8))
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25]), rtol=1e-6, atol=0)
    # Nor is any other one gated.
    scores = torch.tensor([[0.75, 0.5], [0.25, 0.1]])
    is_real = torch.tensor([[True, False], [True, False]])
    found = gated(scores, is_real, rows(0, 1), rows(8, 8), 0.5)
    assert torch.equal(found[:, 1], scores[:, 1])
    torch.testing.assert_close(found[:, 0], torch.tensor([0.75**1.5, 0.25**1.5]))


def test_other_rivals_by_hand() -> None:
    # Two people share object 8, the second of whom has object 9 to itself as well.
    scores, humans, objects = torch.tensor([[0.6], [0.2], [0.15]]), rows(0, 1, 1), rows(8, 8, 9)
    everything = torch.ones_like(scores, dtype=torch.bool)
    expected = {
        "object": [0.75, 0.25, 1],
        "human": [1, 0.2 / 0.35, 0.15 / 0.35],
        # The first has the largest mass of object 8; the second has a third of it, and 0.2 / 3 against its own 0.15.
        "best": [1, 1 / 3 * (0.2 / 3) / 0.15, 1],
    }
    for rivals, by_hand in expected.items():
        found = competition_gate(scores, everything, humans, objects, rivals)
        torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float32), msg=rivals)
    equal = competition_gate(torch.ones(3, 1), everything, rows(0, 1, 2), rows(8, 8, 8), "best")
    assert equal.tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_the_laws_of_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = rng.integers(1, 9)
    masses = (rng.uniform(size=num) * (rng.uniform(size=num) < 0.8)).astype(np.float32)
    humans, objects = rng.integers(0, 4, num), rng.integers(4, 8, num)

    def of(order: np.ndarray, names: np.ndarray) -> Tensor:
        return gate(masses[order].tolist(), rows(*names[humans[order]]), rows(*names[objects[order]]))

    names, order = np.arange(8), rng.permutation(num)
    found = of(np.arange(num), names)
    assert torch.equal(found == 0, torch.from_numpy(masses == 0))
    torch.testing.assert_close(of(order, names), found[order])
    torch.testing.assert_close(of(np.arange(num), rng.permutation(8)), found)
    for shared in (humans, objects):
        assert torch.zeros(8).index_add(0, rows(*shared), found).max() <= 1 + 1e-5


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeCheckError, match="rows_h"):
        gate([0.1, 0.2], rows(0), rows(8, 8))
