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
from hoi.files import open_file, replacing
from hoi.prediction.folder import PredictionFolder, Source
from hoi.prediction.predictor import ImageResult

DEFAULT_RATE = Fraction(25)  # frames a second, where the file does not say
CODECS = ("libx264", "h264", "mpeg4")  # the first one available writes the drawn video
FORMATS = "avi,mov,matroska,webm,mpegts,mpeg,flv,asf,ogg,mpegvideo"
"""ffmpeg's readers that may be used: others, such as those of playlists, open files that the video names."""
TICKS = 60_000  # of a second, in drawn videos: whole numbers of them for all usual rates
MAX_DAMAGED = 10_000  # pieces, after which the rest of a video is not tried
MIN_LOSS_S = 0.25  # of the length that a file states, which is not always exact
MAX_GAP_S = 3600  # between two frames; times that jump further, or back, are damaged


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
        self._open = ExitStack()
        with self._open:
            try:
                file = self._open.enter_context(open_file(path, "a video"))
                container = av.open(file, options={"format_whitelist": FORMATS})
                self._container = self._open.enter_context(container)
            except UserError as error:
                raise UnreadableImage(error.what) from None
            except self._errors as error:
                raise UnreadableImage(f"the video cannot be opened ({_reason(error)})") from None
            if not container.streams.video:
                raise UnreadableImage("the file holds no video")
            self._stream = stream = container.streams.video[0]
            self.rate = Fraction(stream.average_rate or DEFAULT_RATE)
            self.num_frames = int(stream.frames or 0)  # 0 where the file does not say
            self.damage: str | None = None  # what could not be read, once all frames are
            self._max_pixels = max_pixels
            self._check_size(stream.codec_context.width, stream.codec_context.height)
            self._open = self._open.pop_all()

    def frames(self) -> Iterator[tuple[int, float, np.ndarray]]:
        """Yield the frames that can be read, then close the video and set `damage`; at least one, or UnreadableImage.

        A frame is its number from 0, its time in seconds after the first, and its upright pixels, uint8 [H, W, 3] RGB.
        """
        step_s = float(1 / self.rate)
        start_s = end_s = time_s = 0.0
        number = num_wrong = 0
        with self._open:
            for frame in self._decoded():
                self._check_size(frame.width, frame.height)
                given_s = None if frame.time is None else float(frame.time)
                if number == 0:
                    start_s = given_s or 0.0
                else:
                    at_s = time_s + step_s if given_s is None else given_s - start_s
                    if not time_s < at_s <= time_s + MAX_GAP_S:
                        at_s, num_wrong = time_s + step_s, num_wrong + 1
                        start_s += 0.0 if given_s is None else given_s - start_s - at_s
                    time_s = at_s
                shown_s = float((getattr(frame, "duration", 0) or 0) * (frame.time_base or 0))
                end_s = time_s + max(step_s, shown_s)
                yield number, time_s, _upright(frame)
                number += 1
            length_s = self._length_s()
        if not number:
            raise UnreadableImage(f"no frame of the video can be read ({self.damage or 'it holds none'})")
        losses = [self.damage] if self.damage else []
        if length_s - end_s > max(1.5 * step_s, MIN_LOSS_S):
            losses.append(f"the file says that it lasts {length_s:.2f} s, and its frames end at {end_s:.2f} s")
        if num_wrong:
            losses.append(f"the times of {num_wrong} frames are damaged")
        self.damage = f"{number} frames were read, but {'; '.join(losses)}" if losses else None

    def _decoded(self) -> Iterator[Any]:
        # Pieces that are damaged are left out, and the others keep their times.
        packets, num_damaged = self._container.demux(self._stream), 0
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames, is_damaged = packet.decode(), packet.is_corrupt
            except self._errors as error:
                self.damage = f"a piece of it is damaged ({_reason(error)})"
                num_damaged += 1
                if packet is None or num_damaged > MAX_DAMAGED:
                    break
                continue
            if is_damaged:
                self.damage = self.damage or "a piece of it is cut or damaged"
            yield from frames

    def _length_s(self) -> float:
        """Return how long the file says that its frames are shown; 0 where it does not say."""
        stream, container = self._stream, self._container
        kind, is_alone = container.format.name.split(",")[0], len(container.streams) == 1
        if kind == "avi":
            return self.num_frames / float(self.rate)
        if kind in ("mov", "asf") and stream.duration:
            return float(stream.duration * stream.time_base)
        if kind == "matroska" and is_alone and container.duration:
            return (container.duration - (container.start_time or 0)) / 1e6
        return 0.0

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise UnreadableImage(f"{width} x {height} pixels, more than the limit of {self._max_pixels}")


def _upright(frame: Any) -> np.ndarray:
    # The display matrix [a b u; c d v; x y w] moves a pixel (x, y) to (a x + c y, b x + d y).
    pixels = frame.to_ndarray(format="rgb24")
    matrices = [bytes(each) for each in frame.side_data if each.type.name == "DISPLAYMATRIX"]
    if matrices:
        a, b, _, c, d = np.frombuffer(matrices[0], np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


class VideoWriter:
    """An MP4 file to which pictures are written, each with its time; `rate` is about how many there are a second."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        av = load_av()
        self._av, self._rate = av, rate
        self._container = av.open(str(path), "w", format="mp4")
        self._codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream: Any = None
        self._tick = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._stream is not None and kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def write(self, picture: Image.Image, time_s: float) -> None:
        """Add a picture that is shown from a time on; one of another size than the first is scaled to that."""
        if self._stream is None:
            # yuv420p needs even sides.
            width, height = (side + side % 2 for side in picture.size)
            self._stream = self._container.add_stream(self._codec, rate=self._rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, TICKS)
            # Frames that are stored out of turn would shorten a video whose frames come unevenly.
            self._stream.codec_context.max_b_frames = 0
        size = (self._stream.width, self._stream.height)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        frame = self._av.VideoFrame.from_image(picture)
        self._tick = frame.pts = max(round(time_s * TICKS), self._tick + 1)
        frame.time_base = Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__


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

    What cannot be read of a damaged video is recorded with it. Without `draw` nothing is drawn.
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
                        writer.write(draw(pixels, result, False), time_s)
                num_frames += len(batch)
        if writer is not None:
            part.replace(drawn)
    except UnreadableImage as error:
        folder.record(source, "unreadable", str(error))
    else:
        folder.record(source, "video", {"frames": num_frames, "damage": reader.damage})
    finally:
        part.unlink(missing_ok=True)
