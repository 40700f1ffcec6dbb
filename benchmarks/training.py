"""Compare an epoch of the multi-level student from the cache with batches in memory and with the teacher online.

The teacher is the pipeline's own, then a CLIP of full size; its random weights take the time of trained ones.

    python -m benchmarks.training

Reads the pipeline file's cache if there is one, else builds a small one in a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.side_by_side import ratio_table, run_in_turn
from hoi.cache.build.run import build_cache
from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig, TeacherConfig, load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.errors import UserError
from hoi.extraction import Extractor
from hoi.records import PairBatch
from hoi.students.base import build_student
from hoi.training.loop import BatchSource, fit

CONFIG = "pipeline.yaml"
STUDENT = "student"
ONLINE_IMAGES = 128
"""Few, because the teacher takes seconds for them."""
NUM_ROUNDS = 5
FULL_SIZE = {"model": "ViT-B-16-quickgelu", "pretrained": "random", "image_size_px": None, "batch_size": 16}
"""At its own 224 pixels, in small batches, because the last is padded."""
FULL_SIZE_IMAGES, FULL_SIZE_ROUNDS = 6, 1
"""Every image takes seconds, in the build, the unmeasured run and each round."""


@dataclass(frozen=True)
class FirstImages:
    """The first images of a split from its cache, in batches."""

    split: CacheSplit
    num_images: int

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        rows = np.arange(self.num_images) if rng is None else rng.permutation(self.num_images)
        for start in range(0, self.num_images, batch_images):
            yield self.split.batch(rows[start : start + batch_images], extra)


@dataclass(frozen=True)
class ReadyBatches:
    """Batches assembled beforehand, in the order of the cache's epoch."""

    ready: list[PairBatch]
    num_images: int

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        return iter(self.ready)


@dataclass(frozen=True)
class OnlineTeacher:
    """Detector and teacher over the pixels of every batch; the pixels are in memory, which favours it.

    Its results are dropped and the same signals taken from `source`: assembling them would take longer.
    """

    extractor: Extractor
    image_ids: list[str]
    images: list[np.ndarray]
    source: FirstImages

    @property
    def num_images(self) -> int:
        return self.source.num_images

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        for batch in self.source.batches(batch_images, rng, extra):
            rows = batch.image_rows.tolist()
            self.extractor.extract([self.image_ids[row] for row in rows], [self.images[row] for row in rows])
            yield batch


def measure(config: PipelineConfig, num_rounds: int = NUM_ROUNDS) -> str:
    """Return the ratio table of a pipeline's student."""
    try:
        split = open_split(config, config.train.split, same_images=False)
    except UserError as error:
        print(f"a small cache is built, since {error}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            small = _small(config, folder, ONLINE_IMAGES)
            build_cache(small)
            return _measure(small, CacheSplit.open(small.cache.folder, small.train.split, mode="memory"), num_rounds)
    return _measure(config, split, num_rounds)


def _measure(config: PipelineConfig, split: CacheSplit, num_rounds: int) -> str:
    torch.set_num_threads(config.train.threads)
    few = FirstImages(split, min(ONLINE_IMAGES, split.num_images))
    sources: dict[str, BatchSource] = {
        f"cache, all {split.num_images} images": split,
        "batches in memory": _ready(split, config),
        f"cache, first {few.num_images}": few,
        "teacher online": _online(config, few),
    }
    ways = _epochs(config, split, sources)
    all_images, in_memory, few_images, online = ways
    return ratio_table(
        f"one epoch of the student, {split.num_pairs} pairs, batches of {config.train.batch_images}",
        run_in_turn(ways, num_rounds),
        [(all_images, in_memory), (online, few_images)],
    )


def measure_full_size(config: PipelineConfig, num_rounds: int = FULL_SIZE_ROUNDS) -> str:
    """Return the ratio table with a full-size CLIP of random weights and one crop margin."""
    torch.set_num_threads(config.train.threads)
    teacher = {**config.teacher.model_dump(), **FULL_SIZE, "crop": {"mode": "square"}}
    with tempfile.TemporaryDirectory() as folder:
        small = _small(config, folder, FULL_SIZE_IMAGES).model_copy(update={"teacher": TeacherConfig(**teacher)})
        build_cache(small)
        split = CacheSplit.open(small.cache.folder, small.train.split)
        few = FirstImages(split, split.num_images)
        ways = _epochs(small, split, {"teacher online": _online(small, few), "cache": split})
        return ratio_table(
            f"one epoch of the student, full-size {FULL_SIZE['model']} with RANDOM weights at its own input, "
            f"{split.num_images} images, {split.num_pairs} pairs",
            run_in_turn(ways, num_rounds),
            [("teacher online", "cache")],
        )


def _online(config: PipelineConfig, images: FirstImages) -> OnlineTeacher:
    source = open_images(config.dataset, config.train.split)
    pixels = [source.read(row) for row in range(images.num_images)]
    extractor = Extractor(config, load_vocabulary(config.dataset), "cpu")
    return OnlineTeacher(extractor, list(source.image_ids), pixels, images)


def _epochs(
    config: PipelineConfig, split: CacheSplit, sources: Mapping[str, BatchSource]
) -> dict[str, Callable[[], object]]:
    return {name: partial(_epoch, config, split, source) for name, source in sources.items()}


def _ready(source: BatchSource, config: PipelineConfig) -> ReadyBatches:
    """Return the batches of the first epoch in the order of `fit`."""
    batches = list(source.batches(config.train.batch_images, np.random.default_rng((config.train.seeds[0], 0))))
    return ReadyBatches(batches, source.num_images)


def _epoch(config: PipelineConfig, split: CacheSplit, source: BatchSource) -> None:
    train = config.train.model_copy(update={"epochs": 1})
    student = build_student(config.students[STUDENT], split.text_bank, split.vocabulary, split.axes)
    fit(student, source, train, seed=config.train.seeds[0], device=torch.device("cpu"))


def _small(config: PipelineConfig, folder: str, num_images: int) -> PipelineConfig:
    """Return the pipeline on the first images of its training split, without dask."""
    dataset = config.dataset.model_copy(update={"splits": {config.train.split: num_images}})
    cache = config.cache.model_copy(update={"folder": str(Path(folder) / "cache"), "scheduler": "synchronous"})
    return config.model_copy(update={"dataset": dataset, "cache": cache})


if __name__ == "__main__":
    print(measure(load_config(CONFIG)), end="\n\n", flush=True)
    print(measure_full_size(load_config(CONFIG)))
