"""One HDF5 file: its tables as bytes, and read back. The only module that knows h5py.

A file is assembled in memory and written in one go by `hoi.files`, so HDF5 itself never meets a full disk, and a
reader never meets a file that is still growing.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hoi.cache.schema import SCHEMA_VERSION, Axes, Field, fields_of, shape_of
from hoi.errors import UserError, command
from hoi.files import convert, parse_json

ALIGNMENT_BYTES = 64


class BrokenFile(Exception):
    """A file is no whole HDF5 file of a cache; the text says why. It has to be built again."""


@dataclass(frozen=True)
class Location:
    """Where a dataset lies in its file; its rows start at byte `offset`, None for a dataset without rows."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int | None


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class MappedFile:
    """A whole file, mapped read-only, without an open descriptor, for as long as a table of it is in use.

    Python's own `mmap` keeps a descriptor for every mapping, and a process may often have 1,024 of them. Raises a
    UserError where the process has as many mappings as it may have, or no address space left.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise UserError(
                "the system does not map this file",
                where=path,
                got=os.strerror(code),
                fix="raise vm.max_map_count or the address space (ulimit -v), or build with more images in a shard",
            )
        mapping = (ctypes.c_ubyte * size).from_address(address)
        # Not at exit: other threads may still read then.
        weakref.finalize(mapping, _libc.munmap, address, size).atexit = False
        self._bytes = memoryview(mapping).toreadonly()

    def table(self, location: Location) -> np.ndarray:
        if location.offset is None:
            return np.zeros(location.shape, location.dtype)
        return np.ndarray(location.shape, location.dtype, self._bytes, location.offset)


@dataclass(frozen=True)
class Header:
    """What a file says of itself, read without its tables."""

    path: Path
    attributes: dict[str, Any]
    locations: dict[str, Location]

    def table(self, name: str, mapped: bool = False) -> np.ndarray:
        rows = self.file.table(self.locations[name])
        return rows if mapped else rows.copy()

    def tables(self, fields: Iterable[Field], mapped: bool = True) -> dict[str, np.ndarray]:
        return {field.name: self.table(field.name, mapped) for field in fields}

    @cached_property
    def file(self) -> MappedFile:
        return MappedFile(self.path)

    def json(self, name: str) -> Any:
        return parse_json(self.table(name).tobytes().rstrip(b"\0"))


def encode_file(tables: Mapping[str, np.ndarray], attributes: Mapping[str, Any], consume: bool = False) -> bytes:
    """Return the bytes of an HDF5 file; equal content gives equal bytes.

    `consume` drops each table from `tables`, a dict, once it is in the file: a large file then takes its size in memory
    twice, not three times.
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
        for name in list(tables):
            table = tables.pop(name) if consume and isinstance(tables, dict) else tables[name]
            is_text = table.dtype.kind == "S"
            utf8 = table.view(h5py.string_dtype("utf-8", table.dtype.itemsize)) if is_text else table
            file.create_dataset(name, data=utf8)
            del table, utf8
        file.flush()
        return file.id.get_file_image()


def read_header(path: Path) -> Header:
    """Return a file's attributes and the places of its tables; FileNotFoundError or BrokenFile where it has none."""
    try:
        if not stat.S_ISREG((size := os.stat(path)).st_mode):
            raise BrokenFile("it is no regular file")
        with h5py.File(path, "r", locking=False) as file:
            # By h5py's low-level names, in half the time: a cache may have many thousand files.
            attributes = dict(_attribute(file.id, number) for number in range(h5py.h5a.get_num_attrs(file.id)))
            locations = {name.decode(): _location(file.id, name, size.st_size) for name in file.id}
    except (FileNotFoundError, BrokenFile):
        raise
    except (OSError, KeyError, AttributeError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise BrokenFile(" ".join(str(error).split())) from error
    return Header(path, attributes, locations)


def _location(file: h5py.h5f.FileID, name: bytes, file_bytes: int) -> Location:
    # A link may lead to another file, and only plain numbers and texts of one length may be mapped.
    shown = name.decode()
    if file.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise BrokenFile(f"{shown} is a link")
    dataset = h5py.h5d.open(file, name)
    layout, kind = dataset.get_create_plist().get_layout(), dataset.get_type()
    is_text = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
    if not is_text and kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        raise BrokenFile(f"dataset {shown} holds neither numbers nor texts of one length")
    if layout == h5py.h5d.VIRTUAL or dataset.get_create_plist().get_external_count():
        raise BrokenFile(f"dataset {shown} lies in another file")
    dtype, shape, offset = np.dtype(dataset.dtype.str), dataset.shape, dataset.get_offset()
    if shape is None or (offset is None and 0 not in shape):
        raise BrokenFile(f"dataset {shown} is not contiguous")
    if offset is not None and offset + dtype.itemsize * prod(shape) > file_bytes:
        raise BrokenFile(f"dataset {shown} ends beyond the file")
    return Location(dtype, shape, offset)


def _attribute(file: h5py.h5f.FileID, number: int) -> tuple[str, Any]:
    attribute = h5py.h5a.open(file, index=number)
    name = attribute.name.decode()
    is_plain = not attribute.dtype.hasobject or h5py.check_string_dtype(attribute.dtype) is not None
    if attribute.shape not in ((), (1,)) or not is_plain:
        raise BrokenFile(f"attribute {name} is neither a number nor a text")
    cell = np.empty(attribute.shape, attribute.dtype)
    attribute.read(cell)
    value = cell.item()
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = parse_json(value.encode())
    return name, value


def read_text(table: np.ndarray) -> list[str]:
    return [value.decode(errors="backslashreplace") for value in table.tolist()]


def json_table(plain: Any) -> np.ndarray:
    return np.array(json.dumps(plain, ensure_ascii=False).encode(), dtype="S")


SHARD_ATTRIBUTES: dict[str, type] = {
    "schema_version": int,
    "fingerprint": str,
    "fingerprint_parts": dict,
    "split": str,
    "index": int,
    "start": int,
    "num_images": int,
    "image_ids_sha256": str,
    "axes": dict,
}


def inspect_shard(path: Path, table: Sequence[Field]) -> Header:
    """Return a shard's header, checked against the schema; a UserError for another schema version.

    Raises a FileNotFoundError or BrokenFile as `read_header`, or where it is no shard.
    """
    header = read_header(path)
    version = header.attributes.get("schema_version")
    if version is not None and version != SCHEMA_VERSION:
        raise UserError(
            "this shard has another schema version",
            where=path,
            expected=SCHEMA_VERSION,
            got=version,
            fix=f"delete {path.parent} and run {command('teacher-cache')}, or use the release that made it",
        )
    for name, kind in SHARD_ATTRIBUTES.items():
        if name not in header.attributes:
            raise BrokenFile(f"attribute {name} is missing")
        if not isinstance(header.attributes[name], kind):
            raise BrokenFile(f"attribute {name} is no {kind.__name__}")
    check_header(header, table, {"image": header.attributes["num_images"]})
    return header


def check_axes(axes: object) -> dict[str, int]:
    """Return the sizes of a file's letters; BrokenFile where they are none."""
    try:
        return convert(axes, Axes)
    except ValueError as error:
        raise BrokenFile(f"its axes: {error}") from None


def check_header(header: Header, table: Sequence[Field], num_rows: Mapping[str, int]) -> None:
    """Raise BrokenFile if dtype or shape of a dataset is not its field's, or fields with equal rows differ in number.

    Args:
        num_rows: What is known of the number of rows, by kind of row.
    """
    axes = check_axes(header.attributes["axes"])
    known = {**num_rows, **({"offset": num_rows["image"] + 1} if "image" in num_rows else {})}
    for field in fields_of(axes, table):
        location = header.locations.get(field.name)
        if location is None:
            raise BrokenFile(f"field {field.name} is missing")
        if location.dtype.kind != "S" if field.is_text else location.dtype != np.dtype(field.dtype):
            raise BrokenFile(f"field {field.name} has dtype {location.dtype}, expected {field.dtype}")
        rows = known.setdefault(field.rows, location.shape[0] if location.shape else -1)
        if location.shape != (expected := shape_of(field, rows, axes)):
            raise BrokenFile(f"field {field.name} has shape {location.shape}, expected {expected}")
