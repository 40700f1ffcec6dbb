"""Files that are whole or absent, their hashes, locks and JSON.

A kill, a full disk or a crash leaves nothing half-written under a name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hoi.errors import UserError

TEMPORARY_SUFFIX = ".part"
LOCAL_DIR = "local-dir:"
"""How a setting names a folder of weights, after open_clip."""

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


def read_text(path: str | Path, expected: str, fix: str = "check the path", encoding: str = "utf-8") -> str:
    """Return the content of a user's text file; a UserError where it is missing, a folder, or no text."""
    try:
        return Path(path).read_text(encoding=encoding)
    except FileNotFoundError:
        raise UserError("there is no such file", where=path, expected=expected, fix=fix) from None
    except IsADirectoryError:
        raise UserError("this is a folder", where=path, expected=f"a file: {expected}", fix=fix) from None
    except UnicodeDecodeError:
        raise UserError("this is not a text file", where=path, expected=f"{expected}, in UTF-8") from None


def write_json(path: Path, plain: Any, sort_keys: bool = True) -> None:
    """Write plain data to a readable JSON file, atomically; equal data gives equal bytes.

    Keys are sorted, but where their order says something, as that of the splits of a folder.
    """
    write_atomically(path, (json.dumps(plain, indent=1, sort_keys=sort_keys) + "\n").encode())


def read_json(path: Path) -> Any:
    """Return a JSON file's data, or None where there is no such file; a ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


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
def locked(path: Path, what: str, fix: str) -> Iterator[None]:
    """Hold the lock that a file stands for; it ends with the process, so a killed one leaves none behind.

    Raises UserError: another process holds it (told by `what` and `fix`), or the file system has no locks.
    """
    from filelock import FileLock, Timeout

    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Its fallback would be a file that a killed process leaves behind.
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        with _explained(path):
            held = lock.acquire()
    except Timeout:
        raise UserError(what, where=path.parent, fix=fix) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise UserError(
            "this file system has no file locks, so two processes could meet",
            where=path.parent,
            got=error.strerror,
            fix="have it mounted with locks (docs/cluster.md), or write to another folder and copy that",
        ) from None
    with held:
        yield


def find_local(name: str | Path) -> Path:
    """Return the file or folder that a setting names, with or without `local-dir:` before it.

    `hoi/…` is looked for in the installed package where the current folder does not have it, so that
    `local-dir:hoi/world/weights/clip` is understood everywhere.
    """
    path = Path(str(name).removeprefix(LOCAL_DIR))
    packaged = Path(__file__).parents[1] / path
    return packaged if path.parts[:1] == ("hoi",) and not path.exists() and packaged.exists() else path
