"""Compare one image through `Predictor` with the bare forward passes of detector, CLIP and student.

python -m benchmarks.latency                      # the embedded world's models, an untrained student
python -m benchmarks.latency --checkpoint DIR     # a checkpoint of one's own, on the world's scenes
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.extraction import recorded_forwards
from benchmarks.side_by_side import Rounds, ratio_table, run_in_turn
from hoi.config import load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.extraction import Extractor
from hoi.prediction import Predictor
from hoi.prediction.export import CheckpointParts, save_checkpoint
from hoi.students.base import build_student
from hoi.training.train import choose_student

CONFIG = "pipeline.yaml"
NUM_ROUNDS = 60
NUM_IMAGES = 40
"""Scenes to choose from: those at a tenth, half and nine tenths by number of pairs are measured."""
SHARES = (0.1, 0.5, 0.9)
PREDICTOR, BARE = "Predictor", "bare forward passes"


def untrained(folder: Path) -> Path:
    """Write a checkpoint of an untrained student: weights do not change the time."""
    config = load_config(CONFIG)
    name, vocabulary = choose_student(config), load_vocabulary(config.dataset)
    extractor = Extractor(config, vocabulary, "cpu")
    student = build_student(config.students[name], extractor.text_bank, vocabulary, extractor.axes)
    trained = {"num_images": 0, "num_pairs": 0, "fingerprint": "none", "versions": {}, "commit": None}
    parts = (extractor.text_bank, vocabulary, extractor.axes, extractor.provenance(), trained)
    return save_checkpoint(CheckpointParts(config, name, 0, student, *parts), folder).folder


def measure(predictor: Predictor, num_rounds: int) -> str:
    """Return the ratio tables of a few images."""
    source = open_images(load_config(CONFIG).dataset, "test")
    images = [source.read(row) for row in range(NUM_IMAGES)]
    num_pairs = [len({(t.human_idx, t.object_idx) for t in result.triplets}) for result in predictor.predict(images)]
    order = np.argsort(num_pairs, kind="stable")
    tables = []
    for share in SHARES:
        row = int(order[int(share * NUM_IMAGES)])
        rounds, num_forwards = _compare(predictor, images[row], num_rounds)
        height, width = images[row].shape[:2]
        title = f"one image of {width} x {height}, {num_pairs[row]} pairs, {num_forwards} forward passes"
        tables.append(ratio_table(f"{title} on {predictor.device}", rounds, [(PREDICTOR, BARE)]))
    return "\n\n".join(tables)


def _compare(predictor: Predictor, image: np.ndarray, num_rounds: int) -> tuple[Rounds, int]:
    inner: Any = predictor
    student, calls = inner._student, []
    hook = student.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    with recorded_forwards(inner._extractor) as forwards:
        predictor(image)
    hook.remove()

    @torch.inference_mode()
    def bare() -> None:
        for forward in forwards:
            forward()
        for arguments in calls:
            student(*arguments)
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()

    ways: dict[str, Callable[[], object]] = {PREDICTOR: lambda: predictor(image), BARE: bare}
    return run_in_turn(ways, num_rounds), len(forwards) + len(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", help="default: the world's models and an untrained student")
    parser.add_argument("--rounds", type=int, default=NUM_ROUNDS)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(given.checkpoint) if given.checkpoint else untrained(Path(folder) / "checkpoint")
        print(measure(Predictor.from_checkpoint(checkpoint, given.device), given.rounds))
    print(f"cores: {len(os.sched_getaffinity(0))}, load in the last minute: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
