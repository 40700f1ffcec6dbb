"""A JSON lines file, gzipped or not, to checked columns: a wrong value is named by its line.

Columns are checked as wholes, because 270,000 records are many; only a column that fails is searched for the culprit.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hoi.errors import UserError

GZIP = b"\x1f\x8b"


def read_bytes(path: Path, what: str) -> bytes:
    """A file's content, unpacked if it is gzipped, whatever its name.

    Raises:
        UserError: there is no such file, or the gzip is truncated or damaged.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no such file of {what}", where=path) from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=path, expected=f"a file of {what}") from None
    if not raw.startswith(GZIP):
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(
            "this gzip file is truncated or damaged", where=path, got=error, fix="copy or write it again"
        ) from None


@dataclass(frozen=True)
class Records:
    """The records of one file, in its order.

    Args:
        path: Where they were read.
        rows: One dict a record.
        lines: Each record's number: its line, from 1, or what `word` counts.
        word: What the numbers count.
        left_out: How many more the file holds that no record can say.
    """

    path: Path
    rows: list[dict[str, Any]]
    lines: list[int]
    word: str = "line"
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        """The place of a record, for messages."""
        return f"{self.path}, {self.word} {self.lines[row]}"

    def column(self, key: str) -> list[Any]:
        """The values of a key that every record has.

        Raises:
            UserError: a record lacks it.
        """
        try:
            return [row[key] for row in self.rows]
        except KeyError:
            wrong = next(i for i, row in enumerate(self.rows) if key not in row)
            raise UserError(
                f"a prediction lacks '{key}'",
                where=self.where(wrong),
                expected=f"the key {key}",
                got=", ".join(map(str, self.rows[wrong])) or "no key at all",
            ) from None

    def of_type(self, key: str, kinds: Collection[type], expected: str) -> list[Any]:
        """The values of a key, all of the given types exactly, so that a bool is no int.

        Raises:
            UserError: a record lacks the key or has another type there.
        """
        values = self.column(key)
        if not set(map(type, values)) <= set(kinds):
            self.refuse(key, lambda value: type(value) not in kinds, "is mistyped", expected)
        return values

    def numbers(self, key: str, expected: str) -> np.ndarray:
        """The values of a key as finite numbers, float64 [N].

        Raises:
            UserError: a record lacks the key, or has no finite number there.
        """
        values = self.of_type(key, (int, float), expected)
        numbers = _as_floats(values)
        if numbers is None or not np.isfinite(numbers).all():
            self.refuse(key, lambda value: not _is_finite(value), "is not finite", expected)
        return np.asarray(numbers)

    def boxes(self, key: str) -> np.ndarray:
        """The values of a key as boxes of four finite numbers in order, float64 [N, 4].

        Raises:
            UserError: a record lacks the key, has no box there, or one with x2 < x1 or y2 < y1.
        """
        expected = "[x1, y1, x2, y2], four finite numbers"
        values = self.of_type(key, (list,), expected)
        flat = list(chain.from_iterable(values))
        if set(map(len, values)) - {4} or not set(map(type, flat)) <= {int, float}:
            self.refuse(key, lambda box: not _is_box(box), "is no box", expected)
        numbers = _as_floats(flat)
        if numbers is None or not np.isfinite(numbers).all():
            self.refuse(key, lambda box: not all(map(_is_finite, box)), "is not finite", expected)
        boxes = np.asarray(numbers).reshape(-1, 4)
        reversed_rows = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
        if len(reversed_rows):
            self.refuse_row(int(reversed_rows[0]), key, "is reversed", "x1 <= x2 and y1 <= y2")
        return boxes

    def refuse(self, key: str, is_wrong: Callable[[Any], bool], what: str, expected: str) -> None:
        """Raises a UserError for the first record whose value of the key is wrong."""
        self.refuse_row(next(i for i, row in enumerate(self.rows) if is_wrong(row[key])), key, what, expected)

    def refuse_row(self, row: int, key: str, what: str, expected: object) -> None:
        """Raises a UserError for a record."""
        got = json.dumps(self.rows[row][key])
        raise UserError(
            f"'{key}' of a prediction {what}",
            where=self.where(row),
            expected=expected,
            got=got if len(got) < 100 else got[:97] + "...",
        )


def read_json_lines(path: Path) -> Records:
    """A file of one JSON object a line to its records; blank lines are passed over, an empty file has no record.

    Raises:
        UserError: no such file, a damaged gzip, no UTF-8, or a line that is no JSON object.
    """
    try:
        text = read_bytes(path, "predictions").decode("utf-8")
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected="JSON lines in UTF-8, or .gz of them") from None
    with _no_collection():
        return _parse(text, path)


def _parse(text: str, path: Path) -> Records:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                "a line is no JSON", where=f"{path}, line {number}", expected="one JSON object", got=str(error)
            ) from None
        if not isinstance(row, dict):
            raise UserError(
                "a line holds no JSON object",
                where=f"{path}, line {number}",
                expected='{"key": value, ...}',
                got=f"{type(row).__name__} of JSON",
            )
        rows.append(row)
        lines.append(number)
    return Records(path, rows, lines)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new lists would set off Python's cycle search again and again: more than half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _as_floats(values: list[Any]) -> np.ndarray | None:
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return None


def _is_finite(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except OverflowError:
        return False


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(edge) in (int, float) for edge in value)


def read_json_lines_line_labels(path: Path) -> list[tuple[str, Any]]:
    """A file of annotations to the place of each record, for messages, and the record.

    Raises:
        UserError: no such file, no text, or a line that is no JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError("there is no such file", where=path, fix="set dataset.annotations") from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=path, expected="JSON lines", fix="set dataset.annotations") from None
    except UnicodeDecodeError:
        raise UserError(
            "this is not a text file", where=path, expected="JSON lines in UTF-8", fix="set dataset.annotations"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append((f"{path}, line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            raise UserError(
                "a line is no JSON", where=f"{path}, line {number}", got=error.msg, fix="mend the line"
            ) from None
    return records


def check_record(record: Any, where: str, every_image: set[str]) -> None:
    """Nothing, for `{file_name, human_xyxy, object_xyxy, verb, object}` of a known image; otherwise a UserError."""
    keys = set(record) if isinstance(record, dict) else set()
    expected = ("file_name", "human_xyxy", "object_xyxy", "verb", "object")
    missing = [key for key in expected if key not in keys]
    if missing:
        raise UserError("an annotation lacks a key", where=where, expected=", ".join(expected), got=f"no {missing[0]}")
    for key in ("file_name", "verb", "object"):
        if not isinstance(record[key], str):
            raise UserError(
                "an annotation has a mistyped value", where=f"{where}, {key}", expected="text", got=record[key]
            )
    if record["file_name"] not in every_image:
        raise UserError(
            "an annotation names an unknown image",
            where=where,
            expected="the path of an image below dataset.images",
            got=record["file_name"],
            fix="mend the name, or take the line out",
        )
    for key in ("human_xyxy", "object_xyxy"):
        if not _is_box_line_labels(record[key]):
            raise UserError(
                "an annotation has a wrong box",
                where=f"{where}, {key}",
                expected="[x1, y1, x2, y2] in pixels, x1 < x2, y1 < y2",
                got=record[key],
            )


def _is_box_line_labels(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
        return False
    x1, y1, x2, y2 = value
    return bool(np.isfinite(value).all()) and x1 < x2 and y1 < y2
