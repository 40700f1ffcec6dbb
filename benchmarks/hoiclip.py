"""Compare HOICLIP's student from the cache with detector and CLIP run online: seconds of an epoch, peak memory.

Each way runs in a process of its own on the same few images; online, their pixels are in memory, which favours it. The
first epoch of a process is not measured. Memory is anonymous memory, as in benchmarks.memory.

    python -m benchmarks.hoiclip [--images 32] [--rounds 3] [--map 0]

`--map` sets `teacher.image_size_px`: a larger side gives a finer map. The cache is built in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from statistics import median
from typing import Any

import torch

from benchmarks.memory import INTERVAL_S, anonymous_bytes
from benchmarks.training import FirstImages, OnlineTeacher
from hoi.cache.build.run import build_cache
from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig, load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.extraction import Extractor
from hoi.students.base import build_student
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.training.loop import BatchSource, fit

CONFIG = "pipeline.yaml"
WAYS = ("cache", "online")
STUDENT = HoiclipConfig(method="hoiclip", width=128, layers=2, heads=4, feedforward=256, query_boxes=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--map", type=int, default=0)
    parser.add_argument("--here", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(_figures(_config(given.folder, given.images, given.map), given.here, given.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, given.images, given.map)
        build_cache(config)
        found = {way: _in_a_process(way, folder, given) for way in WAYS}
        split = CacheSplit.open(config.cache.folder, "train")
        shown = [
            f"one epoch of hoiclip, {split.num_images} images, {split.num_pairs} pairs, map {split.axes['H']} x "
            f"{split.axes['W']}, median of {given.rounds}",
            "",
            f"{'':8}{'seconds':>10}{'peak MB':>10}",
            *(f"{way:8}{median(f['seconds']):10.2f}{f['peak'] / 1e6:10.0f}" for way, f in found.items()),
        ]
        ratios = [
            median(found["online"]["seconds"]) / median(found["cache"]["seconds"]),
            found["online"]["peak"] / found["cache"]["peak"],
        ]
        print("\n".join([*shown, f"{'ratio':8}{ratios[0]:10.1f}{ratios[1]:10.2f}"]))


def _config(folder: str, num_images: int, image_size_px: int) -> PipelineConfig:
    overrides = [
        f"cache.folder={folder}/cache",
        "cache.scheduler=synchronous",
        f"dataset.splits={{train: {num_images}}}",
        "teacher.spatial_map=true",
        *([f"teacher.image_size_px={image_size_px}"] if image_size_px else []),
    ]
    return load_config(CONFIG, overrides)


def _in_a_process(way: str, folder: str, given: argparse.Namespace) -> dict[str, Any]:
    here = ["--here", way, "--folder", folder]
    options = ["--images", str(given.images), "--rounds", str(given.rounds), "--map", str(given.map)]
    command = [sys.executable, "-m", "benchmarks.hoiclip", *here, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _figures(config: PipelineConfig, way: str, num_rounds: int) -> dict[str, Any]:
    """Return the seconds of each measured epoch, and the peak memory of the process."""
    torch.set_num_threads(1)
    peak, is_done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(INTERVAL_S):
            peak = max(peak, anonymous_bytes())

    threading.Thread(target=watch, daemon=True).start()
    split = CacheSplit.open(config.cache.folder, "train")
    source: BatchSource = FirstImages(split, split.num_images)
    if way == "online":
        images = open_images(config.dataset, "train")
        pixels = [images.read(row) for row in range(split.num_images)]
        extractor = Extractor(config, load_vocabulary(config.dataset), "cpu")
        source = OnlineTeacher(extractor, list(images.image_ids), pixels, FirstImages(split, split.num_images))
    seconds = []
    for _ in range(num_rounds + 1):
        student = build_student(STUDENT, split.text_bank, split.vocabulary, split.axes)
        start = time.perf_counter()
        fit(student, source, config.train.model_copy(update={"epochs": 1}), seed=0, device=torch.device("cpu"))
        seconds.append(time.perf_counter() - start)
    is_done.set()
    return {"seconds": seconds[1:], "peak": peak}


if __name__ == "__main__":
    main()
