"""Read JSON files, and JSON lines into checked columns, gzipped or not; a wrong value is named by its line.

Columns are checked as wholes, because 270,000 records are many; only a column that fails is searched for the culprit.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from hoi.boxes import MANY, find_other_frame
from hoi.errors import UserError
from hoi.files import MAX_BYTES, open_unpacked, parse_json, read_bytes

MAX_LINES, MAX_LINE_BYTES, MAX_RATIO = 20_000_000, 256 << 20, 200
"""Of a file of JSON lines, blank ones included; the last is what gzip may gain, from 64 MiB on."""


def read_json_file(path: Path, what: str, expected: str | None = None) -> Any:
    """Return the content of a JSON file, gzipped or not. Raises UserError: no such file, a damaged gzip, or no JSON."""
    data = read_bytes(path, f"a file of {what}")
    try:
        return parse_json(data)
    except ValueError as error:
        raise UserError("this file is no JSON", where=path, expected=expected, got=error) from None


def shown(value: Any) -> str:
    """Return a value of a file for a message: as JSON, so that text has quotation marks and a number has none."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = f"a value of type {type(value).__name__}"
    return text if len(text) < 100 else text[:97] + "..."


def refuse_repeats(values: Iterable[Any], what: str, path: object, entries: str) -> None:
    """Raise a UserError if a value that tells entries of a file apart is there twice; both entries are named."""
    first: dict[Any, int] = {}
    for position, value in enumerate(values):
        if first.setdefault(value, position) != position:
            where = f"{path}, {entries} {first[value]} and {position}"
            fix = "keep one of the two, or give the other one a value of its own"
            raise UserError(f"{what} is there twice", where=where, expected="once", got=shown(value), fix=fix)


@dataclass(frozen=True)
class Records:
    """The records of one file, in its order."""

    path: Path
    rows: list[dict[str, Any]]
    lines: list[int]  # the number of each record, from 1
    word: str = "line"  # what the numbers count
    num_left_out: int = 0  # entries of the file that no record can express
    noun: str = "a prediction"

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """Return the place of a record, for messages."""
        return f"{self.path}, {self.word} {self.lines[row]}"

    def select(self, rows: Iterable[int]) -> Records:
        """Return some of the records, in the given order."""
        rows = list(rows)
        return replace(self, rows=[self.rows[row] for row in rows], lines=[self.lines[row] for row in rows])

    def column(self, key: str) -> list[Any]:
        """Return the values of a key, or raise a UserError if a record lacks it."""
        try:
            return [row[key] for row in self.rows]
        except KeyError:
            wrong = next(i for i, row in enumerate(self.rows) if key not in row)
            got = ", ".join(map(str, self.rows[wrong])) or "no key at all"
            raise UserError(f"{self.noun} lacks '{key}'", where=self.where(wrong), got=got) from None

    def of_type(self, key: str, kinds: Collection[type], expected: str) -> list[Any]:
        """Return the values of a key, or raise a UserError if one is not exactly of these types; a bool is no int."""
        values = self.column(key)
        if not set(map(type, values)) <= set(kinds):
            self._refuse(key, lambda value: type(value) not in kinds, "is mistyped", expected)
        return values

    def texts(self, key: str) -> list[str]:
        """Return the values of a key, or raise a UserError if one is no text."""
        return self.of_type(key, (str,), "text")

    def numbers(self, key: str) -> np.ndarray:
        """Return the values of a key as float64 [N], or raise a UserError if one is no finite number."""
        expected = "a finite number"
        numbers = _as_floats(self.of_type(key, (int, float), expected))
        if not np.isfinite(numbers).all():
            self._refuse(key, lambda value: not _is_finite(value), "is not finite", expected)
        return numbers

    def boxes(self, key: str, *, allow_empty: bool = True) -> np.ndarray:
        """Return the values of a key as boxes, float64 [N, 4].

        Raises UserError: one is not four finite numbers, is reversed, or is empty where that is not allowed.
        """
        expected = "[x1, y1, x2, y2], four finite numbers"
        values = self.of_type(key, (list,), expected)
        flat = list(chain.from_iterable(values))
        if set(map(len, values)) - {4} or not set(map(type, flat)) <= {int, float}:
            self._refuse(key, lambda box: len(box) != 4 or not {*map(type, box)} <= {int, float}, "is no box", expected)
        numbers = _as_floats(flat)
        if not np.isfinite(numbers).all():
            self._refuse(key, lambda box: not all(map(_is_finite, box)), "is not finite", expected)
        boxes = numbers.reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        wrong = np.flatnonzero(((sides < 0) if allow_empty else (sides <= 0)).any(axis=1))
        if len(wrong):
            sign = "<=" if allow_empty else "<"
            what = "is reversed" if (sides[wrong[0]] < 0).any() else "is empty"
            many = "; many are so, as [x, y, width, height] would be" if len(wrong) > MANY * len(boxes) > 1 else ""
            self.refuse_row(int(wrong[0]), key, what, f"x1 {sign} x2 and y1 {sign} y2{many}")
        return boxes

    def refuse_other_frame(self, key: str, boxes: np.ndarray, size_wh: np.ndarray | None = None) -> None:
        """Raise a UserError if the boxes [N, 4] of a key are not in pixels of their images."""
        found = find_other_frame(boxes, size_wh)
        if found is not None:
            row, what = found
            expected, got = "[x1, y1, x2, y2] in pixels of the upright image", self.rows[row][key]
            raise UserError(f"'{key}': {what}", where=self.where(row), expected=expected, got=shown(got))

    def refuse_row(self, row: int, key: str, what: str, expected: object, fix: str | None = None) -> None:
        """Raise a UserError about a value of a record."""
        got = shown(self.rows[row][key])
        raise UserError(f"'{key}' of {self.noun} {what}", where=self.where(row), expected=expected, got=got, fix=fix)

    def _refuse(self, key: str, is_wrong: Callable[[Any], bool], what: str, expected: str) -> None:
        self.refuse_row(next(i for i, row in enumerate(self.rows) if is_wrong(row[key])), key, what, expected)


def read_json_lines(path: Path, noun: str = "a prediction", fix: str | None = None) -> Records:
    """Read a file of one JSON object a line, `noun` in messages; blank lines are skipped, an empty file has no record.

    Raises UserError: no such file, a damaged gzip, no UTF-8, or a line that is no JSON object.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    expected = f"JSON lines of {noun.split(' ', 1)[-1]}s in UTF-8, or .gz of them"
    num_bytes, decode = 0, msgspec.json.Decoder().decode
    with _no_collection(), open_unpacked(path, expected, fix) as file:
        most = min(MAX_BYTES, max(64 << 20, MAX_RATIO * path.stat().st_size))
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
            num_bytes += len(line)
            if num_bytes > most or number > MAX_LINES or len(line) > MAX_LINE_BYTES:
                expected = f"at most {most >> 20} MiB unpacked, {MAX_LINES} lines and {MAX_LINE_BYTES >> 20} MiB a line"
                raise UserError("this file is too large", where=f"{path}, line {number}", expected=expected, fix=fix)
            try:
                row = decode(line)
            except (msgspec.MsgspecError, RecursionError):
                if line.isspace():
                    continue
                row = _parse_line(line, path, number, expected, fix)
            if not isinstance(row, dict):
                where, expected = f"{path}, line {number}", '{"key": value, ...}'
                got = f"{type(row).__name__} of JSON"
                raise UserError("a line holds no JSON object", where=where, expected=expected, got=got)
            rows.append(row)
            lines.append(number)
    return Records(path, rows, lines, noun=noun)


def _parse_line(line: bytes, path: Path, number: int, expected: str, fix: str | None) -> Any:
    # Either msgspec is too strict for this line, or the line is wrong.
    try:
        line.decode()
        return parse_json(line)
    except ValueError as error:
        if b"\0" in line or isinstance(error, UnicodeDecodeError):
            raise UserError("this is not a text file", where=path, expected=expected, fix=fix) from None
        where = f"{path}, line {number}"
        raise UserError("a line is no JSON", where=where, expected="one JSON object", got=error) from None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # Millions of new lists would set off Python's cycle search again and again: more than half of the time.
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _as_floats(values: list[Any]) -> np.ndarray:
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return np.array([np.inf])


def _is_finite(value: Any) -> bool:
    return bool(np.isfinite(_as_floats([value])).all())
