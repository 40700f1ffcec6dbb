"""Annotated pairs as JSON lines: the labels of a folder of photographs, each line checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hoi.errors import UserError


def read_json_lines(path: Path) -> list[tuple[str, Any]]:
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
        if not _is_box(record[key]):
            raise UserError(
                "an annotation has a wrong box",
                where=f"{where}, {key}",
                expected="[x1, y1, x2, y2] in pixels, x1 < x2, y1 < y2",
                got=record[key],
            )


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
        return False
    x1, y1, x2, y2 = value
    return bool(np.isfinite(value).all()) and x1 < x2 and y1 < y2
