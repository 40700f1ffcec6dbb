"""One video to a drawn one, and to JSON lines, one a frame."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice

from tqdm import tqdm

from cache.atomic import replacing
from hoi.datasets import UnreadableImage
from hoi.prediction import Predictor
from hoi.prediction.pictures import draw_result
from hoi.prediction.sources import Source
from hoi.prediction.video import Frame, VideoReader, VideoWriter
from stages.prediction_files import PredictionFolder


def predict_video(
    load: Callable[[], Predictor], source: Source, folder: PredictionFolder, options: Namespace, limit: int
) -> None:
    """A video to `videos/NAME.jsonl` and, unless nothing is drawn, `videos/NAME.mp4`, and to its journal line.

    One that breaks off keeps nothing and counts as unreadable.

    Args:
        load: Gives the predictor.
        source: The video.
        folder: Of the results.
        options: `batch`, `top`, `threshold`, `shown` and `no_pictures` are read.
        limit: Pixels of a frame, at most.

    Raises:
        UserError: PyAV is not installed, or a file cannot be written.
    """
    drawn = folder.video_of(source.name, ".mp4")
    part = drawn.with_name(f".{drawn.name}.part")
    try:
        reader, predictor = VideoReader(source.path, limit), load()
        drawn.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context(replacing(folder.video_of(source.name, ".jsonl")))
            writer = None if options.no_pictures else stack.enter_context(VideoWriter(part, reader.rate))
            num_frames = 0
            for batch in _batches(_with_bar(reader, source.path.name), options.batch):
                names = [f"{source.name}#{frame.number}" for frame in batch]
                pixels = [frame.pixels for frame in batch]
                results = predictor.predict(pixels, names, top=options.top, threshold=options.threshold)
                for frame, result in zip(batch, results, strict=True):
                    plain = {"frame": frame.number, "time_s": round(frame.time_s, 6), **result.to_dict()}
                    file.write((json.dumps(plain) + "\n").encode())
                    if writer is not None:
                        writer.write(
                            draw_result(
                                frame.pixels, result, predictor.vocabulary, max_pairs=options.shown, legend=False
                            )
                        )
                num_frames += len(batch)
        if writer is not None:
            part.replace(drawn)
    except UnreadableImage as error:
        folder.add_unreadable(source, str(error))
    else:
        folder.add_video(source, num_frames)
    finally:
        part.unlink(missing_ok=True)


def _with_bar(reader: VideoReader, name: str) -> Iterator[Frame]:
    total = reader.num_frames or None
    return iter(tqdm(reader.frames(), name, total, unit="frame", disable=None, leave=False))


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    while batch := list(islice(frames, size)):
        yield batch
