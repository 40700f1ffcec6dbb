"""Marks of right and wrong on a few predictions, and precision and AP of all of them from it, with intervals.

    python -m stages.check_page --predictions FILE (--images DIR | --config FILE [--split NAME]) [--out DIR] [--serve]

Predictions are JSON lines, as `stages.predict` and stage three (`evaluation.save_predictions`) write them. With
`--serve` a page asks; without, the figures of the marks so far are printed and everything is exported. docs/app.md has
the method.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import expanduser
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cache.atomic import read_json, write_atomically, write_json
from hoi.checking.candidates import Candidates, check_names, read_candidates
from hoi.checking.session import Asked, Session, results_table
from hoi.config import load_config
from hoi.datasets import load_vocabulary, open_images
from hoi.datasets.images import read_image
from hoi.errors import UserError, run_program
from hoi.vocabulary import Vocabulary
from stages.command_line import Parser
from stages.serving import add_options, host_names, open_socket, require_libraries, serve

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
        from hoi.app.marking import Marking
        from hoi.app.server import make_app

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
        self.inclusive = config.dataset.name in ("hicodet", "vcoco")
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
    parser = Parser(prog="python -m stages.check_page", description=(__doc__ or "").splitlines()[0])
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
