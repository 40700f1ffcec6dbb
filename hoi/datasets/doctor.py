"""Whether a data set is laid out rightly: one check for each data set. The only labels read here are counted.

A further data set adds its check to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import DatasetConfig, FolderDataset, WorldDataset
from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.base import UnreadableImage
from hoi.datasets.findings import Finding, check_image_files, collect, first_of, sample_of
from hoi.datasets.folder import list_images
from hoi.datasets.hicodet_doctor import check_hicodet
from hoi.datasets.vcoco_doctor import check_vcoco

__all__ = ["CHECKS", "Finding", "check_dataset"]


def check_dataset(config: DatasetConfig, every: bool) -> list[Finding]:
    """Vocabulary, splits and all that the data set's own check looks at.

    Args:
        config: The data set.
        every: Whether all image files are opened, not a sample.
    """
    found = collect(lambda: _check_vocabulary(config))
    found += collect(lambda: CHECKS.get(config.name, _check_by_reading)(config, every))
    for split, amount in config.splits.items():
        if amount > 0:
            found += collect(partial(_check_split, config, split))
    return list(dict.fromkeys(found))


def _check_vocabulary(config: DatasetConfig) -> Iterator[Finding]:
    vocabulary = load_vocabulary(config)
    numbers = f"{len(vocabulary)} interactions of {len(vocabulary.objects)} objects and {len(vocabulary.verbs)} verbs"
    yield Finding("ok", f"vocabulary: {numbers}")


def _check_split(config: DatasetConfig, split: str) -> Iterator[Finding]:
    yield Finding("ok", f"split {split}: {len(open_images(config, split).image_ids)} images")


def _check_world(config: WorldDataset, every: bool) -> Iterator[Finding]:
    yield Finding("ok", f"the embedded world is drawn, not read: seed {config.seed}")


def _check_folder(config: FolderDataset, every: bool) -> Iterator[Finding]:
    yield from check_image_files(Path(config.images), list_images(config.images), every)
    if config.annotations is None:
        yield Finding("warning", "no annotations: stage three reports agreement only", "dataset.annotations")
        return
    from hoi.datasets.labels import load_labels

    for split, share in config.splits.items():
        if share > 0:
            labels = load_labels(config, split)
            images = len(np.unique(labels.image))
            level: Any = "ok" if len(labels) else "warning"
            what = f"split {split}: {len(labels)} annotated interactions on {images} images"
            yield Finding(level, what, config.annotations)


def _check_by_reading(config: DatasetConfig, every: bool) -> Iterator[Finding]:
    """What any data set can be asked: a sample of its images, read as stage one does."""
    for split in (split for split, amount in config.splits.items() if amount > 0):
        source = open_images(config, split)
        rows = {image_id: row for row, image_id in enumerate(source.image_ids)}
        bad: list[str] = []
        opened = sample_of(source.image_ids, every)
        for image_id in opened:
            try:
                source.read(rows[image_id])
            except UnreadableImage as reason:
                bad.append(f"{image_id} ({reason})")
        if bad:
            fix = "put these files there, or copy them again"
            yield Finding("error", f"split {split}: images cannot be read", None, "images", first_of(bad), fix)
        else:
            yield Finding("ok", f"split {split}: {len(opened)} of {len(rows)} images read")


CHECKS: dict[str, Callable[[Any, bool], Iterator[Finding]]] = {
    "world": _check_world,
    "folder": _check_folder,
    "hicodet": check_hicodet,
    "vcoco": check_vcoco,
}
"""Data set name → what is known of it against what is there; a data set without an own check has its images read."""
