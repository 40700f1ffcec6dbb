"""The checking page: triplets one after the other, marked as right or wrong, and what the marks say."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from hoi.app.pictures import as_jpeg
from hoi.app.uploads import Refused, read_upload
from hoi.checking.session import VERDICTS, Session, results_table
from hoi.datasets.base import UnreadableImage
from hoi.vocabulary import NO_OBJECT

KEPT_PICTURES = 8
MAX_ASK_BYTES = 1000


class Marking:
    """Serves one session of marks; what it keeps lies on disk after each.

    Args:
        session: The marks.
        read: An image id to its pixels, uint8 [H, W, 3]; raises UnreadableImage.
        export: Writes annotations, checked predictions and results; returns their names.
    """

    def __init__(self, session: Session, read: Callable[[str], np.ndarray], export: Callable[[], list[str]]) -> None:
        self._session, self._read, self._export = session, read, export
        self._pictures: OrderedDict[str, tuple[bytes, tuple[int, int]] | str] = OrderedDict()
        self._reading = Lock()

    def routes(self) -> list[BaseRoute]:
        """Of the application."""
        return [
            Route("/check/state", self._state),
            Route("/check/image/{row:int}", self._image),
            Route("/check/mark", self._mark, methods=["POST"]),
            Route("/check/undo", self._undo, methods=["POST"]),
            Route("/check/results", self._results),
            Route("/check/annotations.jsonl", self._annotations),
            Route("/check/export", self._write, methods=["POST"]),
        ]

    async def _state(self, _: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(self._plain))

    def _plain(self) -> dict[str, Any]:
        session, row = self._session, self._session.next_row
        given = list(session.marks.values())
        return {
            "num_asked": len(session.sample.asked),
            "num_marked": len(given),
            "num_skipped": given.count("skip"),
            "triplet": None if row is None else self._triplet(row),
        }

    def _triplet(self, row: int) -> dict[str, Any]:
        found = self._session.candidates
        verb, thing = found.interactions[found.phrase[row]]
        picture = self._picture(found.image_ids[row])
        seen = {"error": picture} if isinstance(picture, str) else {"size_hw": list(picture[1])}
        return {
            "row": row,
            # A name of a file system may hold what no text does.
            "image_id": found.image_ids[row].encode(errors="replace").decode(),
            "human_xyxy": found.boxes_h[row].tolist(),
            "object_xyxy": found.boxes_o[row].tolist(),
            "verb": verb.replace("_", " "),
            "object": None if thing == NO_OBJECT else thing.replace("_", " "),
            **seen,
        }

    def _picture(self, image_id: str) -> tuple[bytes, tuple[int, int]] | str:
        """A JPEG and the image's height and width, or the reason why there is none."""
        # The question and its image are asked for at once, from two threads.
        with self._reading:
            if image_id in self._pictures:
                self._pictures.move_to_end(image_id)
                return self._pictures[image_id]
            try:
                pixels = self._read(image_id)
                made: tuple[bytes, tuple[int, int]] | str = (as_jpeg(pixels), (pixels.shape[0], pixels.shape[1]))
            except (UnreadableImage, OSError) as error:
                made = str(error)
            except MemoryError:
                made = "this image needs more memory than there is"
            self._pictures[image_id] = made
            while len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)
            return made

    async def _image(self, request: Request) -> Response:
        row = request.path_params["row"]
        if row not in self._session.sample.asked:
            raise Refused(404, "this triplet is not asked")
        picture = await run_in_threadpool(self._picture, self._session.candidates.image_ids[row])
        if isinstance(picture, str):
            raise Refused(415, picture)
        return Response(picture[0], media_type="image/jpeg")

    async def _mark(self, request: Request) -> JSONResponse:
        row, verdict = _wanted(await read_upload(request, MAX_ASK_BYTES))
        try:
            self._session.mark(row, verdict)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return await self._state(request)

    async def _undo(self, request: Request) -> JSONResponse:
        self._session.undo()
        return await self._state(request)

    async def _results(self, _: Request) -> JSONResponse:
        results = await run_in_threadpool(self._session.results)
        return JSONResponse({"rows": results_table(results, self._session.candidates.phrases)})

    async def _annotations(self, _: Request) -> Response:
        headers = {"Content-Disposition": 'attachment; filename="annotations.jsonl"'}
        return Response(self._session.annotations(), media_type="application/jsonl", headers=headers)

    async def _write(self, _: Request) -> JSONResponse:
        return JSONResponse({"files": await run_in_threadpool(self._export)})


def _wanted(body: bytes) -> tuple[int, Any]:
    """`{"row": int, "verdict": ...}` to both."""
    try:
        plain = json.loads(body)
        row, verdict = plain["row"], plain["verdict"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(400, 'this is no mark: {"row": number, "verdict": text} is expected') from None
    if type(row) is not int or verdict not in VERDICTS:
        raise Refused(400, f"this is no mark: verdict is one of {', '.join(VERDICTS)}")
    return row, verdict
