"""A page on this machine: drop an image, see who does what with what.

    python -m hoi.web.app [--checkpoint DIR | --config FILE] [--host 127.0.0.1] [--port 8008] [section.key=value ...]

docs/app.md has the limits of uploads, what is stored (nothing), and the format of the downloaded JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import expanduser
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from hoi.cli.command_line import Parser
from hoi.datasets.base import UnreadableImage
from hoi.datasets.images import decode_image
from hoi.errors import UserError, run_program
from hoi.prediction.export import checkpoint_folder
from hoi.web.serving import (
    add_options,
    host_names,
    open_socket,
    require_libraries,
    serve,
)
from hoi.web.uploads import (
    MEGABYTE,
    Refused,
    Turnstile,
    as_data_uri,
    read_upload,
    upload_name,
)

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


MAX_UPLOAD_MB = 25.0
MAX_MEGAPIXELS = 50.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads a checkpoint and serves its page until it is stopped.

    Raises:
        UserError: an option, the checkpoint or the address is wrong, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    require_libraries()
    from hoi.prediction import Predictor
    from hoi.web.server import make_app

    for name in ("max_upload_mb", "max_megapixels"):
        if not 0 < getattr(options, name) < float("inf"):
            raise UserError(
                "this limit is none",
                where=f"--{name.replace('_', '-')}",
                expected="a number above 0",
                got=getattr(options, name),
            )
    # Taken before the models are loaded, which takes seconds: a port in use is told at once.
    with open_socket(options.host, options.port) as listener:
        folder = checkpoint_folder(options.checkpoint, options.config, options.student, options.overrides)
        print(f"loading {folder}", flush=True)
        overrides = options.overrides if options.checkpoint else ()
        predictor = Predictor.from_checkpoint(folder, device=options.device, overrides=overrides)
        looking = Looking(predictor, options.max_upload_mb, options.max_megapixels)
        serve(make_app(looking, None, host_names(options)), listener)


def _parser() -> Parser:
    parser = Parser(prog="python -m hoi.web.app", description=(__doc__ or "").splitlines()[0])
    parser.shape = "[--checkpoint DIR | --config FILE] [--host ADDRESS] [--port N] [section.key=value ...]"
    add = parser.add_argument
    add(
        "--checkpoint",
        type=expanduser,
        metavar="DIR",
        help="what hoi.prediction.export wrote (default: made from --config's students)",
    )
    add("--config", default="pipeline.yaml", help="pipeline file of the default checkpoint (default: %(default)s)")
    add("--student", help="of that pipeline file (default: best, or the first without labels)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--max-upload-mb", type=float, default=MAX_UPLOAD_MB, help="largest file (default: %(default)g)")
    add("--max-megapixels", type=float, default=MAX_MEGAPIXELS, help="largest image (default: %(default)g)")
    add("overrides", nargs="*", metavar="section.key=value", help="values that replace the checkpoint's, or the file's")
    add_options(parser)
    return parser


if __name__ == "__main__":
    run_program(lambda: main())
