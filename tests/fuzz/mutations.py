"""Hostile variants of the structures that the product reads: JSON, JSON lines, YAML and HDF5 files, and raw bytes.

Every function returns a list of (description, writer); a writer changes the file at a path.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

Variant = tuple[str, Callable[[Path], None]]

DELETED, DOUBLED, EMPTIED, NEW_KEY, DEEP = (object() for _ in range(5))
"""What is done to a node, where no value replaces it."""
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
    *(10**23, 1 << 60, -(1 << 63), 1 << 31, 99_999_999_999),
    *(
        "",
        "x",
        "../x",
        "/etc/passwd",
        "a\0b",
        "\n",
        "é" * 200,
        "a" * 10_000,
        "\ud800",
        "{",
        "$(id)",
        "2001-99-99",
        "0x_",
    ),
    *([], {}, [None], [[]], [1, 2, 3, 4], {"a": 1}, {"": None}, [[[[[[1]]]]]], ["x"] * 1000, DEEP),
    *(DELETED, DOUBLED, EMPTIED, NEW_KEY),
]
DEPTH = 3000


def nodes(plain: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every node of nested lists and mappings, the root first."""
    yield place
    children = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in children:
        yield from nodes(value, (*place, key))


def replaced(plain: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy in which one node is replaced, or deleted, doubled, emptied or added to."""
    if not place:
        return _changed(plain, value)
    plain = copy.deepcopy(plain)
    parent = plain
    for key in place[:-1]:
        parent = parent[key]
    if value is DELETED:
        del parent[place[-1]]
    else:
        parent[place[-1]] = _changed(parent[place[-1]], value)
    return plain


def _changed(node: Any, value: Any) -> Any:
    if value is DOUBLED:
        return node * 2 if isinstance(node, list | str) else [node, node]
    if value is EMPTIED:
        return type(node)() if node is not None else ""
    if value is NEW_KEY:
        return {**node, "unheard_of": 1} if isinstance(node, dict) else {"unheard_of": node}
    if value is DELETED:
        return None
    return "DEEP" if value is DEEP else value


def _dump(plain: Any) -> bytes:
    text = json.dumps(plain)
    return text.replace('"DEEP"', "[" * DEPTH + "]" * DEPTH).encode()


def _shown(value: Any) -> str:
    special = {id(DELETED): "deleted", id(DOUBLED): "doubled", id(EMPTIED): "emptied", id(NEW_KEY): "a new key"}
    return special.get(id(value)) or ("deep" if value is DEEP else repr(value)[:40])


def json_variants(data: bytes) -> list[Variant]:
    """Return every node of a JSON file replaced by every hostile value, and the file's raw variants."""
    plain = json.loads(data)
    variants: list[Variant] = raw_variants(data)
    for place in nodes(plain):
        for value in HOSTILE:
            variants.append(
                (f"{'.'.join(map(str, place)) or 'root'} = {_shown(value)}", _json_writer(plain, place, value))
            )
    return variants


def _json_writer(plain: Any, place: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    return lambda path: write(path, _dump(replaced(plain, place, value)))


def lines_variants(data: bytes) -> list[Variant]:
    """Return every node of the first, a middle and the last line replaced, and the file's raw variants."""
    lines = data.splitlines(keepends=True)
    variants: list[Variant] = raw_variants(data)
    for number in sorted({0, len(lines) // 2, len(lines) - 1}):
        plain = json.loads(lines[number])
        for place in nodes(plain):
            for value in HOSTILE:
                name = f"line {number + 1} {'.'.join(map(str, place)) or 'root'} = {_shown(value)}"
                variants.append((name, _line_writer(lines, number, plain, place, value)))
    return variants


def _line_writer(
    lines: list[bytes], number: int, plain: Any, place: tuple[Any, ...], value: Any
) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        changed = _dump(replaced(plain, place, value)) + b"\n"
        write(path, b"".join([*lines[:number], changed, *lines[number + 1 :]]))

    return writer


YAML_SCALARS = (
    *("2001-99-99", "!!int x", "!!timestamp x", "0x_", "9" * 5000, "[" * 3000, ".inf", "-.inf", ".nan", "1e999", "~"),
    *("!!python/object/apply:os.system [id]", "*nothing", "&a [*a]", "!!binary x", "!!set {a, a}", "99999999999", "-1"),
    *("0", "yes", "''", "'{'", "'../x'", "'/etc/passwd'", "{a: 1}", "[]", "[1, 2]", "1.5", "x", "10" * 12, "? x"),
)


def yaml_variants(data: bytes) -> list[Variant]:
    """Return every node of a YAML file replaced by hostile scalars, and the file's raw variants."""
    plain = yaml.safe_load(data)
    variants: list[Variant] = raw_variants(data)
    for place in nodes(plain):
        for scalar in YAML_SCALARS:
            name = f"{'.'.join(map(str, place)) or 'root'} = {scalar[:30]}"
            variants.append((name, _yaml_writer(plain, place, scalar)))
    return variants


def _yaml_writer(plain: Any, place: tuple[Any, ...], scalar: str) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        text = yaml.safe_dump(replaced(plain, place, "HOSTILE"), default_flow_style=True, width=10**9)
        write(path, text.replace("HOSTILE", scalar).encode())

    return writer


def raw_variants(data: bytes) -> list[Variant]:
    """Return a file cut, doubled, of other encodings, gzipped, and with bytes flipped at seeded places."""
    rng = np.random.default_rng(len(data))
    contents = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "one byte short": data[:-1],
        "twice": data * 2,
        "byte order mark": b"\xef\xbb\xbf" + data,
        "UTF-16": data.decode("utf-8", "replace").encode("utf-16"),
        "CRLF": data.replace(b"\n", b"\r\n"),
        "gzip": gzip.compress(data),
        "gzip, cut": gzip.compress(data)[:-9],
        "gzip of nothing": gzip.compress(b""),
        "zeros": bytes(1000),
        "brackets": b"[" * 100_000,
        "braces": b'{"a":' * 100_000,
        "digits": b"9" * 100_000,
        "newlines": b"\n" * 100_000,
    }
    variants: list[Variant] = [(name, _bytes_writer(content)) for name, content in contents.items()]
    for _ in range(30 if data else 0):
        flipped, place = bytearray(data), int(rng.integers(len(data)))
        flipped[place] ^= 1 << int(rng.integers(8))
        variants.append((f"a bit of byte {place}", _bytes_writer(bytes(flipped))))
    return variants


def _bytes_writer(content: bytes) -> Callable[[Path], None]:
    return lambda path: write(path, content)


def write(path: Path, content: bytes) -> None:
    # Not through a link that a variant before left.
    path.unlink(missing_ok=True)
    path.write_bytes(content)


INTEGERS = (0, -1, 1, 7, 255, 1 << 20, (1 << 31) - 1, 1 << 60, -(1 << 62))
FLOATS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e30, 6e4)


def hdf5_variants(path: Path) -> list[Variant]:
    """Return an HDF5 file with other values, types, shapes and storage for each dataset, and other attributes."""
    variants: list[Variant] = raw_variants(path.read_bytes())
    with h5py.File(path, "r", locking=False) as file:
        kinds = {name: dataset.dtype.kind for name, dataset in file.items()}
        attributes = list(file.attrs)
    for name, kind in kinds.items():
        for value in (
            INTEGERS if kind in "iu" else FLOATS if kind == "f" else (b"", b"\xff\xfe", b"../x", b"{}", b"[[[")
        ):
            for where in ("first", "last", "all"):
                variants.append((f"{name}, {where} = {value!r}", _in_place(name, value, where)))
        variants += [(f"{name}: {label}", _stored(name, make)) for label, make in STORED.items()]
    for name in attributes:
        values = (None, 0, -1, 10**9, float("nan"), "", "x", "{}", "[[", '{"K": 1000000000}', '{"k": -1}', b"\xff")
        variants += [(f"attribute {name} = {value!r}", _attribute(name, value)) for value in values]
        variants.append((f"attribute {name} = an array", _attribute(name, np.zeros(1000))))
    return variants


def _in_place(name: str, value: Any, where: str) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        with h5py.File(path, "r+", locking=False) as file:
            dataset = file[name]
            if not dataset.size:
                return
            table = dataset[()]
            flat = table.reshape(-1)
            rows = {"first": slice(0, 1), "last": slice(-1, None), "all": slice(None)}[where]
            with np.errstate(over="ignore"):
                flat[rows] = np.array(value).astype(np.dtype(flat.dtype.str))
            dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(flat), dataset.id.get_type())

    return writer


def _stored(name: str, make: Callable[[h5py.File, str, np.ndarray, Path], None]) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        with h5py.File(path, "r+", locking=False) as file:
            table = file[name][()]
            del file[name]
            make(file, name, np.asarray(table), path)

    return writer


def _external(file: h5py.File, name: str, table: np.ndarray, path: Path) -> None:
    file.create_dataset(name, table.shape, table.dtype, external=[("/etc/passwd", 0, max(1, table.nbytes))])


def _virtual(file: h5py.File, name: str, table: np.ndarray, path: Path) -> None:
    layout = h5py.VirtualLayout(table.shape, table.dtype)
    if table.shape and table.size:
        layout[:] = h5py.VirtualSource("elsewhere.h5", name, table.shape)
    file.create_virtual_dataset(name, layout)


STORED: dict[str, Callable[[h5py.File, str, np.ndarray, Path], None]] = {
    "deleted": lambda file, name, table, path: None,
    "variable-length texts": lambda file, name, table, path: file.create_dataset(
        name, data=np.full(table.shape, "x", object), dtype=h5py.string_dtype()
    ),
    "variable-length numbers": lambda file, name, table, path: file.create_dataset(
        name, table.shape, h5py.vlen_dtype(np.int64)
    ),
    "references": lambda file, name, table, path: file.create_dataset(name, table.shape, h5py.ref_dtype),
    "compound": lambda file, name, table, path: file.create_dataset(name, table.shape, np.dtype([("a", "i4")])),
    "other integers": lambda file, name, table, path: file.create_dataset(name, table.shape, "<i2"),
    "doubles": lambda file, name, table, path: file.create_dataset(name, table.shape, "<f8"),
    "big-endian": lambda file, name, table, path: file.create_dataset(name, table.shape, ">i8"),
    "texts": lambda file, name, table, path: file.create_dataset(name, table.shape, "S3"),
    "one row more": lambda file, name, table, path: file.create_dataset(
        name, (table.shape[0] + 1 if table.shape else 1, *table.shape[1:]), table.dtype
    ),
    "no row": lambda file, name, table, path: file.create_dataset(name, (0, *table.shape[1:]), table.dtype),
    "one number": lambda file, name, table, path: file.create_dataset(name, (), table.dtype),
    "no number": lambda file, name, table, path: file.create_dataset(name, data=h5py.Empty("f4")),
    "one axis more": lambda file, name, table, path: file.create_dataset(name, (*table.shape, 1), table.dtype),
    "a group": lambda file, name, table, path: file.create_group(name) and None,
    "compressed": lambda file, name, table, path: file.create_dataset(
        name, (table.shape or (1,)), table.dtype, chunks=True, compression="gzip"
    ),
    "huge, unwritten": lambda file, name, table, path: file.create_dataset(
        name, (1 << 40,), table.dtype, chunks=(1 << 10,)
    ),
    "a soft link": lambda file, name, table, path: file.__setitem__(name, h5py.SoftLink("/elsewhere")),
    "an external link": lambda file, name, table, path: file.__setitem__(
        name, h5py.ExternalLink("bank.h5", "/prompts")
    ),
    "external storage": _external,
    "a virtual set": _virtual,
}


def _attribute(name: str, value: Any) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        with h5py.File(path, "r+", locking=False) as file:
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value

    return writer
