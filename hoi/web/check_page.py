"""The checking page: mark a sample of predictions, and estimate precision and AP of all. docs/app.md has the method."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from hoi.checking.estimates import Estimate
from hoi.checking.session import VERDICTS, Candidates, Session, SessionKey, read_candidates
from hoi.config import PipelineConfig
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.datasets.images import read_image
from hoi.datasets.names import leaves_folder
from hoi.errors import UserError, nearest
from hoi.files import read_json, write_atomically, write_json
from hoi.vocabulary import NO_OBJECT
from hoi.web.server import HOST, PORT, Refused, as_jpeg, make_app, open_socket, read_upload, serve

KEPT_PICTURES = 8
MAX_MARK_BYTES = 1000
MARKS, ANNOTATIONS, CHECKED, RESULTS = "marks.json", "annotations.jsonl", "checked.jsonl", "check.json"
LEAST_MARKS = 10
MAX_IMAGE_PIXELS = 100_000_000
ReadImage = Callable[[str], np.ndarray]
"""From an image id to uint8 [H, W, 3]; raises UnreadableImage."""
Shown = tuple[bytes, tuple[int, int]] | str
"""A JPEG with the image's height and width, or the reason why there is none."""


class MarkingPage:
    """Serves one session of marks; `export` writes its results and returns their paths."""

    def __init__(self, session: Session, read: ReadImage, export: Callable[[], list[str]]) -> None:
        self._session, self._read, self._export = session, read, export
        self._pictures: OrderedDict[str, Shown] = OrderedDict()
        self._reading = Lock()

    def routes(self) -> list[BaseRoute]:
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
        return JSONResponse(await run_in_threadpool(self._plain_state))

    def _plain_state(self) -> dict[str, Any]:
        session, row = self._session, self._session.next_row
        verdicts = list(session.marks.values())
        return {
            "num_asked": len(session.sample.asked),
            "num_marked": len(verdicts),
            "num_skipped": verdicts.count("skip"),
            "triplet": None if row is None else self._triplet(row),
        }

    def _triplet(self, row: int) -> dict[str, Any]:
        candidates = self._session.candidates
        verb, object_name = candidates.interactions[candidates.phrase[row]]
        picture = self._picture(candidates.image_ids[row])
        return {
            "row": row,
            # A file name may hold bytes that are no text.
            "image_id": candidates.image_ids[row].encode(errors="replace").decode(),
            "human_xyxy": candidates.boxes_h[row].tolist(),
            "object_xyxy": candidates.boxes_o[row].tolist(),
            "verb": verb.replace("_", " "),
            "object": None if object_name == NO_OBJECT else object_name.replace("_", " "),
            **({"error": picture} if isinstance(picture, str) else {"size_hw": list(picture[1])}),
        }

    def _picture(self, image_id: str) -> Shown:
        # The page asks for a triplet and its image at once, from two threads.
        with self._reading:
            if image_id in self._pictures:
                self._pictures.move_to_end(image_id)
                return self._pictures[image_id]
            shown: Shown
            try:
                pixels = self._read(image_id)
                shown = as_jpeg(pixels), (pixels.shape[0], pixels.shape[1])
            except (UnreadableImage, OSError) as error:
                shown = str(error)
            except MemoryError:
                shown = "this image needs more memory than there is"
            self._pictures[image_id] = shown
            while len(self._pictures) > KEPT_PICTURES:
                self._pictures.popitem(last=False)
            return shown

    async def _image(self, request: Request) -> Response:
        row = request.path_params["row"]
        if row not in self._session.sample.asked:
            raise Refused(404, "this triplet is not in the sample")
        picture = await run_in_threadpool(self._picture, self._session.candidates.image_ids[row])
        if isinstance(picture, str):
            raise Refused(415, picture)
        return Response(picture[0], media_type="image/jpeg")

    async def _mark(self, request: Request) -> JSONResponse:
        body = await read_upload(request, MAX_MARK_BYTES)
        try:
            plain = json.loads(body)
            row, verdict = plain["row"], plain["verdict"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Refused(400, 'this is no mark: {"row": number, "verdict": text} is expected') from None
        if type(row) is not int or verdict not in VERDICTS:
            raise Refused(400, f"this is no mark: verdict is one of {', '.join(VERDICTS)}")
        try:
            self._session.mark(row, verdict)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return await self._state(request)

    async def _undo(self, request: Request) -> JSONResponse:
        self._session.undo()
        return await self._state(request)

    async def _results(self, _: Request) -> JSONResponse:
        return JSONResponse({"rows": await run_in_threadpool(self._session.table)})

    async def _annotations(self, _: Request) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{ANNOTATIONS}"'}
        return Response(self._session.annotations(), media_type="application/jsonl", headers=headers)

    async def _write(self, _: Request) -> JSONResponse:
        return JSONResponse({"files": await run_in_threadpool(self._export)})


@dataclass(frozen=True)
class CheckReport:
    """What the marks say: the rows of `Session.table`, in fractions, and the files written."""

    rows: list[dict[str, Any]]
    num_marked: int
    num_asked: int
    files: list[str]

    def __str__(self) -> str:
        width = max(len(row["name"]) for row in self.rows)
        lines = [
            f"{self.num_marked} of {self.num_asked} marked; percent, with 95 % intervals",
            f"{'':{width}}{'triplets':>10}{'right':>10}{'precision':>20}{'AP':>20}",
        ]
        for row in self.rows:
            marked = f"{row['num_right']} / {row['num_marked']}" if "num_marked" in row else ""
            shares = ("–" if row[key] is None else str(Estimate(**row[key])) for key in ("precision", "ap"))
            cells = f"{row.get('num_triplets', ''):>10}{marked:>10}" + "".join(f"{share:>20}" for share in shares)
            lines.append(f"{row['name']:{width}}{cells}")
        return "\n".join([*lines, f"wrote {', '.join(self.files)}"])


def check_page(
    predictions: str | Path,
    images: str | Path | None = None,
    config: PipelineConfig | None = None,
    split: str | None = None,
    *,
    out: str | Path = "outputs/check",
    number: int = 50,
    seed: int = 0,
    open_page: bool = False,
    host: str = HOST,
    port: int = PORT,
    allow_hosts: Sequence[str] = (),
) -> CheckReport:
    """Serve the checking page where asked, then export the marks and estimate precision and AP.

    Args:
        predictions: JSON lines, as `hoi predict` and stage three (`evaluation.save_predictions`) write them.
        images: The folder that their file names are below; None for the images of `config`'s dataset.
        config: Its vocabulary tells the interactions' names where lines lack them.
        split: Of its dataset; None for `evaluation.split`.
        out: Of marks and results; marks of an earlier call continue there.
        number, seed: Of the triplets to mark.

    Raises UserError: an option, a prediction or the folder of marks is wrong.
    """
    session, read = open_session(predictions, images, config, split, out, number, seed)
    if open_page:
        page = MarkingPage(session, read, partial(export, session, Path(out)))
        app = make_app(page.routes(), checking=True, allow_hosts=[host, *allow_hosts])
        with open_socket(host, port) as listener:
            num_asked, num_triplets = len(session.sample.asked), len(session.candidates)
            print(f"{num_asked} of {num_triplets} triplets are asked; marks: {Path(out) / MARKS}")
            serve(app, listener, "/check")
    files = export(session, Path(out))
    return CheckReport(session.table(), len(session.marks), len(session.sample.asked), files)


def open_session(
    predictions: str | Path,
    images: str | Path | None,
    config: PipelineConfig | None,
    split: str | None,
    out: str | Path,
    number: int,
    seed: int,
) -> tuple[Session, ReadImage]:
    """Open the marks, with those of an earlier call, and a reader of the images; see `check_page`."""
    if number < LEAST_MARKS:
        raise UserError("so few marks say nothing", where="--number", expected=f"{LEAST_MARKS} or more", got=number)
    if config is None and images is None:
        raise UserError("nothing says where the images are", expected="--images DIR, or --config FILE")
    if images is not None and not Path(images).is_dir():
        raise UserError("there is no such folder of images", where=images, fix="give --images the right one")
    path = Path(predictions)
    vocabulary = None if config is None else load_vocabulary(config.dataset)
    inclusive = config is not None and config.dataset.inclusive_boxes
    candidates = read_candidates(path, vocabulary, inclusive=inclusive)
    if images is not None:
        folder = Path(images)
        _check_paths(candidates, path, folder)

        def read(image_id: str) -> np.ndarray:
            return read_image(folder / image_id, MAX_IMAGE_PIXELS)

    elif config is not None:
        source = open_images(config.dataset, split or config.evaluation.split)
        rows = {image_id: row for row, image_id in enumerate(source.image_ids)}
        unknown = next((name for name in candidates.image_ids if name not in rows), None)
        if unknown is not None:
            close = nearest(unknown, rows)
            raise UserError("a prediction names an unknown image", where=path, expected=close, got=unknown)

        def read(image_id: str) -> np.ndarray:
            return source.read(rows[image_id])

    file = Path(out) / MARKS
    key = SessionKey(hashlib.sha256(path.read_bytes()).hexdigest(), number, seed)
    session = Session(candidates, key, partial(write_json, file))
    try:
        earlier = read_json(file)
    except UserError:
        earlier = {}
    if earlier is not None:
        session.resume(earlier, file)
    return session, read


def _check_paths(candidates: Candidates, path: Path, folder: Path) -> None:
    for row, name in enumerate(candidates.image_ids):
        if leaves_folder(name) or "\0" in name or name in ("", "."):
            raise UserError(
                "a prediction names a file outside the folder of images",
                where=f"{path}, prediction {row + 1}",
                expected="a path below --images",
                got=name.replace("\0", "\\0"),
            )
    if not any(os.path.isfile(folder / name) for name in candidates.image_ids):
        raise UserError(
            "no image of the predictions is in this folder",
            where=folder,
            expected=candidates.image_ids[0],
            fix="give the folder that the file names are below",
        )


def export(session: Session, out: Path) -> list[str]:
    """Write annotations, checked predictions and results, and return their paths."""
    write_atomically(out / ANNOTATIONS, session.annotations())
    write_atomically(out / CHECKED, session.checked())
    write_json(out / RESULTS, {"rows": session.table()})
    return [str(out / name) for name in (ANNOTATIONS, CHECKED, RESULTS)]
