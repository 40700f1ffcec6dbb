"""Which fields a shard and the index of a split hold, as tables: names, dtypes, shapes, units. FORMAT.md says the same.

Letters: n images of a shard, N detections, P pairs, K interactions, D the teacher's joint width, M crop margins,
L levels of region features, C, H, W channels, height and width of the teacher's spatial map; S shards of a split,
F fields of a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SCHEMA_VERSION = 1

Rows = Literal["image", "detection", "pair", "offset", "shard", "shard offset", "field"]

READABLE = 0
UNREADABLE = 1


@dataclass(frozen=True)
class Field:
    """One HDF5 dataset of a shard or of an index.

    Args:
        name: Name of the dataset, and of the value in `hoi.records.ImageSignals` where there is one.
        dtype: Little-endian numpy dtype, or `utf8` for fixed-length UTF-8 text padded with NUL.
        rows: What one row is; `offset` datasets have one row more than there are images, `shard offset` than shards.
        axes: Sizes of the axes after the first: a number, or a letter of which a cache has one size.
        meaning: Unit, range and convention.
        required: Whether every shard has it; an optional field is in all shards of a split or in none.
    """

    name: str
    dtype: str
    rows: Rows
    axes: tuple[str | int, ...]
    meaning: str
    required: bool = True

    @property
    def is_text(self) -> bool:
        return self.dtype == "utf8"


FIELDS = (
    Field("image_id", "utf8", "image", (), "stable key that joins records of one image; unique in a split"),
    Field("size_hw", "<i4", "image", (2,), "height and width of the upright image in pixels; 0 where unreadable"),
    Field("status", "|u1", "image", (), "0: the image was read; 1: unreadable: no detection, no pair, rows of zeros"),
    Field("status_reason", "utf8", "image", (), "why an image is unreadable; empty where it was read"),
    Field("image_embedding", "<f2", "image", ("D",), "teacher embedding of the whole image, unit norm"),
    Field("image_similarity", "<f2", "image", ("K",), "cosine of it to the text of every interaction"),
    Field("detection_offsets", "<i8", "offset", (), "image i has detections [i] up to, not including, [i + 1]"),
    Field("boxes_xyxy", "<f4", "detection", (4,), "pixel edges of the upright image: width is x2 - x1"),
    Field("scores", "<f4", "detection", (), "detector's confidence in [0, 1]; falling within an image"),
    Field("labels", "<i4", "detection", (), "row of the vocabulary's objects"),
    Field(
        "detection_feature",
        "<f2",
        "detection",
        ("L", "D"),
        "region feature of the box per level, unit norm; level `crop` is 0 for a detection in no pair",
    ),
    Field("pair_offsets", "<i8", "offset", (), "image i has pairs [i] up to, not including, [i + 1]"),
    Field("pairs_ho", "<i4", "pair", (2,), "human and object, as rows within the image's own detections"),
    Field("union_embedding", "<f2", "pair", ("M", "D"), "teacher embedding of the union crop per margin, unit norm"),
    Field("union_similarity", "<f2", "pair", ("M", "K"), "cosine of it to the text of every interaction"),
    Field(
        "union_feature",
        "<f2",
        "pair",
        ("L", "D"),
        "region feature of the union box per level, unit norm; level `crop` is union_embedding's first margin",
    ),
    Field("spatial_map", "<f2", "image", ("C", "H", "W"), "the teacher's last spatial map of the whole image", False),
)

BY_NAME = {field.name: field for field in FIELDS}

INDEX_FIELDS = (
    Field("image_id", "utf8", "image", (), "as in the shards, one shard after the other"),
    Field("size_hw", "<i4", "image", (2,), "as in the shards"),
    Field("status", "|u1", "image", (), "as in the shards"),
    Field("detection_offsets", "<i8", "offset", (), "as in the shards, but rows of the split"),
    Field("pair_offsets", "<i8", "offset", (), "as in the shards, but rows of the split"),
    Field("shard_offsets", "<i8", "shard offset", (), "shard s holds images [s] up to, not including, [s + 1]"),
    Field("field", "utf8", "field", (), "names of the F fields of every shard, in the order of its table"),
    Field("byte_offset", "<i8", "shard", ("F",), "byte of the file where the field's rows start; 0 if it has no row"),
    Field("row_bytes", "<i8", "shard", ("F",), "bytes of one row of the field; only text differs between shards"),
)


def fields_of(axes: Iterable[str], table: Sequence[Field] = FIELDS) -> tuple[Field, ...]:
    """The fields of a cache whose axes are known: the required ones, and optional ones all of whose axes are there."""
    known = set(axes)
    return tuple(field for field in table if field.required or {a for a in field.axes if isinstance(a, str)} <= known)


def shape_of(field: Field, num_rows: int, axes: Mapping[str, int]) -> tuple[int, ...]:
    """Full shape of a field with this many rows."""
    return (num_rows, *(axes[axis] if isinstance(axis, str) else axis for axis in field.axes))


def check_tables(tables: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> None:
    """Nothing, if the tables of a shard agree with the schema and with one another.

    Args:
        tables: Field name to array, text as bytes.
        axes: Size of every letter.

    Raises:
        ValueError: a field is missing or unknown, or has a wrong dtype, shape or content; its name is in the text.
    """
    expected = fields_of(axes)
    names = {field.name for field in expected}
    if names != set(tables):
        raise ValueError(f"fields differ from the schema: {', '.join(sorted(names ^ set(tables)))}")
    num_images = len(tables["image_id"])
    detections, pairs = tables["detection_offsets"], tables["pair_offsets"]
    for name, offsets in (("detection_offsets", detections), ("pair_offsets", pairs)):
        if len(offsets) != num_images + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} must hold {num_images + 1} numbers that start at 0 and never fall")
    num_rows = {
        "image": num_images,
        "offset": num_images + 1,
        "detection": int(detections[-1]),
        "pair": int(pairs[-1]),
    }
    for field in expected:
        value, shape = tables[field.name], shape_of(field, num_rows[field.rows], axes)
        if value.shape != shape:
            raise ValueError(f"{field.name} has shape {value.shape}, expected {shape}")
        if value.dtype.kind != "S" if field.is_text else value.dtype != np.dtype(field.dtype):
            raise ValueError(f"{field.name} has dtype {value.dtype}, expected {field.dtype}")
    detections_of_pair = np.repeat(np.diff(detections), np.diff(pairs))
    rows = tables["pairs_ho"]
    if (rows < 0).any() or (rows >= detections_of_pair[:, None]).any():
        raise ValueError("pairs_ho names a detection outside its image")
    if len(np.unique(tables["image_id"])) != num_images:
        raise ValueError("image_id holds duplicates")
