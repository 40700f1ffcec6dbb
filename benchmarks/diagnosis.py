"""Time the loss by cause on a synthetic set of HICO-DET's size, with a hundred predictions for each pair of it.

python -m benchmarks.diagnosis
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.evaluation import HICO_IMAGES, HICO_TRUTHS, hico_set
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.evaluation.diagnose import Diagnosis, compare, diagnose
from hoi.records import Triplets

NUM_COPIES = 10
"""Each prediction of the evaluation's benchmark is scored for this many interactions, 2.7 million in all."""


def measure(num_copies: int = NUM_COPIES) -> tuple[float, int, Diagnosis]:
    """Return seconds, the number of predictions, and what was found."""
    few, labels = hico_set()
    rng = np.random.default_rng(2)
    row = np.repeat(np.arange(len(few)), num_copies)
    interaction = np.where(np.arange(len(row)) % num_copies, rng.integers(600, size=len(row)), few.interaction[row])
    predictions = Triplets(
        few.image[row], few.boxes_h[row], few.boxes_o[row], interaction, rng.random(len(row)).astype(np.float32)
    )
    start = time.perf_counter()
    found = diagnose(compare(predictions, labels, hicodet_vocabulary().interactions))
    return time.perf_counter() - start, len(predictions), found


if __name__ == "__main__":
    seconds, num, found = measure()
    print(f"{HICO_IMAGES:,} images, {HICO_TRUTHS:,} annotations, {num:,} predictions: {seconds:.1f} s")
    print(found)
