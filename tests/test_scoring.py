"""From pair scores to triplets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hoi.scoring import score_split, score_triplets
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
