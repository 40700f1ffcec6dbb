"""Whether a data set is laid out rightly: one check for each data set. The only labels read here are counted.

A further dataset names its check in its settings, `DatasetSettings.CHECK`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hoi.config import DatasetSettings, FolderDataset, HicodetDataset, VcocoDataset, WorldDataset
from hoi.datasets import UnreadableImage, hicodet, load_vocabulary, open_images
from hoi.datasets.hicodet import HALVES, Half, half_of, image_folder, image_names
from hoi.datasets.images import list_images
from hoi.datasets.vcoco import VcocoImages, split_ids
from hoi.labels.hicodet import HicodetAnnotations, find_annotations, read_half
from hoi.labels.vcoco import (
    annotated_sizes,
    find_label_files,
    find_pair_file,
    unspoken,
    vcoco_labels,
    vcoco_truth,
)
from hoi.project.findings import (
    Finding,
    check_image_files,
    collect,
    first_of,
    sample_of,
)
from hoi.registry import load_target


@dataclass(frozen=True)
class Known:
    """What is known of a half: its images, those without an annotated pair, its pairs."""

    images: int
    pairs: int


KNOWN: dict[Half, Known] = {"train2015": Known(38118, 117871), "test2015": Known(9658, 33405)}


def check_hicodet(config: HicodetDataset, every: bool) -> Iterator[Finding]:
    """Both halves, as far as a split asks for them."""
    wanted = {half_of(split) for split, share in config.splits.items() if share > 0}
    for half in HALVES:
        if half in wanted:
            # A half that cannot be listed says so, and the other is still looked at.
            yield from collect(partial(_check_half, config, half, every))


def _check_names(config: HicodetDataset, half: Half) -> Iterator[Finding]:
    """The file names of a half against the official ones."""
    folder = str(image_folder(config, half))
    names = image_names(config, half)
    official = re.compile(rf"HICO_{half}_\d{{8}}\.jpg")
    foreign = [name for name in names if not official.fullmatch(name)]
    if foreign:
        fix = f"take them out of the folder, or set dataset.image_lists.{half}"
        yield Finding("warning", f"{half} has images of other names", folder, official.pattern, first_of(foreign), fix)
    known = KNOWN[half].images
    if getattr(config.image_lists, half, None) is not None:
        unlisted = len(set(list_images(folder)) - set(names))
        yield Finding(
            "ok", f"{half}: {len(names)} of {known} images by its list, {unlisted} more in the folder", folder
        )
    elif len(names) == known:
        yield Finding("ok", f"{half}: all {known} images", folder)
    else:
        yield Finding(
            "error",
            f"{half} has {'fewer' if len(names) < known else 'more'} images than HICO-DET",
            folder,
            str(known),
            str(len(names)),
            f"unpack the archive again, or set dataset.image_lists.{half} to a list of the images that are to count",
        )


def _check_half(config: HicodetDataset, half: Half, every: bool) -> Iterator[Finding]:
    yield from _check_names(config, half)
    annotated_hw: dict[str, tuple[int, int]] = {}
    if find_annotations(config, half) is None:
        loses = "nothing is tuned or supervised" if half == "train2015" else "stage three reports agreement only"
        fix = f"put instances_{half}.json or anno_bbox.mat at dataset.root"
        yield Finding("warning", f"{half} has no annotations: {loses}", config.root, fix=fix)
    else:
        yield from collect(partial(_check_annotations, config, half, annotated_hw))
    yield from check_image_files(image_folder(config, half), image_names(config, half), every, annotated_hw)


def _check_annotations(
    config: HicodetDataset, half: Half, annotated_hw: dict[str, tuple[int, int]]
) -> Iterator[Finding]:
    """Pairs against what is known, names against the images, boxes against the sizes, which are added to the last."""
    found = read_half(config, half)
    if found.size_hw is not None:
        sizes = [(int(height), int(width)) for height, width in found.size_hw]
        annotated_hw |= dict(zip(found.file_names, sizes, strict=True))
    path, names = str(find_annotations(config, half)), set(image_names(config, half))
    is_part = getattr(config.image_lists, half, None) is not None
    counts = np.bincount(found.interaction, minlength=len(hicodet.hicodet_vocabulary()))
    official = hicodet.train_counts() if half == "train2015" else hicodet.test_counts()
    said = f"{half}: {found.num_pairs} pairs, {len(found.file_names)} images, {found.num_without_pair} without a pair"
    differing = int((counts != official).sum())
    if differing == 0:
        yield Finding("ok", f"{said}; all 600 classes as published", path)
    elif is_part:
        yield Finding("ok", f"{said}; a part of the published {KNOWN[half].pairs} pairs", path)
    else:
        yield Finding(
            "warning",
            f"{half} is annotated otherwise than published in {differing} of 600 classes",
            path,
            f"{KNOWN[half].pairs} pairs",
            said,
            "figures on these annotations compare with no paper's; use the published file",
        )
    if found.dropped:
        fix = "nothing, if this is PPDM's published file; otherwise mend them"
        yield Finding(
            "warning", "annotated pairs name boxes that are not there", path, got=first_of(found.dropped), fix=fix
        )
    gone = sorted(set(found.file_names) - names)
    if gone and not is_part:
        fix = f"put them into {image_folder(config, half)}, or set dataset.image_lists.{half}"
        yield Finding("error", f"annotated images of {half} are not there", path, "all of them", first_of(gone), fix)
    unknown = sorted(names - set(found.file_names))
    if unknown:
        what = f"images of {half} are not in the annotations and count as images without a pair"
        yield Finding("warning", what, path, "all of them", first_of(unknown), "use a file that lists all images")
    yield from _check_boxes(half, path, found)


def _check_boxes(half: Half, path: str, found: HicodetAnnotations) -> Iterator[Finding]:
    boxes = np.stack([found.boxes_h, found.boxes_o])
    wrong = (boxes[..., 2:] <= boxes[..., :2]).any(axis=(0, 2)) | (boxes < 0).any(axis=(0, 2))
    if found.size_hw is not None:
        wrong |= (boxes > np.tile(found.size_hw[found.image, ::-1], 2)).any(axis=(0, 2))
    rows = np.flatnonzero(wrong)
    if len(rows):
        shown = [f"{found.file_names[found.image[row]]} (pair {row})" for row in rows]
        what = f"annotated boxes of {half} are empty, reversed or outside their image"
        yield Finding("warning", what, path, got=first_of(shown), fix="mend them, or know that nothing can match them")


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
    yield from collect(partial(_check_annotations_vcoco_doctor, config, split, sizes))
    annotated_hw = {names[image_id]: size for image_id, size in sizes.items() if image_id in names}
    yield from check_image_files(root, list(names.values()), every, annotated_hw)


def _check_annotations_vcoco_doctor(
    config: VcocoDataset, split: str, sizes: dict[str, tuple[int, int]]
) -> Iterator[Finding]:
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


def check_dataset(config: DatasetSettings, every: bool) -> list[Finding]:
    """Vocabulary, splits and all that the data set's own check looks at.

    Args:
        config: The data set.
        every: Whether all image files are opened, not a sample.
    """
    found = collect(lambda: _check_vocabulary(config))
    found += collect(lambda: (load_target(config.CHECK) if config.CHECK else _check_by_reading)(config, every))
    for split, amount in config.splits.items():
        if amount > 0:
            found += collect(partial(_check_split_doctor, config, split))
    return list(dict.fromkeys(found))


def _check_vocabulary(config: DatasetSettings) -> Iterator[Finding]:
    vocabulary = load_vocabulary(config)
    numbers = f"{len(vocabulary)} interactions of {len(vocabulary.objects)} objects and {len(vocabulary.verbs)} verbs"
    yield Finding("ok", f"vocabulary: {numbers}")


def _check_split_doctor(config: DatasetSettings, split: str) -> Iterator[Finding]:
    yield Finding("ok", f"split {split}: {len(open_images(config, split).image_ids)} images")


def check_world(config: WorldDataset, every: bool) -> Iterator[Finding]:
    yield Finding("ok", f"the embedded world is drawn, not read: seed {config.seed}")


def check_folder(config: FolderDataset, every: bool) -> Iterator[Finding]:
    yield from check_image_files(Path(config.images), list_images(config.images), every)
    if config.annotations is None:
        yield Finding("warning", "no annotations: stage three reports agreement only", "dataset.annotations")
        return
    from hoi.labels import load_labels

    for split, share in config.splits.items():
        if share > 0:
            labels = load_labels(config, split)
            images = len(np.unique(labels.image))
            level: Any = "ok" if len(labels) else "warning"
            what = f"split {split}: {len(labels)} annotated interactions on {images} images"
            yield Finding(level, what, config.annotations)


def _check_by_reading(config: DatasetSettings, every: bool) -> Iterator[Finding]:
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
