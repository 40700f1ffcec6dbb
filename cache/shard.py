"""One HDF5 file: tables to bytes and back. The only module that knows h5py.

A file is assembled in memory and written in one go by `cache.atomic`, so HDF5 itself never meets a full disk, and a
reader never meets a file that is still growing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.schema import SCHEMA_VERSION, fields_of
from hoi.errors import UserError

ALIGNMENT_BYTES = 64


class BrokenFile(Exception):
    """A file that is no whole HDF5 file of ours; the text says why. The cure is to build it again."""


@dataclass(frozen=True)
class Location:
    """Where a dataset lies in its file, so that it can be memory-mapped without h5py.

    Args:
        dtype: numpy dtype on disk.
        shape: Full shape.
        offset: Byte at which the rows start; None for a dataset without rows.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int | None


@dataclass(frozen=True)
class Header:
    """What a file says of itself, read without its tables."""

    path: Path
    attributes: dict[str, Any]
    locations: dict[str, Location]

    def table(self, name: str, mapped: bool = False) -> np.ndarray:
        """One table, read into memory or memory-mapped read-only.

        Args:
            name: Name of the dataset.
            mapped: Whether rows are to stay on disk until they are touched.
        """
        location = self.locations[name]
        if location.offset is None:
            return np.zeros(location.shape, location.dtype)
        rows = np.memmap(self.path, location.dtype, "r", location.offset, location.shape)
        return rows if mapped else np.array(rows)

    def json(self, name: str) -> Any:
        """A dataset that holds one JSON text, as plain data."""
        with h5py.File(self.path, "r", locking=False) as file:
            return json.loads(file[name][()])


def encode_file(tables: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> bytes:
    """Tables and attributes to the bytes of an HDF5 file; equal content gives equal bytes.

    Args:
        tables: Name to array; bytes arrays become fixed-length UTF-8. Contiguous and uncompressed.
        attributes: Name to number or text; anything else is stored as JSON text.
    """
    total = sum(table.nbytes for table in tables.values())
    # v110: a file cut short then fails at opening; older formats can open with rows missing.
    with h5py.File(
        "shard",
        "w",
        driver="core",
        backing_store=False,
        block_size=max(1 << 16, total // 8),
        libver=("v110", "v110"),
        alignment_threshold=1,
        alignment_interval=ALIGNMENT_BYTES,
    ) as file:
        for name, value in attributes.items():
            plain = isinstance(value, str | int | float) and not isinstance(value, bool)
            file.attrs[name] = value if plain else json.dumps(value, sort_keys=True)
        for name, table in tables.items():
            is_text = table.dtype.kind == "S"
            utf8 = table.view(h5py.string_dtype("utf-8", table.dtype.itemsize)) if is_text else table
            file.create_dataset(name, data=utf8)
        file.flush()
        return file.id.get_file_image()


def read_header(path: Path) -> Header:
    """File to its attributes and the places of its tables.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: it is cut short, no HDF5 file, or of a layout that cannot be mapped.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
            locations = {}
            for name, dataset in file.items():
                if dataset.chunks is not None:
                    raise BrokenFile(f"dataset {name} is not contiguous")
                locations[name] = Location(
                    np.dtype(dataset.dtype.str), dataset.shape, dataset.id.get_offset() if dataset.size else None
                )
    except FileNotFoundError:
        raise
    except (OSError, KeyError, AttributeError, RuntimeError) as error:
        raise BrokenFile(" ".join(str(error).split())) from error
    return Header(path, attributes, locations)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and value[:1] in ("{", "["):
        return json.loads(value)
    return value


def read_text(table: np.ndarray) -> list[str]:
    """Fixed-length UTF-8 rows to strings."""
    return [value.decode() for value in table.tolist()]


SHARD_ATTRIBUTES = (
    "schema_version",
    "fingerprint",
    "fingerprint_parts",
    "split",
    "index",
    "start",
    "num_images",
    "image_ids_sha256",
    "axes",
)


def inspect_shard(path: Path) -> Header:
    """A shard's file to its header, checked against the schema.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: it is cut short, or no shard.
        UserError: it is of another schema version.
    """
    header = read_header(path)
    version = header.attributes.get("schema_version")
    if version is not None and version != SCHEMA_VERSION:
        raise UserError(
            "this shard has another schema version",
            where=path,
            expected=SCHEMA_VERSION,
            got=version,
            fix=f"delete {path.parent} and run make teacher-cache, or use the release that made it",
        )
    absent = [name for name in SHARD_ATTRIBUTES if name not in header.attributes]
    if absent:
        raise BrokenFile(f"attribute {absent[0]} is missing")
    fields = fields_of(header.attributes["axes"])
    absent = [field.name for field in fields if field.name not in header.locations]
    if absent:
        raise BrokenFile(f"field {absent[0]} is missing")
    return header
