"""Time the loss by cause on a synthetic set of HICO-DET's size, with a hundred predictions for each pair of it.

python -m benchmarks.diagnosis
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.evaluation import HICO_IMAGES, HICO_TRUTHS, hico_set
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.evaluation.diagnose import Diagnosis, compare, diagnose, table
from hoi.records import Triplets

NUM_COPIES = 10
"""Each prediction of the evaluation's benchmark is scored for this many interactions, 2.7 million in all."""


def measure(num_copies: int = NUM_COPIES) -> tuple[float, float, int, Diagnosis]:
    """Return seconds by the clock and of all cores, the number of predictions, and what was found."""
    few, labels = hico_set()
    rng = np.random.default_rng(2)
    row = np.repeat(np.arange(len(few)), num_copies)
    interaction = np.where(np.arange(len(row)) % num_copies, rng.integers(600, size=len(row)), few.interaction[row])
    predictions = Triplets(
        few.image[row], few.boxes_h[row], few.boxes_o[row], interaction, rng.random(len(row)).astype(np.float32)
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    found = diagnose(compare(predictions, labels, hicodet_vocabulary().interactions))
    return time.perf_counter() - start, time.process_time() - start_cpu, len(predictions), found


if __name__ == "__main__":
    seconds, cpu_seconds, num, found = measure()
    print(f"{HICO_IMAGES:,} images, {HICO_TRUTHS:,} annotations, {num:,} predictions")
    print(f"{seconds:.1f} s, {cpu_seconds:.1f} CPU seconds", *table(found), sep="\n")
