"""Read MATLAB files in another process: a damaged one can crash scipy's reader, or make it use up the memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np

from hoi.errors import UserError
from hoi.files import MAX_BYTES, open_file

MAX_MEMORY, MAX_SECONDS = 4 << 30, 600
"""Of the process that reads."""
MAX_DEPTH = 30
HEADER = struct.Struct("<QQ")
"""Before each file's content: how many bytes of JSON and of numbers it has."""


def load_mats(paths: Sequence[Path], keys: Sequence[str], *, plain: bool = False) -> Iterator[dict[str, Any]]:
    """Yield some variables of each MATLAB file: arrays, of objects for cells, and structs with their fields as names.

    Args:
        plain: Return arrays of one value as that value, and leave out axes of length 1.

    Raises:
        UserError: no such file, no MATLAB file, a damaged one, or one without these variables.
    """
    expected = f"a MATLAB file with {' and '.join(keys)}"
    options = {"squeeze_me": plain, "struct_as_record": False}
    root = str(Path(__file__).parents[1])
    places = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    settings = {"PYTHONPATH": places, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hoi.matlab", json.dumps([list(keys), options])]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env={**os.environ, **settings}
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        clock = threading.Timer(MAX_SECONDS, reader.kill)
        clock.start()
        try:
            for path in paths:
                with open_file(path, expected) as file:
                    if os.fstat(file.fileno()).st_size > MAX_BYTES:
                        most = f"at most {MAX_BYTES >> 30} GiB"
                        raise UserError("this file is too large", where=path, expected=most)
                content, reason = _ask(reader, path)
                if content is None and clock.finished.is_set():
                    reason = f"reading it takes longer than {MAX_SECONDS} s"
                if content is None:
                    raise UserError("this MATLAB file cannot be read", where=path, expected=expected, got=reason)
                missing = [key for key in keys if key not in content]
                if missing:
                    what, got = "this MATLAB file holds something else", f"no {missing[0]}"
                    raise UserError(what, where=path, expected=expected, got=got)
                yield content
        finally:
            clock.cancel()
            reader.kill()
            with contextlib.suppress(BrokenPipeError):
                reader.stdin.close()


def load_mat(path: Path, keys: Sequence[str], *, plain: bool = False) -> dict[str, Any]:
    """Return some variables of a MATLAB file; see `load_mats`."""
    [content] = load_mats([path], keys, plain=plain)
    return content


def _ask(reader: subprocess.Popen[bytes], path: Path) -> tuple[dict[str, Any] | None, str]:
    assert reader.stdin is not None
    assert reader.stdout is not None
    try:
        reader.stdin.write(json.dumps(os.path.abspath(path)).encode() + b"\n")
        reader.stdin.flush()
        header = reader.stdout.read(HEADER.size)
        if len(header) == HEADER.size:
            num_text, num_numbers = HEADER.unpack(header)
            text, numbers = reader.stdout.read(num_text), reader.stdout.read(num_numbers)
            if len(numbers) == num_numbers:
                content, error = json.loads(text)
                return (None, error) if content is None else (_object(content, numbers), "")
    except BrokenPipeError:
        pass
    code = reader.wait()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return None, f"it is damaged, and its reader was ended by it ({how})"


def _object(part: Any, numbers: bytes) -> Any:
    if not isinstance(part, list):
        return part
    kind, *content = part
    if kind == "struct":
        return SimpleNamespace(**{name: _object(value, numbers) for name, value in content[0].items()})
    if kind == "variables":
        return {name: _object(value, numbers) for name, value in content[0].items()}
    if kind == "numbers":
        dtype, shape, start = content
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(numbers, np.dtype(dtype), count, start).reshape(shape) if count else np.zeros(shape, dtype)
    shape, values = content
    array = np.empty(len(values), object)
    for row, value in enumerate(values):
        array[row] = _object(value, numbers)
    return array.reshape(shape)


def _plain(value: Any, numbers: bytearray, depth: int = 0) -> Any:
    """Return a value of scipy's as JSON; the content of arrays goes to `numbers`."""
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if hasattr(value, "_fieldnames"):
        return ["struct", {name: _plain(getattr(value, name), numbers, depth + 1) for name in value._fieldnames}]
    if not isinstance(value, np.ndarray):
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"it holds a {type(value).__name__}")
        return value
    if value.dtype.kind in "biuf":
        numbers.extend(bytes(-len(numbers) % 16))
        start = len(numbers)
        numbers.extend(np.ascontiguousarray(value).tobytes())
        return ["numbers", value.dtype.str, value.shape, start]
    if value.dtype.kind not in "OU":
        raise ValueError(f"it holds an array of {value.dtype}")
    return ["objects", value.shape, [_plain(each, numbers, depth + 1) for each in value.ravel()]]


def _serve(source: IO[bytes], target: IO[bytes]) -> None:
    import resource

    from scipy.io import loadmat

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keys, options = json.loads(sys.argv[1])
    for line in source:
        numbers, error = bytearray(), ""
        try:
            read = loadmat(json.loads(line), variable_names=keys, **options)
            content = ["variables", {key: _plain(read[key], numbers) for key in keys if key in read}]
        # Whatever a damaged file makes of scipy's reader is told by the process that asked.
        except Exception as problem:
            content, error = None, f"{type(problem).__name__}: {problem}"[:300]
            numbers.clear()
        text = json.dumps([content, error]).encode()
        target.write(HEADER.pack(len(text), len(numbers)) + text + numbers)
        target.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
