"""Files that are whole or absent, their hashes, locks and JSON.

A kill, a full disk or a crash leaves nothing half-written under a name.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import hashlib
import json
import os
import re
import stat
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec

from hoi.errors import UserError

TEMPORARY_SUFFIX, LOCK = ".part", ".lock"
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
"""How a setting names a folder of weights, or a repository of the hub, after open_clip."""

MAX_BYTES = 2 << 30
"""Of a file that is read as a whole, unpacked."""
GZIP = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
"""Kinds of values in records, as `read_json` checks them."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to write into, which takes the path's place when it is whole.

    It is written under a temporary name in the same folder, flushed, fsynced and renamed; then the folder is fsynced.

    Raises UserError: the disk is full or the folder not writable; the temporary file is gone, the old one untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write bytes to a file that is whole or absent; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of the file system that a user can mend into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what, where = "the disk is full", path
            fix = "free space, then run the same command again: what is finished is kept"
        elif error.errno in _FORBIDDEN:
            what, where = "the folder cannot be written", path.parent
            fix = "mend its permissions, or choose another folder in the pipeline file"
        elif error.errno in _NO_FOLDER:
            what, where = "there is a file where a folder should be", path.parent
            fix = "remove it, or choose another folder in the pipeline file"
        else:
            raise
        raise UserError(what, where=where, got=error.strerror, fix=fix) from error


def remove_file(path: Path) -> None:
    """Remove a file, if it is there; a UserError where the folder cannot be written."""
    with _explained(path):
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, within: str = "") -> None:
    """Remove what killed processes left half-written in a folder that this one alone writes into.

    Below it, too, where `within` is `*/` (one level) or `**/` (all).
    """
    for path in list(folder.glob(f"{within}.*{TEMPORARY_SUFFIX}")):
        remove_file(path)


def size_text(num_bytes: float, digits: int = 1) -> str:
    """Return a number of bytes for a reader, in the unit that leaves digits before the point."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.{digits}f} {unit}"
    return f"{num_bytes:.0f} bytes"


def append_line(path: Path, line: str) -> None:
    """Add a line to a log that one process writes; a UserError where the disk is full or forbids it."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_file(path: str | Path, expected: str, fix: str | None = "check the path") -> Iterator[IO[bytes]]:
    """Open a user's file to read its bytes.

    Raises:
        UserError: it is missing, cannot be read, or is no regular file: a pipe could wait, and a device never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("there is no such file", where=path, expected=expected, fix=fix) from None
    except (OSError, ValueError) as error:
        raise UserError("this file cannot be read", where=path, expected=expected, got=error, fix=fix) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "this is a folder" if stat.S_ISDIR(mode) else "this is no regular file"
        raise UserError(what, where=path, expected=f"a file: {expected}", fix=fix)
    with os.fdopen(descriptor, "rb") as file:
        yield file


@contextlib.contextmanager
def open_unpacked(path: str | Path, expected: str, fix: str | None = "check the path") -> Iterator[IO[bytes]]:
    """Open a user's file, gzipped or not, to read its bytes without a byte order mark.

    Raises:
        UserError: as `open_file`, or the gzip is damaged or larger than `MAX_BYTES` when unpacked.
    """
    with open_file(path, expected, fix) as packed:
        is_packed = packed.read(2) == GZIP
        packed.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=packed) if is_packed else packed  # type: ignore[assignment]
        try:
            if file.read(3) != BYTE_ORDER_MARK:
                file.seek(0)
            yield file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            what, fix = "this gzip file is truncated or damaged", "copy or write it again"
            raise UserError(what, where=path, got=error, fix=fix) from None


def read_bytes(path: str | Path, expected: str, fix: str | None = "check the path") -> bytes:
    """Return a user's file, unpacked if it is gzipped; a UserError as `open_unpacked`, or if it is too large."""
    with open_unpacked(path, expected, fix) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError("this file is too large", where=path, expected=f"at most {MAX_BYTES >> 30} GiB unpacked")
    return data


def read_text(path: str | Path, expected: str, fix: str | None = "check the path", errors: str = "strict") -> str:
    """Return the content of a user's text file in UTF-8; a UserError as `read_bytes`, or if it is no text."""
    try:
        return read_bytes(path, expected, fix).decode("utf-8", errors)
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected=f"{expected}, in UTF-8", fix=fix) from None


def read_lines(path: str | Path, expected: str, fix: str | None = "check the path") -> list[str]:
    """Return the lines of a user's text file without their ends; only a line feed ends one, after it CR is dropped."""
    return [line.removesuffix("\r") for line in read_text(path, expected, fix).split("\n")]


def write_json(path: Path, plain: Any, sort_keys: bool = True) -> None:
    """Write plain data to a readable JSON file, atomically; equal data gives equal bytes.

    Keys are sorted, but where their order says something, as that of the splits of a folder.
    """
    write_atomically(path, (json.dumps(plain, indent=1, sort_keys=sort_keys) + "\n").encode())


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def parse_json(data: bytes, kind: Any = Any, *, any_text: bool = False) -> Any:
    """Return JSON as plain data, or as `kind`: a dataclass or another type that msgspec knows, checked strictly.

    Plain data may hold NaN and infinity, as Python writes them, and file names that are no UTF-8, escaped; of `kind`,
    the latter with `any_text` alone.

    Raises:
        ValueError: this is no JSON, or not of the kind; the text says where.
    """
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        return _decoder(kind).decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        # msgspec is too strict for these.
        if kind is not Any and not any_text:
            raise ValueError(_short(error)) from None
    try:
        plain = json.loads(data, parse_constant=None if kind is Any else _refuse_constant)
        return plain if kind is Any else convert(plain, kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def convert(plain: Any, kind: Any) -> Any:
    """Return plain data as `kind`; a ValueError where it is none, and the text says where."""
    try:
        return msgspec.convert(plain, kind)
    except msgspec.MsgspecError as error:
        raise ValueError(_short(error)) from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _short(error: BaseException) -> str:
    # msgspec shows the pattern of a name, which says little to a reader.
    text = re.sub(r"`str` matching regex '.*'", "a plain name", str(error))
    return "it is nested too deeply" if isinstance(error, RecursionError) else text


def read_json(path: Path, kind: Any = Any, what: str = "this file", fix: str | None = None) -> Any:
    """Return a JSON file, plain or as `kind` (see `parse_json`), or None where there is no such file.

    Args:
        what: The file's name in messages.

    Raises:
        UserError: it is no regular file, too large, no JSON, or not of the kind.
    """
    if not os.path.lexists(path):
        return None
    try:
        return parse_json(read_bytes(path, "JSON", fix), kind)
    except ValueError as error:
        raise UserError(f"{what} is damaged", where=path, got=str(error)[:300], fix=fix) from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(plain: Any) -> str:
    """Return the SHA-256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def sole_writer(
    folder: Path,
    what: str = "another run writes into this folder",
    fix: str = "wait for it, or set another output",
    within: str = "",
) -> Iterator[None]:
    """Keep other processes from writing into a folder, and clear what killed ones left (see `remove_leftovers`).

    The lock ends with the process, so a killed one leaves none behind.

    Raises UserError: another process holds it (told by `what` and `fix`), or the file system has no locks.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    with _explained(path):
        folder.mkdir(parents=True, exist_ok=True)
    # Its fallback would be a file that a killed process leaves behind.
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        with _explained(path):
            held = lock.acquire()
    except Timeout:
        raise UserError(what, where=folder, fix=fix) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            "this file system has no file locks, so two processes could meet",
            where=folder,
            got=error.strerror,
            fix="have it mounted with locks (docs/cluster.md), or write to another folder and copy that",
        ) from None
    with held:
        remove_leftovers(folder, within)
        yield


def at_home(text: str) -> str:
    """Return the text with the home folder for a tilde that a path in it starts with, `local-dir:` before it or not."""
    before, path = (LOCAL_DIR, text[len(LOCAL_DIR) :]) if text.startswith(LOCAL_DIR) else ("", text)
    return before + os.path.expanduser(path) if re.match(r"~[\w.-]*(/|$)", path) else text


def check_folder(folder: Path) -> None:
    """Raise a UserError if a folder of weights holds a pipe or a device, for which the libraries would wait."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError("this is no regular file", where=path, expected="files of a model", fix="remove it")


def find_local(name: str | Path) -> Path:
    """Return the file or folder that a setting names, with or without `local-dir:` before it.

    `hoi/…` is looked for in the installed package where the current folder does not have it, so that
    `local-dir:hoi/world/weights/clip` is understood everywhere.
    """
    path = Path(str(name).removeprefix(LOCAL_DIR))
    packaged = Path(__file__).parents[1] / path
    return packaged if path.parts[:1] == ("hoi",) and not path.exists() and packaged.exists() else path
