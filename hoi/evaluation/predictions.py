"""Files of predictions: our own JSON lines, and the result files of other repositories; docs/predictions.md.

The formats of others are known from their public code, of which none is used: YueLiao/gen-vlkt (`--json_file`),
hitachi-rd-cv/qpic, fredzzhang/upt and pvic (`--cache`), and vsrl_eval. Boxes stay as they are, as those repositories
hand them to the official evaluator.

Shapes: R predictions, I images, K interactions.
"""

from __future__ import annotations

import ast
import gzip
import json
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.datasets.names import join_names
from hoi.datasets.vcoco import KEYS
from hoi.errors import UserError, nearest
from hoi.evaluation.vcoco import VcocoPredictions
from hoi.files import parse_json, read_bytes, read_text
from hoi.json_lines import Records, read_json_lines
from hoi.matlab import load_mats
from hoi.records import Triplets

MAX_BEYOND = 1.0
"""Detectors regress beyond the border, and evaluators score such boxes as they are. A box that lies wholly outside, or
reaches further beyond a border than the image is wide or high, is more likely one of another image or scale."""
TRIPLET_KEYS = ("file_name", "human_xyxy", "object_xyxy", "interaction", "score")
_PRINTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\bnp\.\w+\(([^()'"]*)\)|[A-Za-z_][\w.]*\(?""", re.DOTALL)
"""What differs between printed Python and JSON: texts, numpy's scalars, other names."""
_JSON_OF = {"nan": "NaN", "NaN": "NaN", "True": "true", "False": "false", "None": "null"}
_JSON_OF |= {name: name for name in ("true", "false", "null", "e", "E")}  # e of 1e-05


@dataclass(frozen=True)
class PredictionReader:
    """Turns records into arrays, and checks them against the images that they may name."""

    names: Sequence[str] | Sequence[int]  # I names or ids; their order decides between equal scores
    size_hw: np.ndarray | None  # int [I, 2], pixels; None where the annotations do not say
    inclusive: bool = True  # whether corners are pixels that belong to the box; else they are pixel edges
    clip: bool = False  # whether boxes are cut to their image; else one that lies outside is refused
    notices: list[str] = field(default_factory=list)  # what was odd about the names

    def image_rows(self, records: Records, key: str) -> np.ndarray:
        """Return the row of each record's image, int64 [R]. Raises UserError: a record names another image."""
        kind = int if key == "image_id" else str
        values = records.of_type(key, (kind,), "a number" if kind is int else "text")
        if kind is str:
            joined = join_names(values, self.names)  # type: ignore[arg-type]
            row_of: dict[Any, int] = joined.rows
            self.notices.extend(joined.notices("images of the predictions"))
        else:
            row_of = {name: row for row, name in enumerate(self.names)}
        rows = [row_of.get(value, -1) for value in values]
        if -1 in rows:
            wrong = rows.index(-1)
            known = nearest(str(values[wrong]), map(str, self.names))
            records.refuse_row(wrong, key, "is no image of the annotations", known)
        return np.array(rows, np.int64)

    def boxes(self, records: Records, key: str, image: np.ndarray) -> np.ndarray:
        """Return pixel-edge boxes, float64 [R, 4], of images (rows) [R]. Raises UserError: one is wrong or outside."""
        given = records.boxes(key)
        if key == "human_xyxy":
            records.refuse_other_frame(key, given)
        edges = given + np.array([0, 0, 1, 1]) * self.inclusive
        if self.size_hw is None:
            return edges
        size_wh = self.size_hw[image][:, ::-1]
        if self.clip:
            return np.clip(edges, 0, np.tile(size_wh, 2))
        records.refuse_other_frame(key, edges, size_wh)
        untouched = (edges[:, 2:] <= 0) | (edges[:, :2] >= size_wh)
        far = (edges[:, :2] < -MAX_BEYOND * size_wh) | (edges[:, 2:] > (1 + MAX_BEYOND) * size_wh)
        outside = np.flatnonzero((untouched | far).any(axis=1))
        if len(outside):
            row = int(outside[0])
            name, (width, height) = self.names[image[row]], size_wh[row]
            expected = f"a box in the {width} x {height} pixels of {name} (--clip cuts boxes to their image)"
            records.refuse_row(row, key, "lies outside the image", expected)
        return edges

    def num_beyond(self, predictions: Triplets | VcocoPredictions) -> int:
        """Count the boxes that reach over the border of their image by more than a pixel."""
        if self.size_hw is None:
            return 0
        size_wh = self.size_hw[predictions.image][:, ::-1]
        both = (predictions.boxes_h, predictions.boxes_o)
        return sum(int(((b[:, :2] < -1) | (b[:, 2:] > size_wh + 1)).any(axis=1).sum()) for b in both)

    def triplets(self, records: Records, num_interactions: int) -> Triplets:
        """Read `{file_name, human_xyxy, object_xyxy, interaction, score}`, in the file's order. Raises UserError."""
        image = self.image_rows(records, "file_name")
        expected = f"a whole number of 0..{num_interactions - 1}"
        given = records.of_type("interaction", (int,), expected)
        if given and not 0 <= min(given) <= max(given) < num_interactions:
            wrong = next(row for row, k in enumerate(given) if not 0 <= k < num_interactions)
            records.refuse_row(wrong, "interaction", "is out of range", expected)
        boxes_h, boxes_o = (self.boxes(records, key, image) for key in ("human_xyxy", "object_xyxy"))
        return Triplets(image, boxes_h, boxes_o, np.array(given, np.int64), records.numbers("score"))

    def vcoco(self, records: Records) -> VcocoPredictions:
        """Read `{image_id, human_xyxy, object_xyxy or null, scores {29 keys}}`. Raises UserError."""
        image = self.image_rows(records, "image_id")
        has_object = np.array([box is not None for box in records.column("object_xyxy")], bool)
        with_object = records.select(np.flatnonzero(has_object).tolist())
        boxes_o = np.zeros((len(records), 4))
        boxes_o[has_object] = self.boxes(with_object, "object_xyxy", image[has_object])
        boxes_h, scores = self.boxes(records, "human_xyxy", image), _vcoco_scores(records)
        return VcocoPredictions(image, boxes_h, boxes_o, has_object, scores)


def _vcoco_scores(records: Records) -> np.ndarray:
    expected = f"the 29 keys {KEYS[0]}, {KEYS[1]}, ..., {KEYS[-1]}"
    scores = records.of_type("scores", (dict,), expected)
    for row, given in enumerate(scores):
        if given.keys() != set(KEYS):
            lacking = [key for key in KEYS if key not in given]
            got = f"no {lacking[0]}" if lacking else f"also {next(iter(given.keys() - set(KEYS)))}"
            raise UserError("the scores have other keys", where=records.where(row), expected=expected, got=got)
    columns = Records(records.path, scores, records.lines, records.word)
    return np.stack([columns.numbers(key) for key in KEYS], axis=1)


def prediction_lines(triplets: Triplets, file_names: Sequence[str], *, inclusive: bool) -> bytes:
    """Return gzipped JSON lines by image, then in the triplets' own order; equal triplets give equal bytes.

    With `inclusive`, corners are pixels that belong to the box, as HICO-DET's predictions have them.
    """
    order = np.argsort(triplets.image, kind="stable")
    boxes = (
        b[order].astype(np.float64) - np.array([0, 0, 1, 1]) * inclusive for b in (triplets.boxes_h, triplets.boxes_o)
    )
    columns = (triplets.image[order], *boxes, triplets.interaction[order], triplets.score[order])
    rows = (
        dict(zip(TRIPLET_KEYS, (file_names[image], *values), strict=True))
        for image, *values in zip(*(column.tolist() for column in columns), strict=True)
    )
    return gzip.compress("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(), mtime=0)


def _read_qpic(path: Path) -> Records:
    # Verbs that HICO does not have with the object are only counted. QPIC itself keeps no image names, CDN does.
    vocabulary = hicodet_vocabulary()
    row_of = {pair: k for k, pair in enumerate(vocabulary.interactions)}

    def interaction(boxes: list[Any], pair: dict[str, Any]) -> int | None:
        obj, verb = boxes[pair["object_id"]]["category_id"], pair["category_id"]
        if not (0 <= obj <= len(COCO_OBJECTS) and 0 <= verb < len(vocabulary.verbs)):
            raise ValueError(f"object {obj}, verb {verb}")
        return row_of.get((vocabulary.verbs[verb], COCO_OBJECTS[obj] if obj < len(COCO_OBJECTS) else ""))

    return _of_images(path, interaction)


def _printed(text: str, path: Path, error: ValueError | None = None) -> Any:
    """Return what Python printed, as data: it is never evaluated, and only its texts are read as Python's literals."""

    def replaced(match: re.Match[str]) -> str:
        token, scalar = match.group(0), match.group(1)
        if scalar is not None:
            return scalar
        if token[0] in "'\"":
            return json.dumps(token[1:-1] if "\\" not in token else ast.literal_eval(token))
        if token in _JSON_OF:
            return _JSON_OF[token]
        what = f"the printed text holds {token}...), which may have been cut" if token.endswith("(") else None
        line = text.count("\n", 0, match.start()) + 1
        where = f"{path}, line {line} of the text, character {match.start() - text.rfind(chr(10), 0, match.start())}"
        fix = "print lists of numbers: array.tolist(), float(score)"
        raise UserError(what or f"the printed text holds {token}", where=where, expected="plain numbers", fix=fix)

    try:
        return parse_json(_PRINTED.sub(replaced, text).encode(errors="surrogatepass"))
    except (ValueError, SyntaxError, MemoryError) as wrong:
        what = "this result file is neither JSON nor printed Python"
        raise UserError(what, where=path, got=str(error or wrong)[:300]) from None


def _of_images(path: Path, interaction: Callable[[list[Any], dict[str, Any]], int | None]) -> Records:
    try:
        images = parse_json(read_bytes(path, "predictions"))
    except ValueError as error:
        images = _printed(read_text(path, "predictions"), path, error)
    if isinstance(images, str):
        images = _printed(images, path)
    if isinstance(images, dict):
        images = images.get("preds")
    if not isinstance(images, list):
        raise UserError("this result file holds no list of images", where=path, expected="preds, or a list")
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    num_left_out = 0
    for number, image in enumerate(images, start=1):
        try:
            name, boxes = image["filename"], image["predictions"]
            for pair in image["hoi_prediction"]:
                human, obj = int(pair["subject_id"]), int(pair["object_id"])
                if not (0 <= human < len(boxes) and 0 <= obj < len(boxes)):
                    raise ValueError(f"a pair of boxes {human} and {obj}, there are {len(boxes)}")
                k = interaction(boxes, pair)
                if k is None:
                    num_left_out += 1
                    continue
                values = (name, boxes[human]["bbox"], boxes[obj]["bbox"], k, pair["score"])
                rows.append(dict(zip(TRIPLET_KEYS, values, strict=True)))
                numbers.append(number)
        except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
            raise UserError(
                "a result is not understood",
                where=f"{path}, image {number}",
                expected="filename, predictions [{bbox}], hoi_prediction [{subject_id, object_id, category_id, score}]",
                got=f"no {error}" if isinstance(error, KeyError) else error,
            ) from None
    return Records(path, rows, numbers, "image", num_left_out)


def _read_pvic(folder: Path, names: Sequence[str]) -> Records:
    # The columns are the images in the order of the annotation file.
    vocabulary = hicodet_vocabulary()
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    paths = [folder / f"detections_{obj + 1:02d}.mat" for obj in range(len(vocabulary.objects))]
    for obj, (path, content) in enumerate(zip(paths, load_mats(paths, ["all_boxes"]), strict=True)):
        interactions = np.flatnonzero(vocabulary.object_of == obj)
        cells = content["all_boxes"]
        if cells.shape != (len(interactions), len(names)) or cells.dtype != object:
            shape = f"{len(interactions)} x {len(names)} (interactions of {vocabulary.objects[obj]})"
            raise UserError("a file has another shape", where=path, expected=f"all_boxes of {shape}", got=cells.shape)
        for k, image in zip(*np.nonzero(np.vectorize(np.size, otypes=[int])(cells)), strict=True):
            cell = np.asarray(cells[k, image])
            if cell.ndim != 2 or cell.shape[1] != 9 or cell.dtype == object:
                raise UserError("a row has not 9 numbers", where=f"{path}, image {image + 1}", got=cell.shape)
            for values in cell.tolist():
                row = (names[image], values[:4], values[4:8], int(interactions[k]), values[8])
                rows.append(dict(zip(TRIPLET_KEYS, row, strict=True)))
                numbers.append(int(image) + 1)
    return Records(folder, rows, numbers, "image")


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists and dicts only: nothing that a file names is ever imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "CacheTemplate":  # UPT's and PViC's dict
            return dict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


_NUMBER = rb"G.{8}|K.|M..|J.{4}|N|\x88|\x89|\x95.{8}|[FIL][^\n]{1,40}\n"
_PLAIN = re.compile(
    rb"(?:" + _NUMBER + rb"|h.|j.{4}|q.|[\]}\)laesudb0\x94R]|\((?:" + _NUMBER + rb")*t|\(){1,500}", re.DOTALL
)
"""Steps of a pickle that build numbers, lists, dicts and tuples of numbers, which alone may be keys of a dict."""
_WITH_TEXT = re.compile(rb"\x80.|\x93|c[^\n]{1,99}\n[^\n]{1,99}\n|[SVgp][^\n]{0,9999}\n", re.DOTALL)
_LENGTHS = {b"U": 1, b"\x8c": 1, b"C": 1, b"\x8a": 1, b"X": 4, b"T": 4, b"B": 4, b"\x8d": 8, b"\x8e": 8}
"""Step of a pickle with a text or a number → bytes of its length."""
_WRONG = (ValueError, TypeError, AttributeError, RecursionError)


def _check_pickle(data: bytes) -> None:
    """Raise a ValueError if loading could take more than a few times the memory of the data, or a deep stack."""
    at = 0
    while at < len(data):
        step = data[at : at + 1]
        if step == b".":
            return
        if step in _LENGTHS:
            start = at + 1 + _LENGTHS[step]
            size = int.from_bytes(data[at + 1 : start], "little")
            if size > len(data) - start:
                raise ValueError(f"byte {at}: a length of {size} bytes is beyond the end")
            at = start + size
        elif step in (b"r", b"p"):
            text = data[at + 1 : data.find(b"\n", at)]
            place = int.from_bytes(data[at + 1 : at + 5], "little") if step == b"r" else int(text)
            if not 0 <= place <= len(data):
                raise ValueError(f"byte {at}: a memo of {place} places is larger than the file")
            at += 5 if step == b"r" else len(text) + 2
        else:
            match = _PLAIN.match(data, at) or _WITH_TEXT.match(data, at)
            if match is None:
                raise ValueError(f"byte {at}: a step {step!r}, which plain data does not need")
            at = match.end()


def read_vsrl(path: Path) -> Records:
    """Read vsrl_eval's pickled rows; a key that a row lacks scores 0. Raises UserError: more than plain data."""
    expected = "a pickled list of plain dicts, as vsrl_eval reads"
    data = read_bytes(path, expected)
    try:
        _check_pickle(data)
        given = _PlainUnpickler(BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, MemoryError, ArithmeticError, LookupError, *_WRONG) as error:
        raise UserError("this pickle is refused", where=path, expected=expected, got=str(error)[:200]) from None
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise UserError("this pickle holds no list of dicts", where=path)
    rows = [_vsrl_row(row, f"{path}, row {number}") for number, row in enumerate(given, start=1)]
    return Records(path, rows, list(range(1, len(rows) + 1)), "row")


def _vsrl_row(given: dict[str, Any], where: str) -> dict[str, Any]:
    scores: dict[str, float] = {}
    scored: dict[tuple[float, ...] | None, None] = {}
    others: dict[tuple[float, ...] | None, None] = {}
    try:
        for value in (given.get(key, 0.0) for key in (*KEYS, "person_box")):
            if {*map(type, value if isinstance(value, list | tuple) else [value])} - {int, float}:
                raise ValueError("a value is neither a number nor a list of numbers")
        for key in KEYS:
            scores[key] = 0.0
            if key.endswith("_agent"):
                scores[key] = given.get(key, 0.0)
            elif key in given:
                *box, scores[key] = given[key]
                place = tuple(box) if np.isfinite(box).all() and any(box) else None
                (scored if scores[key] > 0 else others)[place] = None
        human, image_id = given["person_box"], given["image_id"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError("a row is not understood", where=where, expected="vsrl_eval's row", got=error) from None
    if len(scored) > 1:
        got = "an object for some roles and none for others" if None in scored else f"{len(scored)} objects"
        raise UserError("a row has several objects", where=where, expected="one object, or none, a row", got=got)
    # A box counts without a score, too: an empty one is right where the truth has none, by scenario 1.
    box_o = next(iter(scored or {place: None for place in others if place is not None}), None)
    object_xyxy = None if box_o is None else list(box_o)
    return {"image_id": image_id, "human_xyxy": human, "object_xyxy": object_xyxy, "scores": scores}


LINES: dict[str, Callable[[Path, Sequence[Any]], Records]] = {"lines": lambda path, names: read_json_lines(path)}
FORMATS = {
    "hicodet": {
        **LINES,
        "gen-vlkt": lambda path, names: _of_images(path, lambda boxes, pair: int(pair["category_id"])),
        "qpic": lambda path, names: _read_qpic(path),
        "pvic": _read_pvic,
    },
    "vcoco": {**LINES, "vsrl": lambda path, names: read_vsrl(path)},
    "world": LINES,
    "folder": LINES,
}
"""Dataset → format → reader of a file, given the names of the images in the order of the annotations."""
