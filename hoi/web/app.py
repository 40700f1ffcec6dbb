"""The predictor's page: drop an image, see who does what with what. docs/app.md has the limits of uploads."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from hoi.datasets import UnreadableImage
from hoi.datasets.images import TooLarge, decode_image
from hoi.errors import UserError
from hoi.machine import free_memory_bytes
from hoi.prediction import Checkpoint, Predictor
from hoi.web.server import (
    HOST,
    MEGABYTE,
    PORT,
    Refused,
    RequestLimiter,
    as_jpeg,
    make_app,
    open_socket,
    read_upload,
    serve,
    upload_name,
)

MAX_UPLOAD_MB = 25.0
MAX_MEGAPIXELS = 50.0
WORK_BYTES_PER_PIXEL = 120
"""Of the detector whose work grows most with an image, the world's."""


class PredictPage:
    """Predicts uploads, one at a time; the size of an image is checked before it is decoded."""

    def __init__(self, predictor: Predictor, max_upload_mb: float, max_megapixels: float) -> None:
        self._predictor = predictor
        self._max_upload_mb, self._max_megapixels = max_upload_mb, max_megapixels
        self._limiter = RequestLimiter()

    @property
    def facts(self) -> dict[str, Any]:
        """What the page says of the student."""
        checkpoint = self._predictor.checkpoint
        return {
            "name": checkpoint.name,
            "folder": checkpoint.folder.name,
            "num_phrases": len(self._predictor.vocabulary),
            "max_upload_mb": f"{self._max_upload_mb:g}",
            "max_megapixels": f"{self._max_megapixels:g}",
        }

    def routes(self) -> list[BaseRoute]:
        return [Route("/predict", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> JSONResponse:
        async with self._limiter.admit():
            name = upload_name(request)
            data = await read_upload(request, int(self._max_upload_mb * MEGABYTE))
            async with self._limiter.turn:
                return JSONResponse(await run_in_threadpool(self._predict, data, name))

    def _predict(self, data: bytes, name: str) -> dict[str, Any]:
        too_much = Refused(413, "this image needs more memory than there is: try a smaller one")
        try:
            pixels = decode_image(data, int(self._max_megapixels * 1e6))
            # Asked first: a system that is out of memory ends the process instead of telling it.
            if pixels.shape[0] * pixels.shape[1] * WORK_BYTES_PER_PIXEL > free_memory_bytes():
                raise too_much
            result = self._predictor.predict([pixels], [name])[0]
        except UnreadableImage as error:
            status = 413 if isinstance(error, TooLarge) else 415
            raise Refused(status, f"this cannot be read as an image: {error}") from None
        except MemoryError:
            raise too_much from None
        except RuntimeError as error:
            # As torch says it, of a CPU's memory and a GPU's.
            if "memory" not in str(error):
                raise
            raise too_much from None
        picture = base64.b64encode(as_jpeg(pixels)).decode()
        return {"result": result.to_dict(), "picture": f"data:image/jpeg;base64,{picture}"}


def serve_app(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    host: str = HOST,
    port: int = PORT,
    allow_hosts: Sequence[str] = (),
    max_upload_mb: float = MAX_UPLOAD_MB,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> None:
    """Serve the predictor's page until it is stopped; by default for this machine only.

    Raises UserError: a limit, the models or the address is wrong.
    """
    for option, limit in (("--max-upload-mb", max_upload_mb), ("--max-megapixels", max_megapixels)):
        if not 0 < limit < float("inf"):
            raise UserError("this limit is wrong", where=option, expected="a number above 0", got=limit)
    # Opened before the models are loaded, which takes seconds: a port in use is reported at once.
    with open_socket(host, port) as listener:
        print(f"loading {checkpoint.folder}", flush=True)
        page = PredictPage(Predictor(checkpoint, device), max_upload_mb, max_megapixels)
        serve(make_app(page.routes(), page.facts, allow_hosts=[host, *allow_hosts]), listener)
