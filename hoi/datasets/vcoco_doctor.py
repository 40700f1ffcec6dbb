"""Whether V-COCO is laid out rightly: its images in COCO's folders, and its annotations against them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hoi.config import VcocoDataset
from hoi.datasets.findings import Finding, check_image_files, collect
from hoi.datasets.vcoco import VcocoImages, split_ids
from hoi.datasets.vcoco_labels import (
    annotated_sizes,
    find_label_files,
    find_pair_file,
    unspoken,
    vcoco_labels,
    vcoco_truth,
)


def check_vcoco(config: VcocoDataset, every: bool) -> Iterator[Finding]:
    """Every split with a share: its number of images, its files, its annotations."""
    for split, share in config.splits.items():
        if share > 0:
            # A split whose annotations are wrong says so, and the others are still looked at.
            yield from collect(partial(_check_split, config, split, every))


def _check_split(config: VcocoDataset, split: str, every: bool) -> Iterator[Finding]:
    root, source, known = Path(config.images), VcocoImages(config, split), len(split_ids()[split])
    yield Finding("ok", f"{split}: {len(source.image_ids)} of V-COCO's {known} images, by their COCO ids")
    names = {image_id: source.path(row).relative_to(root).as_posix() for row, image_id in enumerate(source.image_ids)}
    sizes: dict[str, tuple[int, int]] = {}
    yield from collect(partial(_check_annotations, config, split, sizes))
    annotated_hw = {names[image_id]: size for image_id, size in sizes.items() if image_id in names}
    yield from check_image_files(root, list(names.values()), every, annotated_hw)


def _check_annotations(config: VcocoDataset, split: str, sizes: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    own, where = find_label_files(config, split), config.annotations
    if own is None and find_pair_file(config, split) is None:
        fix = "set dataset.annotations to the folder of V-COCO's vcoco_*.json"
        yield Finding("warning", f"{split} has no annotations: nothing of it is scored or tuned", where, fix=fix)
        return
    labels, outside = vcoco_labels(config, split), unspoken(config, split)
    what = f"{split}: {len(labels)} annotated interactions on {len(np.unique(labels.image))} images"
    yield Finding("ok", f"{what}; {sum(outside.values())} more are outside the vocabulary", where)
    if own is None:
        fix = "put V-COCO's own vcoco_*.json and COCO's instances JSON there"
        what = f"{split} has fredzzhang's pairs alone: no agent and role AP, and nobody acts without an object"
        yield Finding("warning", what, where, fix=fix)
        return
    sizes |= annotated_sizes(config, split)
    truth = vcoco_truth(config, split)
    people, actions = int(truth.is_annotated.sum()), int(truth.does.sum())
    yield Finding("ok", f"{split}: {people} annotated people do {actions} actions, V-COCO's evaluation can run", where)
