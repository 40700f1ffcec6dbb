"""Marks of right and wrong on a few predictions, and precision and AP of all of them from it, with intervals.

    python -m hoi.web.check_page --predictions FILE (--images DIR | --config FILE [--split NAME]) [--out DIR] [--serve]

Predictions are JSON lines, as `hoi.prediction.run` and stage three (`evaluation.save_predictions`) write them. With
`--serve` a page asks; without, the figures of the marks so far are printed and everything is exported. docs/app.md has
the method.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import expanduser
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from hoi.checking.sample import Candidates, check_names, read_candidates
from hoi.checking.session import VERDICTS, Asked, Session, results_table
from hoi.cli.command_line import Parser
from hoi.config import load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.base import UnreadableImage
from hoi.datasets.images import read_image
from hoi.errors import UserError, run_program
from hoi.files import read_json, write_atomically, write_json
from hoi.vocabulary import NO_OBJECT, Vocabulary
from hoi.web.serving import (
    add_options,
    host_names,
    open_socket,
    require_libraries,
    serve,
)
from hoi.web.uploads import Refused, as_jpeg, read_upload

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


MARKS, ANNOTATIONS, CHECKED, RESULTS = "marks.json", "annotations.jsonl", "checked.jsonl", "check.json"
LEAST_MARKS = 10
MAX_IMAGE_PIXELS = 100_000_000


@dataclass(frozen=True)
class CheckReport:
    """What marks say.

    Args:
        rows: Of the table, fractions.
        num_marked, num_asked: How far it is.
        files: What was written.
    """

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
            shares = "".join(f"{_text(row[key]):>20}" for key in ("precision", "ap"))
            lines.append(f"{row['name']:{width}}{row.get('num_triplets', ''):>10}{marked:>10}{shares}")
        return "\n".join([*lines, f"wrote {', '.join(self.files)}"])


def main(arguments: Sequence[str] | None = None) -> CheckReport:
    """Command line arguments to the figures; with `--serve`, after the page has been stopped.

    Raises:
        UserError: an option, a prediction or the folder of marks is wrong, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    if options.number < LEAST_MARKS:
        raise UserError(
            "so few marks say nothing", where="--number", expected=f"{LEAST_MARKS} or more", got=options.number
        )
    session, read = open_session(options)
    out = Path(options.out)
    if options.serve:
        require_libraries()
        from hoi.web.server import make_app

        with open_socket(options.host, options.port) as listener:
            print(f"{len(session.sample.asked)} of {len(session.candidates)} triplets are asked; marks: {out / MARKS}")
            marking = Marking(session, read, lambda: export(session, out))
            serve(make_app(None, marking, host_names(options)), listener, "/check")
    files = export(session, out)
    rows = results_table(session.results(), session.candidates.phrases)
    return CheckReport(rows, len(session.marks), len(session.sample.asked), files)


def open_session(options: Namespace) -> tuple[Session, Callable[[str], np.ndarray]]:
    """Options to the marks, with those of an earlier run, and to what reads an image.

    Raises:
        UserError: see `main`.
    """
    path = Path(options.predictions)
    vocabulary, read, inclusive = _images(options)
    candidates = read_candidates(path, vocabulary, inclusive=inclusive)
    if options.images is not None:
        _refuse_paths(candidates, path)
        if not any((Path(options.images) / name).is_file() for name in candidates.image_ids):
            raise UserError(
                "no image of the predictions is in this folder",
                where=options.images,
                expected=candidates.image_ids[0],
                fix="give the folder that the file names are below",
            )
    elif isinstance(read, _Split):
        check_names(candidates, list(read.rows), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    file = Path(options.out) / MARKS
    session = Session(candidates, Asked(sha256, options.number, options.seed), partial(write_json, file))
    try:
        earlier = read_json(file)
    except ValueError:
        earlier = {}
    if earlier is not None:
        session.resume(earlier, file)
    return session, read


class _Split:
    """The images of a split by their ids."""

    def __init__(self, config_path: str, split: str | None, overrides: list[str]) -> None:
        config = load_config(config_path, overrides)
        self.vocabulary = load_vocabulary(config.dataset)
        self.inclusive = config.dataset.inclusive_boxes
        self._source = open_images(config.dataset, split or config.evaluation.split)
        self.rows = {image_id: row for row, image_id in enumerate(self._source.image_ids)}

    def __call__(self, image_id: str) -> np.ndarray:
        return self._source.read(self.rows[image_id])


def _images(options: Namespace) -> tuple[Vocabulary | None, Callable[[str], np.ndarray], bool]:
    if options.config is None and options.images is None:
        raise UserError("nothing says where the images are", expected="--images DIR, or --config FILE")
    split = None if options.config is None else _Split(options.config, options.split, options.overrides)
    if options.images is None and split is not None:
        return split.vocabulary, split, split.inclusive
    if not Path(options.images).is_dir():
        raise UserError("there is no such folder of images", where=options.images, fix="give --images the right one")
    known = (None, False) if split is None else (split.vocabulary, split.inclusive)
    return known[0], lambda name: read_image(Path(options.images) / name, MAX_IMAGE_PIXELS), known[1]


def _refuse_paths(candidates: Candidates, path: Path) -> None:
    """File names lead below the folder of images, and nowhere else."""
    for row, name in enumerate(candidates.image_ids):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\0" in name or name in ("", "."):
            raise UserError(
                "a prediction names a file outside the folder of images",
                where=f"{path}, prediction {row + 1}",
                expected="a path below --images",
                got=name.replace("\0", "\\0"),
            )


def export(session: Session, out: Path) -> list[str]:
    """Writes annotations, checked predictions and results; gives the paths."""
    contents = {ANNOTATIONS: session.annotations(), CHECKED: session.checked()}
    for name, data in contents.items():
        write_atomically(out / name, data)
    write_json(out / RESULTS, {"rows": results_table(session.results(), session.candidates.phrases)})
    return [str(out / name) for name in (*contents, RESULTS)]


def _text(share: dict[str, float] | None) -> str:
    if share is None:
        return "–"
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.0f} ({low:.0f} to {high:.0f})"


def _parser() -> Parser:
    parser = Parser(prog="python -m hoi.web.check_page", description=(__doc__ or "").splitlines()[0])
    parser.shape = "--predictions FILE (--images DIR | --config FILE) [--out DIR] [--number N] [--serve]"
    add = parser.add_argument
    add("--predictions", required=True, type=expanduser, help="JSON lines, gzipped or not")
    add("--images", type=expanduser, help="the folder that their file names are below")
    add("--config", help="the pipeline file whose data set they are of, in place of --images, or for its vocabulary")
    add("--split", help="of that data set (default: evaluation.split)")
    add("--out", type=expanduser, default="outputs/check", help="folder of marks and results (default: %(default)s)")
    add("--number", type=int, default=50, help="how many triplets are asked (default: %(default)s)")
    add("--seed", type=int, default=0, help="of their draw (default: %(default)s)")
    add("--serve", action="store_true", help="open the page")
    add("overrides", nargs="*", metavar="section.key=value", help="of the pipeline file")
    add_options(parser)
    return parser


def _command() -> None:
    print(main())


if __name__ == "__main__":
    run_program(_command)
