"""Measure peak memory of stage one on a few images and on ten times as many, in a fresh process each.

    python -m benchmarks.memory [--images 40] [--shard 40]

Counted are anonymous pages (Linux): the system can drop pages of files, such as libraries and mapped weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hoi.config import load_config

CONFIG = "pipeline.yaml"
NUM_IMAGES = 40
IMAGES_PER_SHARD = 40
FACTOR = 10
INTERVAL_S = 0.01


def measure(num_images: int = NUM_IMAGES, images_per_shard: int = IMAGES_PER_SHARD) -> str:
    """Return the table of peaks and their ratio."""
    peaks = {number: _peak_of_process(number, images_per_shard) for number in (num_images, FACTOR * num_images)}
    few, many = peaks.values()
    rows = [f"{number:8d}  {peak / 1e6:8.0f}" for number, peak in peaks.items()]
    return "\n".join(
        [
            f"stage one on the world, shards of {images_per_shard} images, in one process",
            "",
            "  images   peak MB",
            *rows,
            f"   ratio  {many / few:8.2f}",
        ]
    )


def _peak_of_process(num_images: int, images_per_shard: int) -> int:
    """Run stage one in a process; return its peak in bytes."""
    arguments = ["--images", str(num_images), "--shard", str(images_per_shard), "--here"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.splitlines()[-1])


def peak_here(num_images: int, images_per_shard: int) -> int:
    """Run stage one in this process; return its peak in bytes."""
    from hoi.cache.build.run import build_cache

    peak, is_done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(INTERVAL_S):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"cache.folder={folder}",
            "cache.scheduler=synchronous",
            f"cache.images_per_shard={images_per_shard}",
            f"dataset.splits={{train: {num_images}}}",
        ]
        build_cache(load_config(CONFIG, overrides))
    is_done.set()
    watcher.join()
    return peak


def anonymous_bytes(process: int | str = "self") -> int:
    """Return the resident memory of a process that no file backs."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not tell anonymous memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--shard", type=int, default=IMAGES_PER_SHARD)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    print(peak_here(given.images, given.shard) if given.here else measure(given.images, given.shard))


if __name__ == "__main__":
    main()
