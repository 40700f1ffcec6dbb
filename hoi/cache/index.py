"""The index of a split: what a reader needs of every shard before it reads one, in a single file that is mapped.

It is made from the finished shards alone, by the driver, just before the manifest. Shapes as in `hoi.cache.schema`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.manifest import IndexReceipt, Manifest, Receipt, hash_of_shards
from hoi.cache.schema import BASE, INDEX_FIELDS, SCHEMA_VERSION, Field, Pass, fields_of, shape_of
from hoi.cache.shard import (
    BrokenFile,
    Header,
    Location,
    check_axes,
    check_header,
    encode_file,
    inspect_shard,
    read_header,
    read_text,
)
from hoi.errors import UserError, command
from hoi.files import write_atomically

MAX_ROW_BYTES = (1 << 31) - 1


def index_attributes(
    fingerprint: str, split: str, receipts: Sequence[Receipt], axes: Mapping[str, int]
) -> dict[str, Any]:
    """Return the attributes of the index of these shards."""
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "split": split,
        "shards_sha256": hash_of_shards(receipts),
        "axes": axes,
    }


def write_index(
    folder: Path, split: str, fingerprint: str, receipts: Sequence[Receipt], of: Pass = BASE
) -> IndexReceipt:
    """Write the index of finished shards of one split and fingerprint beside them."""
    data = encode_index(folder, split, fingerprint, receipts, of)
    write_atomically(folder / of.index_name, data)
    return IndexReceipt(hashlib.sha256(data).hexdigest(), len(data))


def encode_index(folder: Path, split: str, fingerprint: str, receipts: Sequence[Receipt], of: Pass = BASE) -> bytes:
    """Return the bytes of the index of finished shards; equal shards give equal bytes.

    Raises UserError or ValueError: a shard is missing, damaged, or of other axes than the others.
    """
    fields = of.content.fields
    headers = (checked_header(folder, split, fingerprint, receipt, fields) for receipt in receipts)
    axes, tables = index_tables(headers, sum(receipt.num_images for receipt in receipts), fields)
    return encode_file(tables, index_attributes(fingerprint, split, receipts, axes), consume=True)


def index_tables(
    shards: Iterable[Header], num_images: int, table: Sequence[Field]
) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Return the size of every letter and the tables of the index; one shard is held at a time."""
    axes: dict[str, int] = {}
    names = {field.name for field in table}
    columns = {field.name: _Column(field, num_images) for field in INDEX_FIELDS if field.name in names}
    places: list[list[tuple[int, int]]] = []
    shard_offsets = [0]
    for shard in shards:
        axes = axes or shard.attributes["axes"]
        if shard.attributes["axes"] != axes:
            raise ValueError(f"{shard.path} has axes {shard.attributes['axes']}, expected {axes}")
        for name, column in columns.items():
            column.append(shard.table(name, mapped=True))
        shard_offsets.append(shard_offsets[-1] + shard.locations["image_id"].shape[0])
        locations = [shard.locations[field.name] for field in fields_of(axes, table)]
        places.append([(where.offset or 0, where.dtype.itemsize * prod(where.shape[1:])) for where in locations])
    if shard_offsets[-1] != num_images:
        raise ValueError(f"the shards hold {shard_offsets[-1]} images, expected {num_images}")
    byte_offset, row_bytes = np.moveaxis(np.array(places, "<i8"), 2, 0)
    return axes, {
        **{name: column.rows for name, column in columns.items()},
        "shard_offsets": np.array(shard_offsets, "<i8"),
        "field": np.array([field.name.encode() for field in fields_of(axes, table)]),
        "byte_offset": np.ascontiguousarray(byte_offset),
        "row_bytes": np.ascontiguousarray(row_bytes),
    }


def index_fields(table: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields of the index of shards with these fields: of what is known per image, only what they hold."""
    names = {field.name for field in table}
    of_shards = ("shard", "shard offset", "field")
    return tuple(field for field in INDEX_FIELDS if field.rows in of_shards or field.name in names)


class _Column:
    # What the index says per image, as it grows shard by shard; it is held once, however many images there are.

    def __init__(self, field: Field, num_images: int) -> None:
        self._is_offset = field.rows == "offset"
        dtype = "S1" if field.is_text else field.dtype
        self.rows = np.zeros(shape_of(field, num_images + self._is_offset, {}), dtype)
        self._end = 0

    def append(self, table: np.ndarray) -> None:
        if table.dtype.itemsize > self.rows.dtype.itemsize:
            self.rows = self.rows.astype(table.dtype)
        if self._is_offset:
            table = table[1:] + self.rows[self._end]
        start, self._end = self._end, self._end + len(table)
        self.rows[start + self._is_offset : self._end + self._is_offset] = table


@dataclass(frozen=True)
class SplitIndex:
    """The index of one split, opened for reading; `columns` are its fields by name, views of the mapped file."""

    axes: Mapping[str, int]
    columns: Mapping[str, np.ndarray]
    table: Sequence[Field]

    @cached_property
    def fields(self) -> dict[str, tuple[int, Field]]:
        known = {field.name: field for field in fields_of(self.axes, self.table)}
        names = read_text(self.columns["field"])
        return {name: (column, known[name]) for column, name in enumerate(names) if name in known}

    def location(self, shard: int, name: str) -> Location:
        """Return where a field lies in the file of a shard, without a look at that file."""
        column, field = self.fields[name]
        start, stop = self.columns["shard_offsets"][shard : shard + 2].tolist()
        if field.rows in ("image", "offset"):
            num_rows = stop - start + (field.rows == "offset")
        else:
            offsets = self.columns[f"{field.rows}_offsets"]
            num_rows = int(offsets[stop] - offsets[start])
        shape = shape_of(field, num_rows, self.axes)
        dtype = np.dtype(f"S{self.columns['row_bytes'][shard, column]}" if field.is_text else field.dtype)
        return Location(dtype, shape, int(self.columns["byte_offset"][shard, column]) if 0 not in shape else None)


def checked_header(folder: Path, split: str, fingerprint: str, receipt: Receipt, table: Sequence[Field]) -> Header:
    """Return the header of the shard that a receipt speaks of; a UserError where it is not there and whole."""
    path = folder / receipt.name
    try:
        header = inspect_shard(path, table)
    except FileNotFoundError:
        raise UserError("a shard is missing", where=path, fix=command("teacher-cache")) from None
    except BrokenFile as error:
        raise UserError("a shard is damaged", where=path, got=error, fix=rebuild_shard(path)) from None
    expected = (fingerprint, split, receipt.image_ids_sha256)
    got = tuple(header.attributes[name] for name in ("fingerprint", "split", "image_ids_sha256"))
    if got != expected:
        raise foreign_shard(
            path, *(f"fingerprint {f[:12]}, split {s}, ids {ids[:12]}" for f, s, ids in (expected, got))
        )
    return header


def foreign_shard(path: Path, expected: str, got: str) -> UserError:
    what = "a shard does not belong to this cache"
    return UserError(what, where=path, expected=expected, got=got, fix=rebuild_shard(path))


def rebuild_shard(path: Path) -> str:
    return f"delete {path}, then {command('teacher-cache')}"


def open_index(folder: Path, manifest: Manifest) -> SplitIndex:
    """Open the index of a complete pass, mapped; a UserError where it is damaged or not of the manifest's shards."""
    path, table, bank = folder / manifest.of.index_name, manifest.of.content.fields, manifest.bank
    expected = index_attributes(bank.fingerprint, manifest.split, manifest.shards, bank.axes)
    try:
        header = read_header(path)
        attributes = {name: header.attributes[name] for name in expected}
        _check_index(header, manifest)
        index = SplitIndex(attributes["axes"], header.tables(index_fields(table)), table)
        _check_offsets(index, manifest)
    except (BrokenFile, FileNotFoundError, KeyError, ValueError) as error:
        raise UserError("this index is damaged", where=path, got=error, fix=rebuild_shard(path)) from None
    for name in expected:
        if attributes[name] != expected[name]:
            what = f"this index is of other shards than the manifest: {name}"
            raise UserError(what, where=path, expected=expected[name], got=attributes[name], fix=rebuild_shard(path))
    return index


def _check_index(header: Header, manifest: Manifest) -> None:
    fields = manifest.of.content.fields
    axes = check_axes(header.attributes["axes"])
    num_shards, num_fields = len(manifest.shards), len(fields_of(axes, fields))
    header.attributes["axes"] = {**axes, "F": num_fields}
    num_rows = {"image": manifest.num_images, "shard": num_shards, "shard offset": num_shards + 1, "field": num_fields}
    try:
        check_header(header, index_fields(fields), num_rows)
    finally:
        header.attributes["axes"] = axes


def _check_offsets(index: SplitIndex, manifest: Manifest) -> None:
    # Rows of images, detections and pairs are read where these say.
    ends = {
        "shard_offsets": [shard.num_images for shard in manifest.shards],
        "detection_offsets": [shard.num_detections for shard in manifest.shards],
        "pair_offsets": [shard.num_pairs for shard in manifest.shards],
    }
    at_shards, row_bytes = index.columns["shard_offsets"], index.columns["row_bytes"]
    if (row_bytes < 1).any() or (row_bytes > MAX_ROW_BYTES).any() or (index.columns["byte_offset"] < 0).any():
        raise ValueError(f"a row of a field takes no 1 to {MAX_ROW_BYTES} bytes, or lies before the file")
    for name, numbers in ends.items():
        offsets = index.columns.get(name)
        if offsets is None:
            continue
        expected = np.cumsum([0, *numbers])
        got = offsets if name == "shard_offsets" else offsets[at_shards]
        if not np.array_equal(got, expected) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name} do not rise from 0 to the numbers of the manifest")
