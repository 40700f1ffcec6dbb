"""Images, folders of them and videos to scored triplets and drawn pictures: detector, CLIP and student in memory.

    python -m hoi.prediction.run --images PATH ... --out DIR [--checkpoint DIR] [--top N] [--threshold X] [...]

docs/predict.md describes what is written. Exit code 0 when something was read, 1 when nothing was, 2 for a mistake.
"""

from __future__ import annotations

import io
import math
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hoi.cli.command_line import Parser
from hoi.datasets import UnreadableImage
from hoi.datasets.images import SUFFIXES, read_image
from hoi.errors import UserError, run_program
from hoi.files import write_atomically
from hoi.prediction import Checkpoint, ImageResult, Predictor
from hoi.prediction.export import checkpoint_folder
from hoi.prediction.folder import PredictionFolder
from hoi.prediction.pictures import MAX_PAIRS, draw_result
from hoi.prediction.predictor import MAX_IMAGE_PIXELS
from hoi.prediction.sources import VIDEO_SUFFIXES, Source, find_sources, shown
from hoi.prediction.video import predict_video

READ_AHEAD = 4
"""Images that are decoded before they are needed."""
MAX_BATCH_BYTES = 256 << 20
"""Decoded images of one batch, whichever limit comes first."""
QUALITY = 90
SHOWN_REFUSED = 20
"""Unreadable files that are named at the end; the file names them all."""


@dataclass(frozen=True)
class PredictReport:
    """What a run did.

    Args:
        num_images, num_videos: Read, earlier runs included.
        num_now: Files that were read by this run.
        unreadable: Names and reasons.
        passed_over: Files of the folders that are no images by their names.
        files: What was written.
    """

    num_images: int
    num_videos: int
    num_now: int
    unreadable: list[tuple[str, str]]
    passed_over: list[str]
    files: list[Path]

    @property
    def exit_code(self) -> int:
        """1 where nothing at all could be read."""
        return 0 if self.num_images + self.num_videos else 1

    def __str__(self) -> str:
        lines = [f"wrote {path}" for path in self.files]
        if self.passed_over:
            some = ", ".join(map(shown, self.passed_over[:3]))
            lines.append(f"{len(self.passed_over)} files passed over that are no images by their names, such as {some}")
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} files could not be read:")
            lines += [f"  {shown(name)}: {reason}" for name, reason in self.unreadable[:SHOWN_REFUSED]]
            more = len(self.unreadable) - SHOWN_REFUSED
            lines += [f"  and {more} more, in {self.files[-1]}"] if more > 0 else []
        videos = f", {self.num_videos} videos" if self.num_videos else ""
        lines.append(f"{self.num_images} images{videos} read, {self.num_now} of them now")
        return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> PredictReport:
    """Command line arguments to the results; a run that was stopped goes on where it was.

    Raises:
        UserError: no such path, a wrong checkpoint, results of other settings in the way, or a full disk.
    """
    options = _parser().parse_args(arguments)
    if options.batch < 1 or (options.top is not None and options.top < 1) or options.shown < 1:
        raise UserError("a number is too small", where="--batch, --top or --shown", expected="at least 1")
    out = Path(options.out)
    if not math.isfinite(options.threshold):
        raise UserError("this threshold is none", where="--threshold", expected="a number", got=options.threshold)
    found = find_sources(options.images, out)
    if not found.sources and not found.refused:
        other = f"{len(found.passed_over)} other files" if found.passed_over else "no file"
        raise UserError(
            "there is no image and no video to look at",
            where=", ".join(map(shown, options.images)),
            expected=f"files that end with one of {', '.join(sorted(SUFFIXES | VIDEO_SUFFIXES))}",
            got=other,
            fix="check the path; a single file may have any name",
        )
    place = checkpoint_folder(options.checkpoint, options.config, options.student, options.overrides)
    checkpoint = Checkpoint.open(place, options.overrides if options.checkpoint else ())
    dataset = checkpoint.config.dataset
    inclusive = dataset.inclusive_boxes and dataset.scores_interactions
    settings = _settings(options, checkpoint)
    with PredictionFolder.open(out, settings, checkpoint.vocabulary, inclusive=inclusive) as folder:
        ahead = [source for source in found.sources if not folder.is_done(source, _picture(folder, source, options))]
        if ahead:
            # Loaded when there is a picture to look at: files that were unreadable before may still be.
            _run(cache(lambda: Predictor(checkpoint, options.device)), ahead, folder, options, checkpoint)
        files = folder.finish(found.sources, found.refused)
        unreadable = [(source.name, folder.reason(source.name)) for source in found.sources]
        refused = [*found.refused, *((name, reason) for name, reason in unreadable if reason is not None)]
        kinds = [folder.kind(source.name) for source in found.sources]
        num_now = sum(folder.reason(source.name) is None for source in ahead)
    return PredictReport(kinds.count("image"), kinds.count("video"), num_now, refused, found.passed_over, files)


def _parser() -> Parser:
    parser = Parser(prog="python -m hoi.prediction.run", description=__doc__.splitlines()[0])
    parser.shape = "--images PATH ... --out DIR [--checkpoint DIR] [section.key=value ...]"
    add = parser.add_argument
    add("overrides", nargs="*", metavar="section.key=value", help="values that replace the checkpoint's, or the file's")
    add(
        "--images",
        nargs="+",
        required=True,
        type=expanduser,
        metavar="PATH",
        help="an image, a folder, a pattern, or a video",
    )
    add("--out", required=True, type=expanduser, metavar="DIR", help="where results go; the same folder again goes on")
    add(
        "--checkpoint",
        type=expanduser,
        metavar="DIR",
        help="what `hoi.prediction.export` wrote (default: made from --config's students)",
    )
    add("--config", default="pipeline.yaml", help="pipeline file of the default checkpoint (default: %(default)s)")
    add("--student", help="of that pipeline file (default: best, or the first without labels)")
    add("--top", type=int, metavar="N", help="triplets of each image that are kept (default: all)")
    add("--threshold", type=float, default=0.0, metavar="X", help="least score of a triplet that is kept")
    add("--batch", type=int, default=8, metavar="N", help="images that are looked at together (default: %(default)s)")
    add(
        "--shown", type=int, default=MAX_PAIRS, metavar="N", help="pairs that are drawn, at most (default: %(default)s)"
    )
    add("--no-pictures", action="store_true", help="draw nothing")
    add("--device", default="auto", help="auto, cpu or cuda")
    return parser


def _settings(options: Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """All that decides what is written; not how many images go together, nor on what."""
    config = checkpoint.config.model_dump(mode="json")
    places = checkpoint.record["places"]
    sections = {
        part: {key: value for key, value in config[part].items() if f"{part}.{key}" not in places}
        for part in ("detector", "pairs", "teacher")
    }
    for name in ("batch_size", "precision"):
        sections["teacher"].pop(name)
    return {
        "checkpoint": checkpoint.sha256,
        **sections,
        "top": options.top,
        "threshold": options.threshold,
        "shown": options.shown,
    }


def _run(
    load: Callable[[], Predictor],
    ahead: Sequence[Source],
    folder: PredictionFolder,
    options: Namespace,
    checkpoint: Checkpoint,
) -> None:
    """Every file to its line of the journal, images in batches, then videos."""
    limit = getattr(checkpoint.config.dataset, "max_image_pixels", MAX_IMAGE_PIXELS)
    vocabulary = checkpoint.vocabulary
    images = [source for source in ahead if not source.is_video]
    with tqdm(total=len(ahead), desc="predicting", unit="file", disable=None) as bar:
        for batch in _batches(_read_all(images, limit, folder, bar), options.batch):
            for source, pixels, result in _predict(load(), batch, options, folder):
                if not options.no_pictures:
                    picture = draw_result(pixels, result, vocabulary, max_pairs=options.shown)
                    buffer = io.BytesIO()
                    picture.save(buffer, "JPEG", quality=QUALITY)
                    write_atomically(folder.picture_of(source.name), buffer.getvalue())
                folder.add(source, result)
            bar.update(len(batch))
        for source in ahead:
            if source.is_video:
                predict_video(load, source, folder, options, limit)
                bar.update(1)


def _read_all(
    sources: Sequence[Source], limit: int, folder: PredictionFolder, bar: tqdm
) -> Iterator[tuple[Source, np.ndarray]]:
    """Files to their pixels, decoded ahead; one that cannot be read goes to the journal instead."""
    with ThreadPoolExecutor(1, "reader") as pool:
        waiting: deque[tuple[Source, Any]] = deque()
        queue = iter(sources)
        while True:
            while len(waiting) < READ_AHEAD and (source := next(queue, None)) is not None:
                waiting.append((source, pool.submit(read_image, source.path, limit)))
            if not waiting:
                return
            source, future = waiting.popleft()
            try:
                yield source, future.result()
            except (UnreadableImage, MemoryError, OSError) as error:
                folder.add_unreadable(source, _reason(error))
                bar.update(1)


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return f"the system could not read it ({' '.join(str(error).split())})"


def _batches(images: Iterator[tuple[Source, np.ndarray]], size: int) -> Iterator[list[tuple[Source, np.ndarray]]]:
    batch: list[tuple[Source, np.ndarray]] = []
    for each in images:
        batch.append(each)
        if len(batch) == size or sum(pixels.nbytes for _, pixels in batch) > MAX_BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict(
    predictor: Predictor, batch: list[tuple[Source, np.ndarray]], options: Namespace, folder: PredictionFolder
) -> Iterator[tuple[Source, np.ndarray, ImageResult]]:
    """A batch's results; where memory does not suffice, its images one by one, and what does not fit is unreadable."""
    sources, images = [source for source, _ in batch], [pixels for _, pixels in batch]
    names = [source.name for source in sources]
    try:
        results = predictor.predict(images, names, top=options.top, threshold=options.threshold)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in f"{type(error).__name__} {error}".lower():
            raise
        if len(batch) > 1:
            for one in batch:
                yield from _predict(predictor, [one], options, folder)
        else:
            height, width = images[0].shape[:2]
            folder.add_unreadable(sources[0], f"there is not enough memory for {width} x {height} pixels")
        return
    yield from zip(sources, images, results, strict=True)


def _picture(folder: PredictionFolder, source: Source, options: Namespace) -> Path | None:
    if options.no_pictures:
        return None
    return folder.video_of(source.name, ".mp4") if source.is_video else folder.picture_of(source.name)


def _command() -> int:
    report = main()
    print(report)
    return report.exit_code


if __name__ == "__main__":
    run_program(_command)
