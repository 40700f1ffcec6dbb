"""HICO-DET's annotation files: the two JSON forms in use, and HICO's official MATLAB files.

- `instances_{train,test}2015.json` (fredzzhang/hicodet): `filenames`, `size` [w, h], and per image `annotation`
  {boxes_h, boxes_o, hoi}; 1-based inclusive corners.
- `trainval_hico.json`, `test_hico.json` (PPDM; QPIC, CDN, GEN-VLKT and HOICLIP read the same files): per image
  {file_name, annotations, hoi_annotation}. A box is {bbox, category_id}, a pair {subject_id, object_id, category_id,
  hoi_category_id}: rows of boxes from 0, COCO's object ids, verbs and interactions from 1. Corners are inclusive,
  0-based in the published training file and 1-based in the published test file.
- `anno_bbox.mat`: for each half, one struct per image: `filename`, `size` {width, height, depth} and `hoi`, a list of
  {`id` from 1, `bboxhuman`, `bboxobject` {x1, x2, y1, y2} 1-based inclusive, `connection` rows of (human, object) from
  1, `invis`}. An interaction with `invis` 1 is in the image but cannot be seen, and has no box.
- `anno.mat`: image-level labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi.datasets.hicodet import Half, hicodet_vocabulary
from hoi.errors import UserError
from hoi.files import convert, open_file
from hoi.json_lines import read_json_file
from hoi.matlab import load_mat
from hoi.prompts import spaced

FORMATS = "fredzzhang's instances JSON, PPDM's JSON, or anno_bbox.mat"
NUM_INTERACTIONS = 600
OBJECT_OF_ID = dict(zip(COCO_CATEGORY_IDS, COCO_OBJECTS, strict=True))


@dataclass(frozen=True)
class HicodetAnnotations:
    """One half of HICO-DET as annotated, laid flat."""

    file_names: tuple[str, ...]  # of all n images, in the order of the file, those without a pair among them
    size_hw: np.ndarray | None  # int32 [n, 2], pixels; None where the format has no sizes
    image: np.ndarray  # int64 [R], row of file_names, ascending
    boxes_h: np.ndarray  # float32 [R, 4], pixel-edge 0-based xyxy
    boxes_o: np.ndarray
    interaction: np.ndarray  # int64 [R], 0..599 in official order
    dropped: tuple[str, ...] = ()  # entries that name a box that is not there; the published PPDM files hold such

    @property
    def num_pairs(self) -> int:
        """R: pairs are counted once per interaction, as everybody counts them."""
        return len(self.image)

    @property
    def num_without_pair(self) -> int:
        return len(self.file_names) - len(np.unique(self.image))


@dataclass
class _Parsed:
    names: list[str]
    size_hw: np.ndarray | None
    rows: np.ndarray  # float64 [R, 10]: image row, human x1 y1 x2 y2, object x1 y1 x2 y2, interaction from 0
    first_pixel: int  # the number that the file gives to the first pixel, 0 or 1
    dropped: list[str] = field(default_factory=list)


def read_annotations(path: str | Path, half: Half = "test2015") -> HicodetAnnotations:
    """Read an annotation file of any of the forms; `half` is what is taken out of `anno_bbox.mat`, which holds both.

    Raises UserError: no such file, an unknown format, or a wrong record, named.
    """
    path = Path(path)
    with open_file(path, FORMATS) as file:
        is_matlab = file.read(6) == b"MATLAB"
    parsed = _read_mat(path, half) if is_matlab else _read_json(path)
    _check(parsed, path)
    boxes = parsed.rows[:, 1:9].reshape(-1, 2, 4) - parsed.first_pixel
    boxes[:, :, 2:] += 1
    boxes = boxes.astype(np.float32)
    image, interaction = parsed.rows[:, [0, 9]].astype(np.int64).T
    names, dropped = tuple(parsed.names), tuple(parsed.dropped)
    return HicodetAnnotations(names, parsed.size_hw, image, boxes[:, 0], boxes[:, 1], interaction, dropped)


def _check(parsed: _Parsed, path: Path) -> None:
    names, rows = parsed.names, parsed.rows
    if not all(isinstance(name, str) and name for name in names):
        raise UserError("an image has no file name", where=path, expected="a text for each image")
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise UserError("an image stands twice in the annotations", where=path, got=doubled)
    wrong = ~np.isfinite(rows[:, 1:9]).all(axis=1) | (rows[:, 9] < 0) | (rows[:, 9] >= NUM_INTERACTIONS)
    if wrong.any():
        row = rows[int(np.flatnonzero(wrong)[0])]
        raise UserError(
            "an annotated pair is impossible",
            where=f"{path}, image {names[int(row[0])]}",
            expected="finite boxes and an interaction of 0 to 599",
            got=f"boxes {row[1:5].tolist()} and {row[5:9].tolist()}, interaction {int(row[9])}",
        )


def _wrong_record(where: str, expected: str, got: object) -> UserError:
    got = f"no {got}" if isinstance(got, KeyError) else got
    return UserError("an annotation record is not understood", where=where, expected=expected, got=got)


def _table(rows: list[list[float]], path: Path) -> np.ndarray:
    try:
        return np.array(rows, np.float64).reshape(-1, 10)
    except ValueError:
        raise UserError("a box is not four numbers", where=path, expected="[x1, y1, x2, y2]") from None


def _read_json(path: Path) -> _Parsed:
    plain = read_json_file(path, "annotations", FORMATS)
    if isinstance(plain, dict) and {"annotation", "filenames"} <= plain.keys():
        return _read_instances(plain, path)
    first = plain[0] if isinstance(plain, list) and plain else None
    if isinstance(first, dict) and {"file_name", "annotations", "hoi_annotation"} <= first.keys():
        return _read_ppdm(plain, path)
    keys = ", ".join(map(str, list(plain)[:8])) if isinstance(plain, dict) else type(plain).__name__
    raise UserError("this is no HICO-DET annotation file", where=path, expected=FORMATS, got=keys)


def _read_instances(plain: dict[str, Any], path: Path) -> _Parsed:
    names, sizes = plain["filenames"], plain.get("size")
    _check_class_order(plain, path)
    if not all(isinstance(each, list) for each in (plain["annotation"], names, [] if sizes is None else sizes)):
        raise UserError("filenames, annotation and size are to be lists", where=path)
    if len(plain["annotation"]) != len(names) or (sizes is not None and len(sizes) != len(names)):
        got = f"{len(plain['annotation'])} and {'no size' if sizes is None else len(sizes)}"
        expected = f"{len(names)} of annotation and size, as of filenames"
        raise UserError("the lists of this file differ in length", where=path, expected=expected, got=got)
    rows: list[list[float]] = []
    for row, record in enumerate(plain["annotation"]):
        where = f"{path}, annotation {row} ({names[row]})"
        try:
            for human, obj, hoi in zip(record["boxes_h"], record["boxes_o"], record["hoi"], strict=True):
                rows.append([row, *map(float, human), *map(float, obj), index(hoi)])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _wrong_record(where, "boxes_h, boxes_o and hoi of one length", error) from None
        if rows and len(rows[-1]) != 10:
            raise _wrong_record(where, "boxes of four numbers", "another number")
    size_hw = None
    if sizes is not None:
        try:
            size_hw = np.array(sizes, np.int32).reshape(len(sizes), 2)[:, ::-1].copy()
        except (TypeError, ValueError, OverflowError):
            raise UserError("a size is not understood", where=path, expected="[width, height] of each image") from None
    return _Parsed(names, size_hw, _table(rows, path), first_pixel=1)


def _check_class_order(plain: dict[str, Any], path: Path) -> None:
    if not {"correspondence", "objects", "verbs"} <= plain.keys():
        return
    try:
        named = {int(k): (plain["verbs"][verb], plain["objects"][obj]) for k, obj, verb in plain["correspondence"]}
    except (TypeError, ValueError, IndexError) as error:
        raise _wrong_record(f"{path}, correspondence", "[interaction, object, verb] of 600", error) from None
    official = hicodet_vocabulary().interactions
    for k, pair in named.items():
        expected = official[k] if 0 <= k < len(official) else ("0", "to 599")
        if [spaced(name) for name in pair] != [spaced(name) for name in expected]:
            what, where = "this file numbers the interactions in another order", f"{path}, correspondence {k}"
            raise UserError(what, where=where, expected=" ".join(expected), got=" ".join(pair))


def _read_ppdm(plain: list[Any], path: Path) -> _Parsed:
    names: list[str] = []
    rows: list[list[float]] = []
    dropped: list[str] = []
    row_of = {pair: k for k, pair in enumerate(hicodet_vocabulary().interactions)}
    expected = "file_name, annotations [{bbox, category_id}], hoi_annotation [{subject_id, object_id, category_id}]"
    for row, record in enumerate(plain):
        where = f"{path}, entry {row}"
        try:
            names.append(convert(record["file_name"], str))
            where = f"{where} ({record['file_name']})"
            boxes = [[float(edge) for edge in box["bbox"]] for box in record["annotations"]]
            # Some of these files hold numbers as text with a line feed, which int() reads.
            objects = [int(box["category_id"]) for box in record["annotations"]]
            for pair in record["hoi_annotation"]:
                human, obj = int(pair["subject_id"]), int(pair["object_id"])
                if not (0 <= human < len(boxes) and 0 <= obj < len(boxes)):
                    dropped.append(f"{where}: a pair of boxes {human} and {obj}, there are {len(boxes)}")
                    continue
                rows.append([row, *boxes[human], *boxes[obj], _interaction(pair, objects[obj], row_of, where)])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _wrong_record(where, expected, error) from None
        if any(len(box) != 4 for box in boxes):
            raise _wrong_record(where, "boxes of four numbers", "another number")
    table = _table(rows, path)
    # A coordinate of 0 proves that pixels count from 0. Without one it is as in the published files.
    corners = table[:, [1, 2, 5, 6]]
    from_zero = (corners.size and corners.min() < 1) or any("train2015" in name for name in names)
    return _Parsed(names, None, table, 0 if from_zero else 1, dropped)


def _interaction(pair: dict[str, Any], coco_id: int, row_of: dict[tuple[str, str], int], where: str) -> int:
    # A pair's own number, where it has one, has to agree with its verb and object.
    vocabulary = hicodet_vocabulary()
    verb = int(pair["category_id"]) - 1
    if coco_id not in OBJECT_OF_ID or not 0 <= verb < len(vocabulary.verbs):
        raise _wrong_record(where, "a COCO object id and a verb of 1 to 117", f"object {coco_id}, verb {verb + 1}")
    named = (vocabulary.verbs[verb], OBJECT_OF_ID[coco_id])
    interaction = int(pair["hoi_category_id"]) - 1 if "hoi_category_id" in pair else row_of.get(named, -1)
    if not 0 <= interaction < len(vocabulary) or vocabulary.interactions[interaction] != named:
        got = f"{' '.join(named)} as number {interaction + 1}"
        raise _wrong_record(where, "a verb and an object that make one of HICO-DET's 600 interactions", got)
    return interaction


def _read_mat(path: Path, half: Half) -> _Parsed:
    key = f"bbox_{half.removesuffix('2015')}"
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    rows: list[list[float]] = []
    dropped: list[str] = []
    content = load_mat(path, [key], plain=True)
    for image, record in enumerate(np.atleast_1d(content[key])):
        where = f"{path}, {key} {image + 1}"
        try:
            names.append(str(record.filename))
            where = f"{where} ({record.filename})"
            sizes.append((int(record.size.height), int(record.size.width)))
            for hoi in np.atleast_1d(record.hoi):
                if not int(hoi.invis):
                    rows += _rows_of(hoi, image, where, dropped)
        except (AttributeError, TypeError, ValueError) as error:
            expected = "filename, size, hoi {id, bboxhuman, bboxobject, connection, invis}"
            raise _wrong_record(where, expected, error) from None
    return _Parsed(names, np.array(sizes, np.int32).reshape(-1, 2), _table(rows, path), 1, dropped)


def _rows_of(hoi: Any, image: int, where: str, dropped: list[str]) -> list[list[float]]:
    humans, objects = (
        [[float(getattr(box, edge)) for edge in ("x1", "y1", "x2", "y2")] for box in np.atleast_1d(boxes)]
        for boxes in (hoi.bboxhuman, hoi.bboxobject)
    )
    rows: list[list[float]] = []
    for human, obj in np.reshape(hoi.connection, (-1, 2)).astype(int) - 1:
        if 0 <= human < len(humans) and 0 <= obj < len(objects):
            rows.append([image, *humans[human], *objects[obj], int(hoi.id) - 1])
        else:
            there = f"there are {len(humans)} and {len(objects)}"
            dropped.append(f"{where}: interaction {int(hoi.id)} pairs boxes {human + 1} and {obj + 1}, {there}")
    return rows


@dataclass(frozen=True)
class ImageLabels:
    """HICO's image-level labels of one half."""

    file_names: tuple[str, ...]
    positive: np.ndarray  # bool [n, 600]: known to be in the image; False also where not asked, unclear or denied


def read_image_labels(path: str | Path, half: Half = "test2015") -> ImageLabels:
    """Read `anno.mat`, by which the known-object setting chooses its images. Raises UserError, as `load_mat`."""
    path = Path(path)
    split = half.removesuffix("2015")
    content = load_mat(path, [f"list_{split}", f"anno_{split}"], plain=True)
    names = tuple(str(name) for name in np.atleast_1d(content[f"list_{split}"]))
    labels = np.atleast_2d(content[f"anno_{split}"])
    if labels.shape != (NUM_INTERACTIONS, len(names)):
        where, expected = f"{path}, anno_{split}", (NUM_INTERACTIONS, len(names))
        raise UserError("the image-level labels have another shape", where=where, expected=expected, got=labels.shape)
    return ImageLabels(names, labels.T == 1)
