"""HICO's official MATLAB files: annotated pairs (`anno_bbox.mat`) and image-level labels (`anno.mat`).

`anno_bbox.mat` holds, for each half, one struct per image: `filename`, `size` {width, height, depth} and `hoi`, a list
of {`id` from 1, `bboxhuman`, `bboxobject` {x1, x2, y1, y2} 1-based inclusive, `connection` rows of (human, object)
from 1, `invis`}. An interaction with `invis` 1 is in the image but cannot be seen, and has no box.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.hicodet import Half
from hoi.errors import UserError
from hoi.labels.hicodet_json import Parsed, wrong_record

NUM_INTERACTIONS = 600


@dataclass(frozen=True)
class ImageLabels:
    """HICO's image-level labels of one half.

    Args:
        file_names: n image names.
        positive: bool [n, 600]: the interaction is known to be in the image. What was not asked, was unclear or was
            denied is False.
    """

    file_names: tuple[str, ...]
    positive: np.ndarray


def is_mat(head: bytes) -> bool:
    """Whether a file that begins so is one of MATLAB's."""
    return head.startswith(b"MATLAB")


def read_image_labels(path: str | Path, half: Half = "test2015") -> ImageLabels:
    """`anno.mat` to the image-level labels of a half, by which the known-object setting chooses its images.

    Raises:
        UserError: no such file, no MATLAB file, or one without these labels.
    """
    path = Path(path)
    split = half.removesuffix("2015")
    content = load_mat(path, [f"list_{split}", f"anno_{split}"], squeeze_me=True, struct_as_record=False)
    names = tuple(str(name) for name in np.atleast_1d(content[f"list_{split}"]))
    labels = np.atleast_2d(content[f"anno_{split}"])
    if labels.shape != (NUM_INTERACTIONS, len(names)):
        raise UserError(
            "the image-level labels have another shape",
            where=f"{path}, anno_{split}",
            expected=(NUM_INTERACTIONS, len(names)),
            got=labels.shape,
        )
    return ImageLabels(names, labels.T == 1)


def read_mat_boxes(path: Path, half: Half) -> Parsed:
    """One half of `anno_bbox.mat`.

    Raises:
        UserError: another MATLAB file, or a wrong record, named.
    """
    key = f"bbox_{half.removesuffix('2015')}"
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    rows: list[list[float]] = []
    dropped: list[str] = []
    content = load_mat(path, [key], squeeze_me=True, struct_as_record=False)
    for image, record in enumerate(np.atleast_1d(content[key])):
        where = f"{path}, {key} {image + 1}"
        try:
            names.append(str(record.filename))
            where = f"{where} ({record.filename})"
            sizes.append((int(record.size.height), int(record.size.width)))
            for hoi in np.atleast_1d(record.hoi):
                rows += _rows_of(hoi, image, where, dropped)
        except (AttributeError, TypeError, ValueError) as error:
            raise wrong_record(
                where, "filename, size, hoi {id, bboxhuman, bboxobject, connection, invis}", error
            ) from None
    table = np.array(rows, np.float64).reshape(-1, 10)
    return Parsed(names, np.array(sizes, np.int32).reshape(-1, 2), table, 1, dropped)


def _rows_of(hoi: Any, image: int, where: str, dropped: list[str]) -> list[list[float]]:
    if int(hoi.invis):
        return []
    humans, things = (_boxes(boxes) for boxes in (hoi.bboxhuman, hoi.bboxobject))
    rows: list[list[float]] = []
    for human, thing in np.reshape(hoi.connection, (-1, 2)).astype(int) - 1:
        if 0 <= human < len(humans) and 0 <= thing < len(things):
            rows.append([image, *humans[human], *things[thing], int(hoi.id) - 1])
        else:
            dropped.append(
                f"{where}: interaction {int(hoi.id)} pairs boxes {human + 1} and {thing + 1}, "
                f"there are {len(humans)} and {len(things)}"
            )
    return rows


def _boxes(boxes: Any) -> list[list[float]]:
    return [[float(box.x1), float(box.y1), float(box.x2), float(box.y2)] for box in np.atleast_1d(boxes)]


def load_mat(path: Path, keys: list[str], **how: bool) -> dict[str, Any]:
    """A MATLAB file to some of its variables.

    Args:
        path: The file.
        keys: Their names.
        how: Further arguments of `scipy.io.loadmat`.

    Raises:
        UserError: no such file, no MATLAB file, a damaged one, or one without these variables.
    """
    # Imported here: scipy.io takes a moment that no other format needs.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    expected = f"a MATLAB file with {' and '.join(keys)}"
    if not path.is_file():
        raise UserError("there is no such file", where=path, expected=expected)
    try:
        content = loadmat(path, variable_names=keys, **how)
    except (MatReadError, NotImplementedError, ValueError, TypeError, IndexError, zlib.error, OSError) as error:
        raise UserError("this MATLAB file cannot be read", where=path, expected=expected, got=error) from None
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError("this MATLAB file holds something else", where=path, expected=expected, got=f"no {missing[0]}")
    return content
