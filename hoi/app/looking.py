"""The page of the predictor: an uploaded image to what is found in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from hoi.app.pictures import as_data_uri
from hoi.app.uploads import MEGABYTE, Refused, Turnstile, read_upload, upload_name
from hoi.datasets.base import UnreadableImage
from hoi.datasets.images import decode_image

if TYPE_CHECKING:
    from hoi.prediction import Predictor


class Looking:
    """Runs the predictor on uploads, one at a time.

    Args:
        predictor: A checkpoint, ready to run.
        max_upload_mb: Largest file.
        max_megapixels: Largest image, looked at before it is decoded.
    """

    def __init__(self, predictor: Predictor, max_upload_mb: float, max_megapixels: float) -> None:
        self._predictor = predictor
        self.max_upload_mb, self.max_megapixels = max_upload_mb, max_megapixels
        self._turnstile = Turnstile()

    @property
    def facts(self) -> dict[str, Any]:
        """What the page says of the student."""
        checkpoint = self._predictor.checkpoint
        return {
            "name": checkpoint.name,
            "folder": checkpoint.folder.name,
            "num_phrases": len(self._predictor.vocabulary),
            "max_upload_mb": f"{self.max_upload_mb:g}",
            "max_megapixels": f"{self.max_megapixels:g}",
        }

    def routes(self) -> list[BaseRoute]:
        """Of the application."""
        return [Route("/predict", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> JSONResponse:
        async with self._turnstile.place():
            name = upload_name(request)
            data = await read_upload(request, int(self.max_upload_mb * MEGABYTE))
            async with self._turnstile.turn:
                return JSONResponse(await run_in_threadpool(self._look, data, name))

    def _look(self, data: bytes, name: str) -> dict[str, Any]:
        try:
            pixels = decode_image(data, int(self.max_megapixels * 1e6))
        except UnreadableImage as error:
            raise Refused(415, f"this cannot be read as an image: {error}") from None
        except MemoryError:
            raise Refused(413, "this image needs more memory than there is") from None
        result = self._predictor.predict([pixels], [name])[0]
        return {"result": result.to_dict(), "picture": as_data_uri(pixels)}
