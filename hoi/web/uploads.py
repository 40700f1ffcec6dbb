"""A request's body to the bytes of one image, within limits; nothing is written to disk, no name is used as a path."""

from __future__ import annotations

import asyncio
import base64
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from urllib.parse import unquote

import numpy as np
from PIL import Image
from starlette.requests import ClientDisconnect, Request

MEGABYTE = 1_000_000
UPLOAD_TIMEOUT_S = 60.0
MAX_WAITING = 4
NAME_HEADER = "x-file-name"
"""Percent-encoded, since headers are ASCII. The body is the file itself: no form, whose parser would spool to disk."""
MAX_NAME = 255


class Refused(Exception):
    """A request that is not served; the text is for its user.

    Args:
        status: HTTP's.
        reason: What is wrong, and what would be right.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def upload_name(request: Request) -> str:
    """The file name of an upload, which is shown and stands in the result, and nothing else.

    Raises:
        Refused: it is a path, too long, or holds control characters: no browser sends such a name by itself.
    """
    name = unquote(request.headers.get(NAME_HEADER, "image"), errors="replace")
    if not name or len(name) > MAX_NAME:
        raise Refused(400, f"the file name is refused: 1 to {MAX_NAME} letters are expected")
    if name in (".", "..") or any(letter in "/\\" for letter in name):
        raise Refused(400, "the file name is refused: it is a path; a plain file name is expected")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise Refused(400, "the file name is refused: it holds control characters")
    return name


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """The body of a request, read in pieces and no further than the limit.

    Raises:
        Refused: it says that it is larger, turns out to be larger, is empty, breaks off, or takes too long.
    """
    too_large = Refused(413, f"the file is larger than {max_bytes / MEGABYTE:g} MB")
    told = request.headers.get("content-length")
    if told is not None and (not told.isdecimal() or int(told) > max_bytes):
        raise too_large
    body = bytearray()
    try:
        async with _deadline(UPLOAD_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the upload took longer than {UPLOAD_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the upload broke off") from None
    if not body:
        raise Refused(400, "the file is empty")
    return bytes(body)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, which Python 3.10 lacks."""
    task, late = asyncio.current_task(), False
    if task is None:
        raise RuntimeError("a deadline needs a task")

    def end() -> None:
        nonlocal late
        late = True
        task.cancel()

    handle = asyncio.get_running_loop().call_later(seconds, end)
    try:
        yield
    except asyncio.CancelledError:
        if late:
            raise TimeoutError from None
        raise
    finally:
        handle.cancel()


class Turnstile:
    """Lets one request at a time at the models, a few wait, and turns others away before their body is read.

    Args:
        max_waiting: How many may wait; each holds its upload in memory.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._most = 1 + max_waiting
        self._inside = 0
        self.turn = asyncio.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place inside or in the queue.

        Raises:
            Refused: there is none.
        """
        if self._inside >= self._most:
            raise Refused(503, "other images are being looked at: try again in a moment")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


LONGEST_SIDE_PX = 1600
QUALITY = 92


def as_jpeg(pixels: np.ndarray) -> bytes:
    """Image, uint8 [H, W, 3], to a JPEG whose longest side is at most `LONGEST_SIDE_PX`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.LANCZOS)
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def as_data_uri(pixels: np.ndarray) -> str:
    """The same as a `data:` address, for an answer that holds all."""
    return "data:image/jpeg;base64," + base64.b64encode(as_jpeg(pixels)).decode()
