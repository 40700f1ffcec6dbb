"""Whether HICO-DET is laid out rightly: against what is known of it, and annotations against images."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from hoi.config import HicodetDataset
from hoi.datasets import hicodet_classes
from hoi.datasets.findings import Finding, check_image_files, collect, first_of
from hoi.datasets.folder import list_images
from hoi.datasets.hicodet import HALVES, Half, half_of, image_folder, image_names
from hoi.datasets.hicodet_files import HicodetAnnotations
from hoi.datasets.hicodet_labels import find_annotations, read_half


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
    counts = np.bincount(found.interaction, minlength=len(hicodet_classes.hicodet_vocabulary()))
    official = hicodet_classes.train_counts() if half == "train2015" else hicodet_classes.test_counts()
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
