"""HICO-DET's annotations as JSON, the two forms in use.

- `instances_{train,test}2015.json` (fredzzhang/hicodet): `filenames`, `size` [w, h], and per image `annotation`
  {boxes_h, boxes_o, hoi}; 1-based inclusive corners.
- `trainval_hico.json`, `test_hico.json` (PPDM; QPIC, CDN, GEN-VLKT and HOICLIP read the same files): per image
  {file_name, annotations, hoi_annotation}. A box is {bbox, category_id}, a pair {subject_id, object_id, category_id,
  hoi_category_id}: rows of boxes from 0, COCO's object ids, verbs and interactions from 1. Corners are inclusive,
  0-based in the published training file and 1-based in the published test file.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.errors import UserError
from hoi.prompts import spaced


@dataclass
class Parsed:
    """One file, as written.

    Args:
        names: n file names.
        size_hw: int32 [n, 2], or None.
        rows: float64 [R, 10]: image row, human x1 y1 x2 y2, object x1 y1 x2 y2 (inclusive corners), interaction from 0.
        first_pixel: What number the file gives to the first pixel, 0 or 1.
        dropped: Entries that name a box that is not there.
    """

    names: list[str]
    size_hw: np.ndarray | None
    rows: np.ndarray
    first_pixel: int
    dropped: list[str] = field(default_factory=list)


def wrong_record(where: str, expected: str, got: object) -> UserError:
    """What a reader says of a record that it does not understand."""
    if isinstance(got, KeyError):
        got = f"no {got}"
    return UserError("an annotation record is not understood", where=where, expected=expected, got=got)


OBJECT_OF_ID = dict(zip(COCO_CATEGORY_IDS, COCO_OBJECTS, strict=True))
FORMATS = "fredzzhang's instances JSON, PPDM's JSON, or anno_bbox.mat"
GZIP_MAGIC = b"\x1f\x8b"


def read_json_boxes(path: Path) -> Parsed:
    """A JSON file, gzipped or not, of either form.

    Raises:
        UserError: no JSON, another form, another numbering of the classes, or a wrong record, named.
    """
    try:
        raw = path.read_bytes()
        plain = json.loads(gzip.decompress(raw) if raw[:2] == GZIP_MAGIC else raw)
    except (UnicodeDecodeError, json.JSONDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError("this is no HICO-DET annotation file", where=path, expected=FORMATS, got=error) from None
    if isinstance(plain, dict) and {"annotation", "filenames"} <= plain.keys():
        return _read_instances(plain, path)
    first = plain[0] if isinstance(plain, list) and plain else None
    if isinstance(first, dict) and {"file_name", "annotations", "hoi_annotation"} <= first.keys():
        return _read_ppdm(plain, path)
    keys = ", ".join(map(str, list(plain)[:8])) if isinstance(plain, dict) else type(plain).__name__
    raise UserError("this is no HICO-DET annotation file", where=path, expected=FORMATS, got=keys)


def _read_instances(plain: dict[str, Any], path: Path) -> Parsed:
    names, sizes = plain["filenames"], plain.get("size")
    _check_order_of_classes(plain, path)
    if not isinstance(plain["annotation"], list) or not isinstance(names, list):
        raise UserError("filenames and annotation are to be lists", where=path)
    if len(plain["annotation"]) != len(names) or (sizes is not None and len(sizes) != len(names)):
        raise UserError(
            "the lists of this file differ in length",
            where=path,
            expected=f"{len(names)} of annotation and size, as of filenames",
            got=f"{len(plain['annotation'])} and {'no size' if sizes is None else len(sizes)}",
        )
    rows: list[list[float]] = []
    for row, record in enumerate(plain["annotation"]):
        where = f"{path}, annotation {row} ({names[row]})"
        try:
            found = list(zip(record["boxes_h"], record["boxes_o"], record["hoi"], strict=True))
            rows += [[row, *map(float, human), *map(float, thing), index(hoi)] for human, thing, hoi in found]
        except (KeyError, TypeError, ValueError) as error:
            raise wrong_record(where, "boxes_h, boxes_o and hoi of one length", error) from None
        if rows and len(rows[-1]) != 10:
            raise wrong_record(where, "boxes of four numbers", "another number")
    size_hw = None if sizes is None else _sizes(sizes, path)
    return Parsed(names, size_hw, _table(rows, path), first_pixel=1)


def _sizes(sizes: Any, path: Path) -> np.ndarray:
    try:
        return np.array(sizes, np.int32).reshape(len(sizes), 2)[:, ::-1].copy()
    except (TypeError, ValueError):
        raise UserError("a size is not understood", where=path, expected="[width, height] of each image") from None


def _check_order_of_classes(plain: dict[str, Any], path: Path) -> None:
    """Nothing, where the file numbers the interactions as HICO does, or does not say how."""
    if not {"correspondence", "objects", "verbs"} <= plain.keys():
        return
    try:
        told = {int(k): (plain["verbs"][verb], plain["objects"][thing]) for k, thing, verb in plain["correspondence"]}
    except (TypeError, ValueError, IndexError) as error:
        raise wrong_record(f"{path}, correspondence", "[interaction, object, verb] of 600", error) from None
    official = hicodet_vocabulary().interactions
    for k, pair in told.items():
        if not 0 <= k < len(official) or [spaced(name) for name in pair] != [spaced(name) for name in official[k]]:
            raise UserError(
                "this file numbers the interactions in another order",
                where=f"{path}, correspondence {k}",
                expected=" ".join(official[k]) if 0 <= k < len(official) else "0 to 599",
                got=" ".join(pair),
            )


def _read_ppdm(plain: list[Any], path: Path) -> Parsed:
    names: list[str] = []
    rows: list[list[float]] = []
    dropped: list[str] = []
    for row, record in enumerate(plain):
        where = f"{path}, entry {row}"
        try:
            names.append(record["file_name"])
            where = f"{where} ({record['file_name']})"
            boxes = [[float(edge) for edge in box["bbox"]] for box in record["annotations"]]
            objects = [_number(box["category_id"]) for box in record["annotations"]]
            for pair in record["hoi_annotation"]:
                human, thing = _number(pair["subject_id"]), _number(pair["object_id"])
                if not (0 <= human < len(boxes) and 0 <= thing < len(boxes)):
                    dropped.append(f"{where}: a pair of boxes {human} and {thing}, there are {len(boxes)}")
                    continue
                rows.append([row, *boxes[human], *boxes[thing], _interaction(pair, objects[thing], where)])
        except (KeyError, TypeError, ValueError) as error:
            expected = (
                "file_name, annotations [{bbox, category_id}], hoi_annotation [{subject_id, object_id, category_id}]"
            )
            raise wrong_record(where, expected, error) from None
        if any(len(box) != 4 for box in boxes):
            raise wrong_record(where, "boxes of four numbers", "another number")
    table = _table(rows, path)
    return Parsed(names, None, table, _first_pixel(table, names), dropped)


def _number(value: Any) -> int:
    # Some of these files hold numbers as text with a line feed.
    return int(value)


def _interaction(pair: dict[str, Any], coco_id: int, where: str) -> int:
    """The interaction of a pair, by its own number where it has one; its verb and object have to agree with it."""
    vocabulary = hicodet_vocabulary()
    verb = _number(pair["category_id"]) - 1
    if coco_id not in OBJECT_OF_ID or not 0 <= verb < len(vocabulary.verbs):
        raise wrong_record(where, "a COCO object id and a verb of 1 to 117", f"object {coco_id}, verb {verb + 1}")
    named = (vocabulary.verbs[verb], OBJECT_OF_ID[coco_id])
    interaction = _number(pair["hoi_category_id"]) - 1 if "hoi_category_id" in pair else _rows_of_pairs().get(named, -1)
    if not 0 <= interaction < len(vocabulary) or vocabulary.interactions[interaction] != named:
        got = f"{' '.join(named)} as number {interaction + 1}"
        raise wrong_record(where, "a verb and an object that make one of HICO-DET's 600 interactions", got)
    return interaction


@lru_cache(maxsize=1)
def _rows_of_pairs() -> dict[tuple[str, str], int]:
    return {pair: k for k, pair in enumerate(hicodet_vocabulary().interactions)}


def _first_pixel(table: np.ndarray, names: list[str]) -> int:
    """0 or 1: the number of the first pixel in a PPDM file.

    A coordinate of 0 proves 0. Without one it is as in the published files: 0 for training images, 1 for test images.
    """
    corners = table[:, [1, 2, 5, 6]]
    if corners.size and corners.min() < 1:
        return 0
    return 0 if any("train2015" in name for name in names) else 1


def _table(rows: list[list[float]], path: Path) -> np.ndarray:
    try:
        return np.array(rows, np.float64).reshape(-1, 10)
    except ValueError:
        raise UserError("a box is not four numbers", where=path, expected="[x1, y1, x2, y2]") from None
