"""A page on this machine: drop an image, see who does what with what.

    python -m stages.app [--checkpoint DIR | --config FILE] [--host 127.0.0.1] [--port 8008] [section.key=value ...]

docs/app.md has the limits of uploads, what is stored (nothing), and the format of the downloaded JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import expanduser

from hoi.errors import UserError, run_program
from stages.checkpoint import checkpoint_folder
from stages.command_line import Parser
from stages.serving import add_options, host_names, open_socket, require_libraries, serve

MAX_UPLOAD_MB = 25.0
MAX_MEGAPIXELS = 50.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads a checkpoint and serves its page until it is stopped.

    Raises:
        UserError: an option, the checkpoint or the address is wrong, or a library is missing.
    """
    options = _parser().parse_args(arguments)
    require_libraries()
    from hoi.app.looking import Looking
    from hoi.app.server import make_app
    from hoi.prediction import Predictor

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
    parser = Parser(prog="python -m stages.app", description=(__doc__ or "").splitlines()[0])
    parser.shape = "[--checkpoint DIR | --config FILE] [--host ADDRESS] [--port N] [section.key=value ...]"
    add = parser.add_argument
    add(
        "--checkpoint",
        type=expanduser,
        metavar="DIR",
        help="what stages.checkpoint wrote (default: made from --config's students)",
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
