"""V-COCO's labels: its annotated persons and pairs, joined to the images of a split by COCO id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from hoi.config import VcocoDataset
from hoi.datasets.vcoco import VcocoImages, vcoco_vocabulary
from hoi.errors import UserError
from hoi.labels import LabelReader
from hoi.labels.vcoco_files import (
    VcocoPairs,
    VcocoSplit,
    VcocoTruth,
    join_instances,
    pairs_of_truth,
    read_labels,
    read_pairs,
)
from hoi.records import HoiLabels

# Split → V-COCO's label files, and fredzzhang's files that hold its images (the first that is there is read).
PARTS = {"train": ("train",), "validation": ("val",), "trainval": ("train", "val"), "test": ("test",)}
PAIR_FILES = {
    "train": ("train", "trainval"),
    "validation": ("val", "trainval"),
    "trainval": ("trainval",),
    "test": ("test",),
}


_read_pairs_once = lru_cache(maxsize=4)(read_pairs)


class VcocoLabels(LabelReader[VcocoDataset]):
    def files(self) -> list[Path]:
        folder, instances = self.settings.annotations, self.settings.instances
        files = [] if folder is None else sorted(Path(folder).glob("*.json*"))
        return files if instances is None else [*files, Path(instances)]

    def notices(self) -> list[str]:
        left_out: dict[Path, set[int]] = {}
        for split in self.settings.splits:
            for path, pairs in _pairs_of_files(self.settings, split).items():
                left_out[path] = left_out.get(path, set(pairs.image_ids)) - _rows(self.settings, split).keys()
        foreign = set[int]().union(*left_out.values())
        what = f"{len(foreign)} annotated images are none of the data set's, and do not count"
        return [f"{what}, as {min(foreign)}"] if foreign else []

    def load(self, split: str) -> HoiLabels:
        """Return the annotated pairs of a split that its vocabulary has. Raises UserError: none, or wrong ones."""
        interaction_of = {pair: k for k, pair in enumerate(vcoco_vocabulary(self.settings.vocabulary).interactions)}
        parts = []
        for pairs, row in _pairs_on_rows(self.settings, split):
            names = zip(pairs.keys, pairs.objects, strict=True)
            interaction = np.array([interaction_of.get(name, -1) for name in names], np.int64)
            kept = (row >= 0) & (interaction >= 0)
            parts.append((row[kept], pairs.boxes_h[kept], pairs.boxes_o[kept], interaction[kept]))
        image, boxes_h, boxes_o, interaction = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(image, kind="stable")
        return HoiLabels(image[order], boxes_h[order], boxes_o[order], interaction[order])


def vcoco_truth(config: VcocoDataset, split: str) -> VcocoTruth:
    """Return what the V-COCO evaluation counts of a split; `image` holds rows of `open_images`.

    Raises UserError: V-COCO's own label files or the boxes are not there, or lack an image of the split.
    """
    files = find_label_files(config, split)
    if files is None:
        raise UserError(
            f"there are no V-COCO label files of split '{split}'",
            where="dataset.annotations",
            expected=f"a folder with {_label_file_names(split)}",
            got=config.annotations,
            fix="put V-COCO's own files there: its evaluation counts roles without a box, which other formats lack",
        )
    rows, parts = _rows(config, split), [_read_once(file, config.instances) for file in files]
    _check_complete(config, split, rows, (number for part in parts for number in part.image_ids))
    truths = []
    for part in parts:
        row = np.array([rows.get(number, -1) for number in part.image_ids], np.int64)[part.truth.image]
        columns = {f.name: getattr(part.truth, f.name)[row >= 0] for f in fields(VcocoTruth)}
        truths.append({**columns, "image": row[row >= 0]})
    return VcocoTruth(**{f.name: np.concatenate([truth[f.name] for truth in truths]) for f in fields(VcocoTruth)})


def unspoken(config: VcocoDataset, split: str) -> Counter[str]:
    """Count the annotated pairs of a split that the vocabulary lacks, by name, as `carry_obj refrigerator`."""
    spoken = set(vcoco_vocabulary(config.vocabulary).names)
    return Counter(
        f"{key} {obj}"
        for pairs, row in _pairs_on_rows(config, split)
        for key, obj, image in zip(pairs.keys, pairs.objects, row, strict=True)
        if image >= 0 and f"{key} {obj}" not in spoken
    )


def annotated_sizes(config: VcocoDataset, split: str) -> dict[str, tuple[int, int]]:
    """Return the (height, width) that V-COCO's boxes were drawn on, by image id; empty without its own label files."""
    parts = [_read_once(file, config.instances) for file in find_label_files(config, split) or []]
    sizes = [zip(part.image_ids, part.size_hw.tolist(), strict=True) for part in parts]
    return {str(number): (height, width) for of_part in sizes for number, (height, width) in of_part}


def find_label_files(config: VcocoDataset, split: str) -> list[Path] | None:
    """Return V-COCO's own label files of a split, or None where one of them is not there."""
    paths = [path for part in PARTS[split] if (path := _find(config, f"vcoco_{part}")) is not None]
    return paths if len(paths) == len(PARTS[split]) else None


def find_pair_file(config: VcocoDataset, split: str) -> Path | None:
    """Return fredzzhang's file with the images of a split, or None."""
    paths = (_find(config, f"instances_vcoco_{part}") for part in PAIR_FILES[split])
    return next((path for path in paths if path is not None), None)


def _find(config: VcocoDataset, stem: str) -> Path | None:
    if config.annotations is None:
        return None
    paths = (Path(config.annotations) / (stem + ending) for ending in (".json", ".json.gz"))
    return next((path for path in paths if path.is_file()), None)


def _label_file_names(split: str) -> str:
    return " and ".join(f"vcoco_{part}.json" for part in PARTS[split])


def _rows(config: VcocoDataset, split: str) -> dict[int, int]:
    return {int(image_id): row for row, image_id in enumerate(VcocoImages(config, split).image_ids)}


@lru_cache(maxsize=4)
def _read_once(labels: Path, instances: str | None) -> VcocoSplit:
    path = None if instances is None else Path(instances)
    return join_instances(read_labels(labels), path, fix="set dataset.instances to COCO's instances JSON")


def _pairs_of_files(config: VcocoDataset, split: str) -> dict[Path, VcocoPairs]:
    # V-COCO's own files come first; empty where there are none of a split.
    files, pair_file = find_label_files(config, split), find_pair_file(config, split)
    if files is not None:
        return {file: pairs_of_truth(_read_once(file, config.instances)) for file in files}
    return {} if pair_file is None else {pair_file: _read_pairs_once(pair_file)}


def _pairs_on_rows(config: VcocoDataset, split: str) -> list[tuple[VcocoPairs, np.ndarray]]:
    # Each file's pairs, with the row of each pair's image, -1 where the split lacks it.
    parts = _pairs_of_files(config, split).values()
    if not parts:
        raise UserError(
            f"there are no V-COCO annotations of split '{split}'",
            where="dataset.annotations",
            expected=f"a folder with {_label_file_names(split)}, or with instances_vcoco_{PAIR_FILES[split][-1]}.json",
            got=config.annotations,
            fix="set dataset.annotations, or remove the students with supervision: labels",
        )
    rows = _rows(config, split)
    _check_complete(config, split, rows, (number for part in parts for number in part.image_ids))
    return [(part, np.array([rows.get(n, -1) for n in part.image.tolist()], np.int64)) for part in parts]


def _check_complete(config: VcocoDataset, split: str, rows: dict[int, int], annotated: Iterable[int]) -> None:
    missing = sorted(rows.keys() - set(annotated))
    if missing:
        raise UserError(
            f"{len(missing)} images of split '{split}' are not in its annotation files",
            where=config.annotations,
            got=f"no {missing[0]}",
            fix="put the complete files there, or keep only annotated images with dataset.image_list",
        )
