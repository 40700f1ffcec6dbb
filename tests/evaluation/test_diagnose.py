import numpy as np
import pytest

from hoi.evaluation.diagnose import CAUSES, diagnose
from hoi.records import HoiLabels, Triplets

A, B, C, D, FAR = ([x, 0.0, x + 10, 10.0] for x in (0, 20, 40, 60, 80))
OBJECT_OF = np.array([0, 0, 1])  # interactions 0 and 1 share an object
LABELS = HoiLabels(
    image=np.array([0, 0]), boxes_h=np.array([A, C]), boxes_o=np.array([B, D]), interaction=np.zeros(2, int)
)
CASES = [(A, B, 0), (A, B, 1), (A, B, 2), (A, D, 0), (FAR, B, 0), (A, FAR, 0), (FAR, FAR, 0)]


@pytest.mark.parametrize("case", range(7))
def test_each_cause_alone(case: int) -> None:
    human, obj, k = CASES[case]
    predictions = Triplets(
        image=np.zeros(2, int),
        boxes_h=np.array([A, human]),
        boxes_o=np.array([B, obj]),
        interaction=np.array([0, k]),
        score=np.array([0.9, 0.5]),
    )
    result = diagnose(predictions, LABELS, OBJECT_OF)
    assert result.counts == {name: int(i == case) for i, name in enumerate(CAUSES)}
    assert result.num_missed == 1 and min(result.gains.values()) >= 0
