"""Bytes to files that are whole or absent: a kill, a full disk or a crash leaves nothing half-written under a name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hoi.errors import UserError

TEMPORARY_SUFFIX = ".part"
WORKERS_NAME = ".workers"
"""Folder in the cache folder in which a build and its workers find one another, while it runs."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the path's place when it is whole: temporary name in the same folder, flush,
    fsync, rename, fsync of the folder.

    Raises:
        UserError: the disk is full or the folder cannot be written; the temporary file is gone, the old file untouched.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
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
    except OSError as error:
        raise _explain(error, path) from error


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Bytes to a file that is whole or absent; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def _explain(error: OSError, path: Path) -> Exception:
    if error.errno in _FULL:
        return UserError(
            "the disk is full",
            where=path,
            got=error.strerror,
            fix="free space, then run the same command again: what is finished is kept",
        )
    if error.errno in _FORBIDDEN:
        return UserError(
            "the folder cannot be written",
            where=path.parent,
            got=error.strerror,
            fix="mend its permissions, or choose another folder in the pipeline file",
        )
    if error.errno in _NO_FOLDER:
        return UserError(
            "there is a file where a folder should be",
            where=path.parent,
            got=error.strerror,
            fix="remove it, or choose another folder in the pipeline file",
        )
    return error


def remove_file(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _explain(error, path) from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a log that one process writes.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _explain(error, path) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, plain: Any, sort_keys: bool = True) -> None:
    """Plain data to a readable JSON file, atomically; equal data gives equal bytes.

    Args:
        path, plain: Where, and what.
        sort_keys: False for data whose order of keys says something, as the splits of a folder.
    """
    write_atomically(path, (json.dumps(plain, indent=1, sort_keys=sort_keys) + "\n").encode())


def read_json(path: Path) -> Any:
    """A JSON file's data, or None where there is no such file.

    Raises:
        ValueError: the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def sole_builder(folder: Path) -> Iterator[None]:
    """Keeps a second builder out of a cache folder while the first one runs, and clears what killed processes left.

    The lock belongs to the process, so a killed builder leaves none behind.

    Raises:
        UserError: another process builds in this folder now, or its file system has no locks to tell.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise _explain(error, folder / ".lock") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is building this cache", where=folder, fix="wait for it, or set another cache.folder"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                "this file system has no file locks, so two builders could meet",
                where=folder,
                got=error.strerror,
                fix="have it mounted with locks (docs/cluster.md), or build in another cache.folder and copy that",
            ) from None
        _clear(folder)
        yield
        # Of workers that died while others went on. After a mistake some may still be writing, so not then.
        _clear(folder)


def _clear(folder: Path) -> None:
    for leftover in folder.glob(f"*/.*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder / WORKERS_NAME, ignore_errors=True)
