"""What is right and wrong with a dataset's files: findings, a look at image files, and one check for each dataset.

A dataset names its check in its settings, `DatasetSettings.CHECK`. Labels are read here only to be counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from hoi.config import DatasetSettings, FolderDataset, HicodetDataset, VcocoDataset, WorldDataset
from hoi.datasets import UnreadableImage, hicodet, load_vocabulary, open_images
from hoi.datasets.hicodet import HALVES, Half, half_of, image_folder, image_names
from hoi.datasets.images import ORIENTATION_TAG, TURNED, list_images
from hoi.datasets.vcoco import VcocoImages, split_ids
from hoi.datasets.vocabulary_file import foreign_phrases
from hoi.errors import UserError
from hoi.labels import label_notices, load_labels
from hoi.labels.hicodet import find_annotations, read_half
from hoi.labels.hicodet_files import HicodetAnnotations
from hoi.labels.vcoco import annotated_sizes, find_label_files, find_pair_file, unspoken, vcoco_truth
from hoi.registry import load_target

SAMPLE = 300
"""Image files that are opened where not all are asked for; their sizes in bytes are looked at for all."""
SHOWN = 3
KNOWN: dict[Half, tuple[int, int]] = {"train2015": (38118, 117871), "test2015": (9658, 33405)}
"""Images and pairs of HICO-DET's halves, as published."""
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; the fields are those of a `UserError`.

    Args:
        level: `error` will stop a run or falsify its figures, `warning` may be meant so, `ok` is right.
    """

    level: Level
    what: str
    where: str | None = None
    expected: str | None = None
    got: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        parts = [("where", self.where), ("expected", self.expected), ("got", self.got), ("next", self.fix)]
        shown = [f"{name}: {' '.join(text.split())}" for name, text in parts if text]
        return " · ".join([f"{self.level:<8}{self.what}", *shown])


def collect(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return all that a check finds; what it raises as a user's mistake is its last finding."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except UserError as error:
        texts = (None if v is None else str(v) for v in (error.where, error.expected, error.got, error.fix))
        found.append(Finding("error", error.what, *texts))
    return found


def first_of(names: Sequence[str]) -> str:
    """Return the length of a list and its first few names, as the `got` of a finding."""
    return f"{len(names)}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


class _Header(NamedTuple):
    stored_hw: tuple[int, int]
    orientation: int

    @property
    def upright_hw(self) -> tuple[int, int]:
        return self.stored_hw[::-1] if self.orientation in TURNED else self.stored_hw


def _header(path: Path) -> _Header | None:
    """Return what the header of an image file says; None for what is no image."""
    try:
        with Image.open(path) as image:
            return _Header((image.height, image.width), int(image.getexif().get(ORIENTATION_TAG, 1)))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        return None


def sample_of(names: Sequence[str], number: int | None) -> list[str]:
    """Return so many of the names, evenly spread; all where `number` is None or there are no more."""
    if number is None or len(names) <= number:
        return list(names)
    return [names[row] for row in np.linspace(0, len(names) - 1, number).astype(int)]


def check_image_files(
    folder: Path, names: Sequence[str], every: bool, annotated_hw: dict[str, tuple[int, int]] | None = None
) -> Iterator[Finding]:
    """Look for missing and empty files (of all), and for files that are no images or of another size (of a sample).

    Args:
        names: File names relative to the folder.
        every: Whether all files are opened.
        annotated_hw: Sizes that the annotations were made on, by name.
    """
    missing = [name for name in names if not (folder / name).exists()]
    there = sorted(set(names) - set(missing))
    empty = [name for name in there if (folder / name).stat().st_size == 0]
    opened = sample_of(sorted(set(there) - set(empty)), None if every else SAMPLE)
    with ThreadPoolExecutor(8) as pool:
        read = dict(zip(opened, pool.map(lambda name: _header(folder / name), opened), strict=True))
    headers = {name: header for name, header in read.items() if header}
    broken = [name for name in read if name not in headers]
    put = "put these files there; without them they count as unreadable images"
    again = "unpack or copy these files again"
    for bad, what, expected, fix in (
        (missing, "image files are missing", "a file for each name", put),
        (empty, "image files are empty", "no file of 0 bytes", again),
        (broken, "files are no images", "images", again),
    ):
        if bad:
            yield Finding("error", what, str(folder), expected, first_of(bad), fix)
    wrong = [*_check_sizes(folder, headers, annotated_hw)] if annotated_hw else []
    yield from wrong
    if not (missing or empty or broken or wrong):
        compared = " and have the annotated size" if annotated_hw else ""
        yield Finding("ok", f"{len(headers)} of {len(names)} image files opened: all are images{compared}", str(folder))


def _check_sizes(
    folder: Path, headers: dict[str, _Header], annotated_hw: dict[str, tuple[int, int]]
) -> Iterator[Finding]:
    both = {name: header for name, header in headers.items() if name in annotated_hw}
    other = {name: h for name, h in both.items() if tuple(annotated_hw[name]) != h.upright_hw}
    as_stored = [name for name, h in other.items() if tuple(annotated_hw[name]) == h.stored_hw]
    if as_stored:
        what = "boxes were drawn on the pixels as stored, but images are turned upright by their EXIF tag"
        fix = f"take the tag out: exiftool -overwrite_original -Orientation= {folder}/{as_stored[0]} (and the others)"
        yield Finding("error", what, str(folder), "annotations of the upright image", first_of(as_stored), fix)
    foreign = [
        f"{name} (annotated {annotated_hw[name][1]} x {annotated_hw[name][0]}, "
        f"file {h.upright_hw[1]} x {h.upright_hw[0]})"
        for name, h in other.items()
        if name not in as_stored
    ]
    if foreign:
        fix = "use the images and the annotations of one release; resized copies do not fit the boxes"
        what = "images have another size than annotated"
        yield Finding("error", what, str(folder), "equal sizes", first_of(foreign), fix)
    flipped = [name for name, h in both.items() if h.orientation in (2, 3, 4)]
    if flipped:
        what = "images are mirrored or turned by 180 degrees by their EXIF tag; sizes cannot tell what the boxes mean"
        fix = "look at one of them with its boxes"
        yield Finding("warning", what, str(folder), "no such tag", first_of(flipped), fix)


def _splits(config: DatasetSettings) -> list[str]:
    return [split for split, amount in config.splits.items() if amount > 0]


def check_dataset(config: DatasetSettings, every: bool) -> list[Finding]:
    """Return all that is found on vocabulary and splits, and by the dataset's own check.

    `every` has all image files opened, not a sample.
    """

    def vocabulary() -> Iterator[Finding]:
        v = load_vocabulary(config)
        yield Finding("ok", f"vocabulary: {len(v)} interactions of {len(v.objects)} objects and {len(v.verbs)} verbs")
        yield from check_language(config)

    def count(split: str) -> Iterator[Finding]:
        yield Finding("ok", f"split {split}: {len(open_images(config, split).image_ids)} images")

    findings = collect(vocabulary)
    findings += collect(lambda: (load_target(config.CHECK) if config.CHECK else _check_by_reading)(config, every))
    for split in _splits(config):
        findings += collect(partial(count, split))
    return list(dict.fromkeys(findings))


def check_language(config: DatasetSettings) -> Iterator[Finding]:
    """Warn of phrases that are not English, which no part of the pipeline understands."""
    path = config.vocabulary if isinstance(config, FolderDataset) else ""
    foreign = foreign_phrases(path) if path else []
    if foreign:
        what, fix = "phrases are expected in English, which these do not look like", "write 'riding a bicycle'"
        yield Finding("warning", what, path, got=first_of(foreign), fix=fix)


def check_world(config: WorldDataset, every: bool) -> Iterator[Finding]:
    """Say that there is nothing to check."""
    yield Finding("ok", f"the embedded world is drawn, not read: seed {config.seed}")


def check_folder(config: FolderDataset, every: bool) -> Iterator[Finding]:
    """Check the images of a folder, and count its annotations."""
    yield from check_image_files(Path(config.images), list_images(config.images), every)
    if config.annotations is None:
        yield Finding("warning", "no annotations: stage three reports agreement only", "dataset.annotations")
        return
    for split in _splits(config):
        labels = load_labels(config, split)
        what = f"split {split}: {len(labels)} annotated interactions on {len(np.unique(labels.image))} images"
        yield Finding("ok" if len(labels) else "warning", what, config.annotations)
    for notice in label_notices(config):
        yield Finding("warning", notice, config.annotations)


def _check_by_reading(config: DatasetSettings, every: bool) -> Iterator[Finding]:
    """Read a sample of the images, as stage one does."""
    for split in _splits(config):
        source = open_images(config, split)
        rows = {image_id: row for row, image_id in enumerate(source.image_ids)}
        opened, bad = sample_of(source.image_ids, None if every else SAMPLE), list[str]()
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


def check_hicodet(config: HicodetDataset, every: bool) -> Iterator[Finding]:
    """Check the halves that a split asks for."""
    wanted = set(map(half_of, _splits(config)))
    for half in HALVES:
        if half in wanted:
            # A half that cannot be listed says so, and the other is still looked at.
            yield from collect(partial(_check_half, config, half, every))


def _check_names(config: HicodetDataset, half: Half) -> Iterator[Finding]:
    folder = str(image_folder(config, half))
    names = image_names(config, half)
    official = re.compile(rf"HICO_{half}_\d{{8}}\.jpg")
    foreign = [name for name in names if not official.fullmatch(name)]
    if foreign:
        fix = f"take them out of the folder, or set dataset.image_lists.{half}"
        yield Finding("warning", f"{half} has images of other names", folder, official.pattern, first_of(foreign), fix)
    known = KNOWN[half][0]
    if getattr(config.image_lists, half, None) is not None:
        unlisted = len(set(list_images(folder)) - set(names))
        what = f"{half}: {len(names)} of {known} images by its list, {unlisted} more in the folder"
        yield Finding("ok", what, folder)
    elif len(names) == known:
        yield Finding("ok", f"{half}: all {known} images", folder)
    else:
        what = f"{half} has {'fewer' if len(names) < known else 'more'} images than HICO-DET"
        fix = f"unpack the archive again, or set dataset.image_lists.{half} to a list of the images that are to count"
        yield Finding("error", what, folder, str(known), str(len(names)), fix)


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
    """Check pairs, names and boxes of a half, and add the annotated sizes to `annotated_hw`."""
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
        yield Finding("ok", f"{said}; a part of the published {KNOWN[half][1]} pairs", path)
    else:
        what = f"{half} is annotated otherwise than published in {differing} of 600 classes"
        fix = "figures on these annotations compare with no paper's; use the published file"
        yield Finding("warning", what, path, f"{KNOWN[half][1]} pairs", said, fix)
    if found.dropped:
        fix = "nothing, if this is PPDM's published file; otherwise mend them"
        what = "annotated pairs name boxes that are not there"
        yield Finding("warning", what, path, got=first_of(found.dropped), fix=fix)
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
    """Check images, files and annotations of every split with a share."""
    for split in _splits(config):
        # A split whose annotations are wrong says so, and the others are still looked at.
        yield from collect(partial(_check_vcoco_split, config, split, every))


def _check_vcoco_split(config: VcocoDataset, split: str, every: bool) -> Iterator[Finding]:
    root, source, known = Path(config.images), VcocoImages(config, split), len(split_ids()[split])
    yield Finding("ok", f"{split}: {len(source.image_ids)} of V-COCO's {known} images, by their COCO ids")
    names = {image_id: source.path(row).relative_to(root).as_posix() for row, image_id in enumerate(source.image_ids)}
    sizes: dict[str, tuple[int, int]] = {}
    yield from collect(partial(_check_vcoco_annotations, config, split, sizes))
    annotated_hw = {names[image_id]: size for image_id, size in sizes.items() if image_id in names}
    yield from check_image_files(root, list(names.values()), every, annotated_hw)


def _check_vcoco_annotations(config: VcocoDataset, split: str, sizes: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    own, where = find_label_files(config, split), config.annotations
    if own is None and find_pair_file(config, split) is None:
        fix = "set dataset.annotations to the folder of V-COCO's vcoco_*.json"
        yield Finding("warning", f"{split} has no annotations: nothing of it is scored or tuned", where, fix=fix)
        return
    labels, outside = load_labels(config, split), unspoken(config, split)
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
