"""Result files of other repositories to the records of docs/predictions.md. Facts from their public code; none of it.

- `gen-vlkt` (YueLiao/gen-vlkt, `--json_file`): a JSON text of Python's `str({'preds': ..., 'gts': ...})`; per image
  `filename`, `predictions` [{bbox}], `hoi_prediction` [{subject_id, object_id, category_id = interaction, score}].
- `qpic` (hitachi-rd-cv/qpic's records, as CDN names the images): a list of the same, boxes with `category_id` = COCO
  class from 0, and pairs with `category_id` = verb from 0.
- `pvic` (fredzzhang/upt and pvic, `--cache` on HICO-DET): a folder of detections_01.mat to detections_80.mat in HICO's
  alphabetical order of objects, `all_boxes` [interactions of the object, images] of rows (human, object, score).
- `vsrl` (vsrl_eval's pickle, as QPIC, GEN-VLKT, UPT and PViC write it for V-COCO): `image_id`, `person_box`,
  `{action}_agent` and `{action}_{role}` [x1, y1, x2, y2, score].

Boxes stay as they are: those repositories, too, hand them to the official evaluator so.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.datasets.vcoco import KEYS
from hoi.errors import UserError
from hoi.json_lines import Records, read_bytes
from hoi.labels.hicodet_mat import load_mat

_NAN = re.compile(r"\bnan\b")
_NUMPY_SCALAR = re.compile(r"\bnp\.\w+\(([^()]*)\)")


def read_gen_vlkt(path: Path) -> Records:
    """GEN-VLKT's file to HICO-DET records.

    Raises:
        UserError: it is none.
    """
    return _of_images(_plain(path), path, lambda boxes, pair: int(pair["category_id"]))


def read_qpic(path: Path) -> Records:
    """A JSON list of QPIC's records to HICO-DET records; verbs that HICO has not with the object are counted alone.

    Raises:
        UserError: it is none, or an image has no name: QPIC itself keeps none, CDN does.
    """
    vocabulary = hicodet_vocabulary()
    row_of = {pair: k for k, pair in enumerate(vocabulary.interactions)}

    def interaction(boxes: list[Any], pair: dict[str, Any]) -> int | None:
        thing, verb = boxes[pair["object_id"]]["category_id"], pair["category_id"]
        if not (0 <= thing <= len(COCO_OBJECTS) and 0 <= verb < len(vocabulary.verbs)):
            raise ValueError(f"object {thing}, verb {verb}")
        named = (vocabulary.verbs[verb], COCO_OBJECTS[thing] if thing < len(COCO_OBJECTS) else "")
        return row_of.get(named)

    return _of_images(_plain(path), path, interaction)


def _plain(path: Path) -> list[Any]:
    try:
        content = json.loads(read_bytes(path, "predictions"))
        if isinstance(content, str):
            # What Python printed, nearly JSON; never evaluated.
            content = json.loads(_NAN.sub("NaN", _NUMPY_SCALAR.sub(r"\1", content)).replace("'", '"'))
    except ValueError as error:
        raise UserError("this result file is no JSON", where=path, got=error) from None
    if isinstance(content, dict):
        content = content.get("preds")
    if not isinstance(content, list):
        raise UserError("this result file holds no list of images", where=path, expected="preds, or a list")
    return content


def _of_images(
    images: list[Any], path: Path, interaction: Callable[[list[Any], dict[str, Any]], int | None]
) -> Records:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    left_out = 0
    for number, image in enumerate(images, start=1):
        try:
            name, boxes = image["filename"], image["predictions"]
            for pair in image["hoi_prediction"]:
                human, thing = int(pair["subject_id"]), int(pair["object_id"])
                if not (0 <= human < len(boxes) and 0 <= thing < len(boxes)):
                    raise ValueError(f"a pair of boxes {human} and {thing}, there are {len(boxes)}")
                k = interaction(boxes, pair)
                if k is None:
                    left_out += 1
                    continue
                rows.append(_row(name, boxes[human]["bbox"], boxes[thing]["bbox"], k, pair["score"]))
                numbers.append(number)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "a result is not understood",
                where=f"{path}, image {number}",
                expected="filename, predictions [{bbox}], hoi_prediction [{subject_id, object_id, category_id, score}]",
                got=f"no {error}" if isinstance(error, KeyError) else error,
            ) from None
    return Records(path, rows, numbers, "image", left_out)


def _row(name: str, human: Any, thing: Any, interaction: int, score: float) -> dict[str, Any]:
    return {
        "file_name": name,
        "human_xyxy": human,
        "object_xyxy": thing,
        "interaction": interaction,
        "score": score,
    }


def read_pvic(folder: Path, file_names: Sequence[str]) -> Records:
    """UPT's or PViC's 80 MATLAB files to HICO-DET records.

    Args:
        folder: Of detections_01.mat to detections_80.mat.
        file_names: Images in the order of the annotation file, which is the order of the columns.

    Raises:
        UserError: a file is missing, damaged, or its shape is another.
    """
    vocabulary = hicodet_vocabulary()
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for thing in range(len(vocabulary.objects)):
        path = folder / f"detections_{thing + 1:02d}.mat"
        interactions = np.flatnonzero(vocabulary.object_of == thing)
        cells = load_mat(path, ["all_boxes"])["all_boxes"]
        if cells.shape != (len(interactions), len(file_names)):
            expected = (
                f"all_boxes of {len(interactions)} x {len(file_names)} (interactions of {vocabulary.objects[thing]})"
            )
            raise UserError("this file has another shape", where=path, expected=expected, got=cells.shape)
        for k, image in zip(*np.nonzero(np.vectorize(np.size, otypes=[int])(cells)), strict=True):
            for values in cells[k, image].tolist():
                if len(values) != 9:
                    raise UserError("a row has not 9 numbers", where=f"{path}, image {image + 1}", got=len(values))
                rows.append(_row(file_names[image], values[:4], values[4:8], int(interactions[k]), values[8]))
                numbers.append(int(image) + 1)
    return Records(folder, rows, numbers, "image")


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists and dicts only: nothing that a file names is ever imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "CacheTemplate":  # UPT's and PViC's dict
            return dict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_vsrl(path: Path) -> Records:
    """vsrl_eval's pickled rows to V-COCO records; a key that a row lacks scores 0.

    Raises:
        UserError: the file holds anything but plain numbers, texts, lists and dicts, or a row has two objects, or one
            for some of its roles and none for others.
    """
    try:
        with open(path, "rb") as file:
            given = _PlainUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError("there is no such file of predictions", where=path) from None
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        expected = "a pickled list of plain dicts, as vsrl_eval reads"
        raise UserError("this pickle is refused", where=path, expected=expected, got=error) from None
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise UserError("this pickle holds no list of dicts", where=path)
    rows = [_vsrl_row(row, f"{path}, row {number}") for number, row in enumerate(given, start=1)]
    return Records(path, rows, list(range(1, len(rows) + 1)), "row")


def _vsrl_row(given: dict[str, Any], where: str) -> dict[str, Any]:
    scores: dict[str, float] = {}
    scored: dict[tuple[float, ...] | None, None] = {}
    others: dict[tuple[float, ...] | None, None] = {}
    try:
        for key in KEYS:
            scores[key] = 0.0
            if key.endswith("_agent"):
                scores[key] = given.get(key, 0.0)
            elif key in given:
                *box, scores[key] = given[key]
                place = tuple(box) if np.isfinite(box).all() and any(box) else None
                (scored if scores[key] > 0 else others)[place] = None
        human = given["person_box"]
        image_id = given["image_id"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError("a row is not understood", where=where, expected="vsrl_eval's row", got=error) from None
    if len(scored) > 1:
        got = "an object for some roles and none for others" if None in scored else f"{len(scored)} objects"
        raise UserError("a row has several objects", where=where, expected="one object, or none, a row", got=got)
    # A box counts without a score, too: an empty one is right where the truth has none, by scenario 1.
    box_o = next(iter(scored or {place: None for place in others if place is not None}), None)
    return {
        "image_id": image_id,
        "human_xyxy": human,
        "object_xyxy": None if box_o is None else list(box_o),
        "scores": scores,
    }
