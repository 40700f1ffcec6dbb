"""HICO-DET's annotated pairs, joined to the images of a split by file name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hoi.config import HicodetDataset
from hoi.datasets.hicodet import HALVES, OFFICIAL_FOLDER, Half, HicodetImages, half_of, hicodet_vocabulary, image_names
from hoi.errors import UserError
from hoi.labels import LabelReader
from hoi.labels.hicodet_json import FORMATS, Parsed, read_json_boxes
from hoi.labels.hicodet_mat import is_mat, read_mat_boxes
from hoi.records import HoiLabels


@dataclass(frozen=True)
class HicodetAnnotations:
    """One half of HICO-DET as annotated, laid flat.

    Args:
        file_names: n names of all images of the file, in its order, those without a pair among them.
        size_hw: int32 [n, 2], pixels, or None where the format has no sizes.
        image: int64 [R], row of `file_names`, ascending.
        boxes_h, boxes_o: float32 [R, 4], pixel-edge 0-based xyxy.
        interaction: int64 [R], 0..599 in official order.
        dropped: What names a box that is not there, one text each; the published PPDM files hold such entries.
    """

    file_names: tuple[str, ...]
    size_hw: np.ndarray | None
    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    interaction: np.ndarray
    dropped: tuple[str, ...] = ()

    @property
    def num_pairs(self) -> int:
        """R: pairs are counted once per interaction, as everybody counts them."""
        return len(self.image)

    @property
    def num_without_pair(self) -> int:
        """Images that hold no annotated pair."""
        return len(self.file_names) - len(np.unique(self.image))


def read_annotations(path: str | Path, half: Half = "test2015") -> HicodetAnnotations:
    """An annotation file to its record.

    Args:
        path: The file; JSON may be gzipped.
        half: Which half to take out of `anno_bbox.mat`, which holds both; other formats hold one.

    Raises:
        UserError: no such file, a format that is not known, or a wrong record, named.
    """
    path = Path(path)
    try:
        head = path.read_bytes()[:128]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("there is no such file", where=path, expected=FORMATS, fix="set dataset.annotations") from None
    parsed = read_mat_boxes(path, half) if is_mat(head) else read_json_boxes(path)
    _check(parsed, path)
    inclusive = parsed.rows[:, 1:9].reshape(-1, 2, 4) - parsed.first_pixel
    inclusive[:, :, 2:] += 1
    boxes = inclusive.astype(np.float32)
    return HicodetAnnotations(
        tuple(parsed.names),
        parsed.size_hw,
        parsed.rows[:, 0].astype(np.int64),
        boxes[:, 0],
        boxes[:, 1],
        parsed.rows[:, 9].astype(np.int64),
        tuple(parsed.dropped),
    )


def _check(parsed: Parsed, path: Path) -> None:
    names, rows = parsed.names, parsed.rows
    if not all(isinstance(name, str) and name for name in names):
        raise UserError("an image has no file name", where=path, expected="a text for each image")
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise UserError("an image stands twice in the annotations", where=path, got=doubled)
    wrong = ~np.isfinite(rows[:, 1:9]).all(axis=1) | (rows[:, 9] < 0) | (rows[:, 9] >= len(hicodet_vocabulary()))
    if wrong.any():
        row = rows[int(np.flatnonzero(wrong)[0])]
        raise UserError(
            "an annotated pair is impossible",
            where=f"{path}, image {names[int(row[0])]}",
            expected="finite boxes and an interaction of 0 to 599",
            got=f"boxes {row[1:5].tolist()} and {row[5:9].tolist()}, interaction {int(row[9])}",
        )


USUAL_NAMES: dict[Half, tuple[str, ...]] = {
    "train2015": ("instances_train2015.json", "anno_bbox.mat", "trainval_hico.json"),
    "test2015": ("instances_test2015.json", "anno_bbox.mat", "test_hico.json"),
}
"""File names in use; the first that is there is read."""
SHOWN = 3


def find_annotations(config: HicodetDataset, half: Half) -> Path | None:
    """The annotation file of a half: the one that the config names, or the first of the usual ones at `root`."""
    named = getattr(config.annotations, half, None)
    if named is not None:
        return Path(named)
    root = Path(config.root)
    folders = [root, root / "annotations", root / OFFICIAL_FOLDER, root / OFFICIAL_FOLDER / "annotations"]
    if root.name == OFFICIAL_FOLDER:
        folders.append(root.parent)
    found = (folder / name for name in USUAL_NAMES[half] for folder in folders if (folder / name).is_file())
    return next(found, None)


def read_half(config: HicodetDataset, half: Half) -> HicodetAnnotations:
    """All that is annotated in a half; a file is read once per process.

    Raises:
        UserError: no annotation file, or one that is wrong.
    """
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


@lru_cache(maxsize=4)
def _read_once(path: Path, half: Half) -> HicodetAnnotations:
    return read_annotations(path, half)


def hicodet_labels(config: HicodetDataset, split: str) -> HoiLabels:
    """The annotated pairs of a split, `image` a row of `HicodetImages(config, split).image_ids`.

    An image without annotations counts as one without a pair.

    Raises:
        UserError: no annotations, or annotated images that the half does not have, which an average precision would
            silently miss.
    """
    half = half_of(split)
    annotations = read_half(config, half)
    if getattr(config.image_lists, half, None) is None:
        _refuse_missing_images(config, half, annotations)
    rows_of_split = {name: row for row, name in enumerate(HicodetImages(config, split).image_ids)}
    row_of = np.array([rows_of_split.get(name, -1) for name in annotations.file_names], np.int64)
    image = row_of[annotations.image]
    of_split = np.flatnonzero(image >= 0)
    of_split = of_split[np.argsort(image[of_split], kind="stable")]
    return HoiLabels(
        image[of_split],
        annotations.boxes_h[of_split],
        annotations.boxes_o[of_split],
        annotations.interaction[of_split],
    )


def _refuse_missing_images(config: HicodetDataset, half: Half, annotations: HicodetAnnotations) -> None:
    missing = sorted(set(annotations.file_names) - set(image_names(config, half)))
    if missing:
        raise UserError(
            f"{len(missing)} annotated images of {half} are not in the image folder",
            where=find_annotations(config, half),
            expected=f"all of its {len(annotations.file_names)} images",
            got=f"no {', '.join(missing[:SHOWN])}{', ...' if len(missing) > SHOWN else ''}",
            fix=f"put them there, or set dataset.image_lists.{half} to a list of the images that are to count",
        )


class HicodetLabels(LabelReader[HicodetDataset]):
    """The annotation file of each half."""

    def load(self, split: str) -> HoiLabels:
        return hicodet_labels(self.settings, split)

    def exist(self, split: str) -> bool:
        return find_annotations(self.settings, half_of(split)) is not None

    def files(self) -> list[Path]:
        return [path for half in HALVES if (path := find_annotations(self.settings, half)) is not None]
