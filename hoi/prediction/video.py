"""Read, predict and write videos frame by frame, through PyAV (the extra `video`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from hoi.datasets import UnreadableImage
from hoi.errors import UserError
from hoi.files import replacing
from hoi.prediction.folder import PredictionFolder, Source
from hoi.prediction.predictor import ImageResult

DEFAULT_RATE = Fraction(25)  # frames a second, where the file does not say
CODECS = ("libx264", "h264", "mpeg4")  # the first one available writes the drawn video


def load_av() -> ModuleType:
    """Import PyAV, or raise a UserError that says how to install it."""
    try:
        import av
    except ImportError:
        raise UserError(
            "videos need PyAV, which is not installed", expected="the extra `video`", fix="pip install 'av>=12'"
        ) from None
    return av


class VideoReader:
    """Reads a video's frames in turn. Raises UnreadableImage: it is no video, or has over `max_pixels` a frame."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        av = load_av()
        self._errors = (av.FFmpegError, ValueError, EOFError, OSError)
        try:
            self._container = av.open(str(path))
        except self._errors as error:
            raise UnreadableImage(f"the video cannot be opened ({_reason(error)})") from None
        if not self._container.streams.video:
            self._container.close()
            raise UnreadableImage("the file holds no video")
        stream = self._container.streams.video[0]
        self.rate = Fraction(stream.average_rate or DEFAULT_RATE)
        self.num_frames = int(stream.frames or 0)  # 0 where the file does not say
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            self._container.close()
            raise UnreadableImage(f"{width} x {height} pixels, more than the limit of {max_pixels}")

    def frames(self) -> Iterator[tuple[int, float, np.ndarray]]:
        """Yield all frames, then close the video; raise UnreadableImage where it breaks off.

        A frame is its number from 0, its time in seconds from the start, and its upright pixels, uint8 [H, W, 3] RGB.
        """
        number = 0
        with self._container:
            try:
                for frame in self._container.decode(video=0):
                    pixels = frame.to_ndarray(format="rgb24")
                    turns = round(getattr(frame, "rotation", 0) / 90) % 4
                    time_s = number / float(self.rate) if frame.time is None else float(frame.time)
                    yield number, time_s, np.ascontiguousarray(np.rot90(pixels, turns))
                    number += 1
            except self._errors as error:
                raise UnreadableImage(f"the video breaks off after {number} frames ({_reason(error)})") from None
        if not number:
            raise UnreadableImage("the video holds no frame")


class VideoWriter:
    """An MP4 file to which pictures are written, `rate` of them a second."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        av = load_av()
        self._av, self._rate = av, rate
        self._container = av.open(str(path), "w", format="mp4")
        self._codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream is not None and kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def write(self, picture: Image.Image) -> None:
        """Add a picture; one of another size than the first is scaled to that."""
        if self._stream is None:
            # yuv420p needs even sides.
            width, height = (side + side % 2 for side in picture.size)
            self._stream = self._container.add_stream(self._codec, rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        size = (self._stream.width, self._stream.height)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        self._container.mux(self._stream.encode(self._av.VideoFrame.from_image(picture)))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


PredictFrames = Callable[[Sequence[np.ndarray], Sequence[str]], list[ImageResult]]  # frames and their names
DrawFrame = Callable[[np.ndarray, ImageResult, bool], Image.Image]  # and whether a legend may be added below


def predict_video(
    source: Source,
    folder: PredictionFolder,
    predict: PredictFrames,
    draw: DrawFrame | None,
    batch_size: int,
    max_pixels: int,
) -> None:
    """Write a video's results to `videos/NAME.jsonl`, draw `videos/NAME.mp4`, and record it in the journal.

    A video that breaks off keeps nothing and counts as unreadable. Without `draw` nothing is drawn.
    """
    drawn = folder.video_of(source.name, ".mp4")
    part = drawn.with_name(f".{drawn.name}.part")
    try:
        reader = VideoReader(source.path, max_pixels)
        drawn.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context(replacing(folder.video_of(source.name, ".jsonl")))
            writer = None if draw is None else stack.enter_context(VideoWriter(part, reader.rate))
            total = reader.num_frames or None
            frames = iter(tqdm(reader.frames(), source.path.name, total, unit="frame", disable=None, leave=False))
            num_frames = 0
            while batch := list(islice(frames, batch_size)):
                results = predict([pixels for *_, pixels in batch], [f"{source.name}#{number}" for number, *_ in batch])
                for (number, time_s, pixels), result in zip(batch, results, strict=True):
                    plain = {"frame": number, "time_s": round(time_s, 6), **result.to_dict()}
                    file.write((json.dumps(plain) + "\n").encode())
                    if writer is not None and draw is not None:
                        writer.write(draw(pixels, result, False))
                num_frames += len(batch)
        if writer is not None:
            part.replace(drawn)
    except UnreadableImage as error:
        folder.record(source, "unreadable", str(error))
    else:
        folder.record(source, "video", num_frames)
    finally:
        part.unlink(missing_ok=True)
