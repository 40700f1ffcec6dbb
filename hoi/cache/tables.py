"""Records of images to the flat tables of a shard. Letters as in `hoi.cache.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hoi.cache.schema import (
    PASS_FIELDS,
    READABLE,
    UNREADABLE,
    check_tables,
    fields_of,
    shape_of,
)
from hoi.records import Detections, ImageSignals
from hoi.vlm import ImageAnswers

MAX_REASON_BYTES = 400


def pack_tables(
    image_ids: Sequence[str], outcomes: Sequence[ImageSignals | str], axes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Images in the order of the shard to its tables: ragged rows laid flat, with offsets.

    Args:
        image_ids: n keys.
        outcomes: Per image its signals, or the reason why it could not be read: its slot stays, with zero rows.
        axes: Size of every letter, so that a shard without a single detection has the right shapes.

    Raises:
        ValueError: a signal's shape differs from `axes`, or an id from its record's.
    """
    for image_id, outcome in zip(image_ids, outcomes, strict=True):
        if isinstance(outcome, ImageSignals) and outcome.image_id != image_id:
            raise ValueError(f"signals of image {outcome.image_id} came in the place of {image_id}")
    signals = [outcome if isinstance(outcome, ImageSignals) else None for outcome in outcomes]
    detections = [s.detections if s is not None else Detections.empty() for s in signals]
    tables = {
        "image_id": text_table(image_ids),
        "status": np.array([READABLE if s is not None else UNREADABLE for s in signals], np.uint8),
        "status_reason": text_table([clip(o) if isinstance(o, str) else "" for o in outcomes]),
        "detection_offsets": _offsets([len(d) for d in detections]),
        "pair_offsets": _offsets([len(s.pairs_ho) if s is not None else 0 for s in signals]),
        "boxes_xyxy": _concatenate([d.boxes_xyxy for d in detections], "<f4", (0, 4)),
        "scores": _concatenate([d.scores for d in detections], "<f4", (0,)),
        "labels": _concatenate([d.labels for d in detections], "<i4", (0,)),
    }
    for field in fields_of(axes):
        if field.name in tables:
            continue
        if field.rows == "image":
            table = np.zeros(shape_of(field, len(signals), axes), field.dtype)
            for row, record in enumerate(signals):
                if record is not None:
                    table[row] = _exact(record, field.name, table.shape[1:])
        else:
            empty = shape_of(field, 0, axes)
            parts = [_exact(record, field.name, None) for record in signals if record is not None]
            table = _concatenate([part for part in parts if len(part)], field.dtype, empty)
        tables[field.name] = table
    check_tables(tables, axes)
    return tables


def check_finite(record: ImageSignals) -> None:
    """Nothing, if all that models said of an image are numbers: in fp16 a teacher may overflow.

    Raises:
        ValueError: a field holds NaN or infinity; names it and the image.
    """
    for name, value in {**vars(record.detections), **vars(record)}.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{name} of image {record.image_id} holds NaN or infinity")


def _exact(record: ImageSignals, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """A record's value, without numpy's broadcasting of a wrong shape into a right one."""
    value = getattr(record, name)
    if value is None or (shape is not None and value.shape != shape):
        got = None if value is None else value.shape
        raise ValueError(f"{name} of image {record.image_id} has shape {got}, expected {shape}")
    return np.asarray(value)


def _concatenate(parts: list[np.ndarray], dtype: str, empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *(part.astype(dtype, copy=False) for part in parts if len(part))])


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype("<i8")


def clip(reason: str) -> str:
    """Why an image is unreadable, as long as a shard holds it."""
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


def text_table(values: Sequence[str]) -> np.ndarray:
    """Texts to fixed-length UTF-8; an empty one has room for one byte."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, dtype=f"S{max([1, *map(len, encoded)])}")


def unpack_tables(tables: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> list[ImageSignals | str]:
    """The tables of a shard back to what was known of each image: what `pack_tables` was given."""
    return [unpack_image(tables, row, axes) for row in range(len(tables["image_id"]))]


def unpack_image(tables: Mapping[str, np.ndarray], row: int, axes: Mapping[str, int]) -> ImageSignals | str:
    """One row of a shard's tables to the image's signals, or to the reason why it could not be read.

    Values are views of the tables, but for labels: they are int64, as detectors give them.
    """
    if tables["status"][row] == UNREADABLE:
        return tables["status_reason"][row].decode()
    of_rows: dict[str, int | slice] = {
        "image": row,
        "detection": slice(*tables["detection_offsets"][row : row + 2]),
        "pair": slice(*tables["pair_offsets"][row : row + 2]),
    }
    values = {
        field.name: tables[field.name][of_rows[field.rows]]
        for field in fields_of(axes)
        if field.rows in of_rows and not field.is_text
    }
    del values["status"]
    boxes, scores, labels = (values.pop(name) for name in ("boxes_xyxy", "scores", "labels"))
    detections = Detections(boxes, scores, labels.astype(np.int64))
    return ImageSignals(image_id=tables["image_id"][row].decode(), detections=detections, **values)


def pack_answers(
    image_ids: Sequence[str],
    outcomes: Sequence[ImageAnswers | str],
    pair_offsets: np.ndarray,
    axes: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """Images in the order of the base shard to the tables of a further pass's.

    Args:
        image_ids: n keys.
        outcomes: Per image its answers, or why it could not be read, in either pass: its rows are zero then.
        pair_offsets: int64 [n + 1], the base shard's.
        axes: Size of every letter.

    Raises:
        ValueError: an answer's shape differs from `axes` or from the image's number of pairs, is no number, or its id
            is another record's.
    """
    for image_id, outcome in zip(image_ids, outcomes, strict=True):
        if isinstance(outcome, ImageAnswers) and outcome.image_id != image_id:
            raise ValueError(f"answers about image {outcome.image_id} came in the place of {image_id}")
    answers = [outcome if isinstance(outcome, ImageAnswers) else None for outcome in outcomes]
    tables = {
        "image_id": text_table(image_ids),
        "status": np.array([READABLE if a is not None else UNREADABLE for a in answers], np.uint8),
        "status_reason": text_table([o if isinstance(o, str) else "" for o in outcomes]),
        "pair_offsets": pair_offsets.astype("<i8"),
        "caption": text_table([a.caption if a is not None else "" for a in answers]),
    }
    num_pairs = np.diff(pair_offsets)
    for field in fields_of(axes, PASS_FIELDS):
        if field.name in tables:
            continue
        num_rows = len(answers) if field.rows == "image" else int(pair_offsets[-1])
        table = np.zeros(shape_of(field, num_rows, axes), field.dtype)
        for row, answer in enumerate(answers):
            if answer is not None:
                place = row if field.rows == "image" else slice(*pair_offsets[row : row + 2])
                rows = () if field.rows == "image" else (int(num_pairs[row]),)
                table[place] = _exact_answers(answer, field.name, (*rows, *table.shape[1:]))
        tables[field.name] = table
    check_tables(tables, axes, PASS_FIELDS)
    return tables


def unpack_answers(tables: Mapping[str, np.ndarray], row: int, axes: Mapping[str, int]) -> ImageAnswers | str:
    """One row of a further pass's tables to the image's answers, or to the reason why it could not be read."""
    if tables["status"][row] == UNREADABLE:
        return tables["status_reason"][row].decode()
    pairs = slice(*tables["pair_offsets"][row : row + 2])
    values: dict[str, Any] = {
        field.name: tables[field.name][pairs if field.rows == "pair" else row]
        for field in fields_of(axes, PASS_FIELDS)
        if field.rows in ("image", "pair") and not field.is_text and field.name != "status"
    }
    texts = {name: tables[name][row].decode() for name in ("image_id", "caption")}
    return ImageAnswers(**texts, **values)


def _exact_answers(answer: ImageAnswers, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = getattr(answer, name)
    if value is None or value.shape != shape:
        got = None if value is None else value.shape
        raise ValueError(f"{name} of image {answer.image_id} has shape {got}, expected {shape}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} of image {answer.image_id} holds NaN or infinity")
    return value
