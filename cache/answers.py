"""Records of a further pass to the tables of its shard, and back. Letters as in `cache.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cache.schema import PASS_FIELDS, READABLE, UNREADABLE, check_tables, fields_of, shape_of
from cache.tables import text_table
from hoi.vllm.answers import ImageAnswers


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
                table[place] = _exact(answer, field.name, (*rows, *table.shape[1:]))
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


def _exact(answer: ImageAnswers, name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = getattr(answer, name)
    if value is None or value.shape != shape:
        got = None if value is None else value.shape
        raise ValueError(f"{name} of image {answer.image_id} has shape {got}, expected {shape}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} of image {answer.image_id} holds NaN or infinity")
    return value
