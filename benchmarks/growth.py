"""Measure the cache at the size of HICO-DET, its reader's memory with ten times the images, and ten million images.

    python -m benchmarks.growth [--full] [--folder FOLDER]

Every line is measured in a process of its own. Without `--full` the sizes are smaller, and the run takes a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.synthetic_cache import (
    AXES,
    MEAN_PAIRS,
    SPLIT,
    image_name,
    seal_split,
    write_split,
    write_thin_shards,
)
from hoi.cache.manifest import (
    has_all_files,
    read_manifest,
    write_manifest,
)
from hoi.cache.plan import plan_shards
from hoi.cache.read.split import CacheSplit, Mode
from hoi.cache.schema import BASE
from hoi.cache.tools.verify import verify_split

BATCH_IMAGES = 32
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Sizes:
    """Sizes of the synthetic caches.

    Args:
        num_images, images_per_shard: Of the split to write, verify, open and read.
        many_images, many_per_shard: Of the split to plan, seal and open.
    """

    num_images: int
    images_per_shard: int
    many_images: int
    many_per_shard: int


SMALL = Sizes(3_000, 64, 100_000, 500)
FULL = Sizes(47_776, 64, 10_000_000, 500)


@dataclass(frozen=True)
class Figure:
    """Time and memory of one process.

    Args:
        seconds: Without start and imports.
        cpu_seconds: Of all threads; says more on a busy machine.
        num_bytes: Of the files written or read.
        peak_mb: Peak resident size, with imports and mapped files.
        anonymous_mb: Peak resident size without pages of files, sampled.
    """

    seconds: float
    cpu_seconds: float
    num_bytes: int
    peak_mb: float
    anonymous_mb: float


def measured(work: Callable[..., int], *arguments: Any) -> Figure:
    """Run a function that returns a number of bytes in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_watched, work, arguments).result()


def _watched(work: Callable[..., int], arguments: Sequence[Any]) -> Figure:
    done, samples = threading.Event(), [_resident_mb("RssAnon")]

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            samples.append(_resident_mb("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        num_bytes = work(*arguments)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    finally:
        done.set()
        watcher.join()
    return Figure(seconds, cpu_seconds, num_bytes, _resident_mb("VmHWM"), max(samples))


def _resident_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(key + ":"))


def nothing() -> int:
    return 0


def verify_cache(folder: Path) -> int:
    """Verify sizes, hashes and tables of every file."""
    problems = verify_split(folder / SPLIT)
    if problems:
        raise ValueError("; ".join(map(str, problems)))
    return _num_bytes(folder)


def open_cache(folder: Path) -> int:
    """Open the split; return the size of the files it reads."""
    path = CacheSplit.open(folder, SPLIT, mode="mapped").folder
    return sum((path / name).stat().st_size for name in (BASE.bank_name, BASE.index_name, BASE.manifest_name))


def read_epoch(folder: Path, mode: Mode) -> int:
    """Read every image once, in shuffled batches of 32."""
    split = CacheSplit.open(folder, SPLIT, mode=mode)
    num_images = sum(batch.num_images for batch in split.batches(BATCH_IMAGES, np.random.default_rng(0)))
    if num_images != split.num_images:
        raise ValueError(f"the epoch had {num_images} images, expected {split.num_images}")
    return _num_bytes(folder)


def _num_bytes(folder: Path) -> int:
    manifest = read_manifest(folder / SPLIT)
    assert manifest is not None
    return sum(shard.num_bytes for shard in manifest.shards)


def plan_many(num_images: int, images_per_shard: int) -> int:
    """Plan shards for a list of ids, which counts in the memory."""
    plan_shards([image_name(row) for row in range(num_images)], SPLIT, Path(SPLIT), images_per_shard)
    return 0


def seal_many(folder: Path) -> int:
    """Write index and manifest; every shard's header and small columns are read."""
    seal_split(folder)
    return sum((folder / SPLIT / name).stat().st_size for name in (BASE.index_name, BASE.manifest_name))


def read_and_write_manifest(folder: Path) -> int:
    """Read the manifest, look for all files it lists, and write it again."""
    manifest = read_manifest(folder / SPLIT)
    assert manifest is not None
    assert has_all_files(folder / SPLIT, manifest)
    write_manifest(folder / SPLIT, manifest)
    return (folder / SPLIT / BASE.manifest_name).stat().st_size


def measure(sizes: Sizes, folder: Path) -> Iterator[str]:
    """Yield the lines of the report; the caches are written below the folder."""
    few, usual, many = folder / "few", folder / "usual", folder / "many"
    tenth = sizes.num_images // 10
    yield f"{'':44}  seconds    CPU s        MB   peak MB   anonymous MB"
    yield _line("imports alone", measured(nothing))
    yield (
        f"\nsynthetic signals: {sizes.num_images} images, 0 to {2 * MEAN_PAIRS} pairs each, K {AXES['K']}, "
        f"D {AXES['D']}, {sizes.images_per_shard} images a shard; all bytes are written"
    )
    yield _line("write", measured(write_split, usual, sizes.num_images, sizes.images_per_shard))
    yield _line("verify", measured(verify_cache, usual))
    yield _line("open", measured(open_cache, usual))
    yield _line("shuffled epoch, mapped", measured(read_epoch, usual, "mapped"))
    yield _line("shuffled epoch, in memory", measured(read_epoch, usual, "memory"))
    measured(write_split, few, tenth, sizes.images_per_shard)
    yield _line(f"shuffled epoch, mapped, {tenth} images", measured(read_epoch, few, "mapped"))
    yield (
        f"\n{sizes.many_images} images in {-(-sizes.many_images // sizes.many_per_shard)} shards; the shards are "
        "stand-ins: whole files, but K = D = 1, two detections and one pair each, all values 0"
    )
    yield _line("plan", measured(plan_many, sizes.many_images, sizes.many_per_shard))
    yield _line(
        "write the stand-ins, no sync", measured(write_thin_shards, many, sizes.many_images, sizes.many_per_shard)
    )
    yield _line("seal: index and manifest", measured(seal_many, many))
    yield _line("manifest: read, look for files, write", measured(read_and_write_manifest, many))
    yield _line("open", measured(open_cache, many))


def _line(what: str, figure: Figure) -> str:
    spent = f"{figure.seconds:8.2f} {figure.cpu_seconds:8.2f}"
    return f"{what:44} {spent} {figure.num_bytes / 1e6:9.1f} {figure.peak_mb:9.0f} {figure.anonymous_mb:14.0f}"


def _command() -> None:
    parser = argparse.ArgumentParser(description="The cache at scale: seconds, bytes and memory.")
    parser.add_argument("--full", action="store_true", help="HICO-DET's size and ten million images: 10 GB of disk")
    parser.add_argument("--folder", type=Path, help="where temporary files lie; by default where the system puts them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for line in measure(FULL if options.full else SMALL, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    _command()
