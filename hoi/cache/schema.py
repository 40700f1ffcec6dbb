"""Which fields a shard and the index of a split hold, as tables: names, dtypes, shapes, units. FORMAT.md says the same.

Letters: n images of a shard, N detections, P pairs, K interactions, D the teacher's joint width, M crop margins,
L levels of region features, C, H, W channels, height and width of the teacher's spatial map. Of an index: S shards of
a split, F fields of a shard. Of a further pass: K interactions, there where whole images were asked about them, Q the
same number, there where pairs were, S sentences of a caption at most, D the teacher's joint width.
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

PASS_FIELDS = (
    Field("image_id", "utf8", "image", (), "as in the base shard"),
    Field("status", "|u1", "image", (), "0: the image was read, in both passes; 1: unreadable: rows of zeros"),
    Field("status_reason", "utf8", "image", (), "why an image is unreadable; empty where it was read"),
    Field("pair_offsets", "<i8", "offset", (), "as in the base shard: rows of pairs are rows of its pairs"),
    Field("caption", "utf8", "image", (), "the caption that was generated; empty where none was asked for"),
    Field(
        "context_embedding", "<f2", "image", ("S", "D"), "teacher embedding of each of its sentences, unit norm", False
    ),
    Field("context_mask", "|u1", "image", ("S",), "1 where there is such a sentence; other embeddings are 0", False),
    Field("vlm_scores", "<f2", "image", ("K",), "confidence in [0, 1] of every interaction; 0 where not asked", False),
    Field("vlm_asked", "|u1", "image", ("K",), "1 where the interaction was asked: its object is in a pair", False),
    Field(
        "vlm_log_likelihood",
        "<f4",
        "image",
        ("K",),
        "sum of its phrase's token log-probabilities, in nats; 0 where no such was asked for",
        False,
    ),
    Field("vlm_pair_scores", "<f2", "pair", ("Q",), "the same confidence, asked of the pair's union crop", False),
)

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


def check_tables(tables: Mapping[str, np.ndarray], axes: Mapping[str, int], table: Sequence[Field] = FIELDS) -> None:
    """Nothing, if the tables of a shard agree with the schema and with one another.

    Args:
        tables: Field name to array, text as bytes.
        axes: Size of every letter.
        table: Which fields such a shard has.

    Raises:
        ValueError: a field is missing or unknown, or has a wrong dtype, shape or content; its name is in the text.
    """
    expected = fields_of(axes, table)
    names = {field.name for field in expected}
    if names != set(tables):
        raise ValueError(f"fields differ from the schema: {', '.join(sorted(names ^ set(tables)))}")
    num_images = len(tables["image_id"])
    num_rows = {"image": num_images, "offset": num_images + 1}
    for kind in ("detection", "pair"):
        name = f"{kind}_offsets"
        if name not in tables:
            continue
        offsets = tables[name]
        if len(offsets) != num_images + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} must hold {num_images + 1} numbers that start at 0 and never fall")
        num_rows[kind] = int(offsets[-1])
    for field in expected:
        value, shape = tables[field.name], shape_of(field, num_rows[field.rows], axes)
        if value.shape != shape:
            raise ValueError(f"{field.name} has shape {value.shape}, expected {shape}")
        if value.dtype.kind != "S" if field.is_text else value.dtype != np.dtype(field.dtype):
            raise ValueError(f"{field.name} has dtype {value.dtype}, expected {field.dtype}")
    if "pairs_ho" in tables:
        detections_of_pair = np.repeat(np.diff(tables["detection_offsets"]), np.diff(tables["pair_offsets"]))
        rows = tables["pairs_ho"]
        if (rows < 0).any() or (rows >= detections_of_pair[:, None]).any():
            raise ValueError("pairs_ho names a detection outside its image")
    if len(np.unique(tables["image_id"])) != num_images:
        raise ValueError("image_id holds duplicates")
    _check_answers(tables)


def check_detections(tables: Mapping[str, np.ndarray], num_objects: int) -> None:
    """Nothing, if a base shard's scores fall within every image and its labels are rows of the vocabulary.

    Raises:
        ValueError: they do not; the field's name is in the text.
    """
    scores, labels, offsets = tables["scores"], tables["labels"], tables["detection_offsets"]
    rises = np.diff(scores) > 0
    # From the last detection of an image to the first of the next one, scores may rise.
    borders = offsets[1:-1]
    rises[borders[(borders > 0) & (borders < len(scores))] - 1] = False
    if rises.any():
        image = int(np.searchsorted(offsets, np.flatnonzero(rises)[0], side="right")) - 1
        raise ValueError(f"scores rise within image {tables['image_id'][image].decode()}")
    if len(labels) and (labels.min() < 0 or labels.max() >= num_objects):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, the vocabulary has {num_objects} objects")


def _check_answers(tables: Mapping[str, np.ndarray]) -> None:
    """What a further pass says is in its range, and 0 where nothing was asked."""
    for name in ("vlm_scores", "vlm_pair_scores"):
        scores = tables.get(name)
        if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"{name} leaves [0, 1]")
    for mask, name in (("vlm_asked", "vlm_scores"), ("context_mask", "context_embedding")):
        if mask not in tables:
            continue
        if (tables[mask] > 1).any():
            raise ValueError(f"{mask} is neither 0 nor 1")
        if tables[name][tables[mask] == 0].any():
            raise ValueError(f"{name} says something where {mask} is 0")
