"""HICO-DET's labels: its annotated pairs, joined to the images of a split by file name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from hoi.config import HicodetDataset
from hoi.datasets.hicodet import HALVES, OFFICIAL_FOLDER, Half, Hicodet, half_of, image_names
from hoi.errors import UserError
from hoi.labels import LabelReader
from hoi.labels.hicodet_files import HicodetAnnotations, read_annotations
from hoi.records import HoiLabels

# File names in use; the first that is there is read.
USUAL_NAMES: dict[Half, tuple[str, ...]] = {
    "train2015": ("instances_train2015.json", "anno_bbox.mat", "trainval_hico.json"),
    "test2015": ("instances_test2015.json", "anno_bbox.mat", "test_hico.json"),
}
NUM_SHOWN = 3
_read_once = lru_cache(maxsize=4)(read_annotations)


class HicodetLabels(LabelReader[HicodetDataset]):
    def exist(self, split: str) -> bool:
        return find_annotations(self.settings, half_of(split)) is not None

    def files(self) -> list[Path]:
        return [path for half in HALVES if (path := find_annotations(self.settings, half)) is not None]

    def load(self, split: str) -> HoiLabels:
        """Return the annotated pairs of a split; an image without annotations counts as one without a pair.

        Raises UserError: no annotations, or annotated images are missing, which average precision would not show.
        """
        config, half = self.settings, half_of(split)
        annotations = read_half(config, half)
        missing = sorted(set(annotations.file_names) - set(image_names(config, half)))
        is_part = getattr(config.image_lists, half, None) is not None and len(missing) < len(annotations.file_names)
        if missing and not is_part:
            raise UserError(
                f"{len(missing)} annotated images of {half} are not in the image folder",
                where=find_annotations(config, half),
                expected=f"all of its {len(annotations.file_names)} images",
                got=f"no {', '.join(missing[:NUM_SHOWN])}{', ...' if len(missing) > NUM_SHOWN else ''}",
                fix=f"put them there, or set dataset.image_lists.{half} to a list of the images that are to count",
            )
        row_of_name = {name: row for row, name in enumerate(Hicodet(config).images(split).image_ids)}
        row_of = np.array([row_of_name.get(name, -1) for name in annotations.file_names], np.int64)
        image = row_of[annotations.image]
        kept = np.flatnonzero(image >= 0)
        kept = kept[np.argsort(image[kept], kind="stable")]
        return HoiLabels(
            image[kept], annotations.boxes_h[kept], annotations.boxes_o[kept], annotations.interaction[kept]
        )

    def notices(self) -> list[str]:
        config, half = self.settings, HALVES[-1]
        if getattr(config.image_lists, half, None) is None or find_annotations(config, half) is None:
            return []
        names, listed = set(read_half(config, half).file_names), set(image_names(config, half))
        left_out = sorted(names - listed)
        what = f"{len(left_out)} annotated images of {half} are not on its list, and do not count"
        without = f"{len(listed - names)} of the list have no annotation"
        return [f"{what}, as '{left_out[0]}'; {without}"] if left_out else []


def find_annotations(config: HicodetDataset, half: Half) -> Path | None:
    """Return the annotation file of a half: the one that the config names, or the first of the usual ones at `root`."""
    named = getattr(config.annotations, half, None)
    if named is not None:
        return Path(named)
    root = Path(config.root)
    folders = [root, root / "annotations", root / OFFICIAL_FOLDER, root / OFFICIAL_FOLDER / "annotations"]
    if root.name == OFFICIAL_FOLDER:
        folders.append(root.parent)
    return next((folder / name for name in USUAL_NAMES[half] for folder in folders if (folder / name).is_file()), None)


def read_half(config: HicodetDataset, half: Half) -> HicodetAnnotations:
    """Return what is annotated in a half; a file is read once per process. Raises UserError: no such file."""
    path = find_annotations(config, half)
    if path is None:
        raise UserError(
            f"there are no annotations of HICO-DET's {half}",
            where=config.root,
            expected=f"{' or '.join(USUAL_NAMES[half])} in it or in annotations/ in it",
            got="none of them",
            fix=f"put one there, or set dataset.annotations.{half} to a file",
        )
    return _read_once(path, half)
