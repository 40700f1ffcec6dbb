"""Predict triplets in images, folders of images and videos, and draw them. docs/predict.md describes the results."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from hoi.datasets import UnreadableImage
from hoi.datasets.images import SUFFIXES, read_image
from hoi.errors import UserError
from hoi.files import write_atomically
from hoi.prediction.checkpoint import Checkpoint
from hoi.prediction.folder import VIDEO_SUFFIXES, PredictionFolder, Source, find_sources, printable
from hoi.prediction.pictures import MAX_PAIRS, draw_result
from hoi.prediction.predictor import ImageResult, Predictor, max_pixels_of
from hoi.prediction.video import predict_video

READ_AHEAD = 4  # images that are decoded before they are needed
MAX_BATCH_BYTES = 256 << 20
"""Decoded images of one batch; a batch ends at this size or at its number of images, whichever comes first."""
JPEG_QUALITY = 90
MAX_LISTED = 20  # unreadable files that the report names; `unreadable.jsonl` names all
OUT_OF_MEMORY = (MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class PredictReport:
    """What a prediction run did."""

    num_images: int  # read, those of earlier runs included; as are videos
    num_videos: int
    num_now: int  # files read by this run
    unreadable: list[tuple[str, str]]  # names and reasons
    damaged: list[tuple[str, str]]  # videos that were read in part, and what is lost
    ignored: list[str]  # files in the folders that are not named like images
    files: list[Path]

    @property
    def exit_code(self) -> int:
        """1 where nothing at all could be read."""
        return 0 if self.num_images + self.num_videos else 1

    def __str__(self) -> str:
        lines = [f"wrote {path}" for path in self.files]
        if self.ignored:
            some = ", ".join(map(printable, self.ignored[:3]))
            lines.append(f"{len(self.ignored)} files ignored that are not named like images, such as {some}")
        for listed, what in ((self.unreadable, "files could not be read"), (self.damaged, "videos are damaged")):
            lines += [f"{len(listed)} {what}:"] if listed else []
            lines += [f"  {printable(name)}: {reason}" for name, reason in listed[:MAX_LISTED]]
            more = len(listed) - MAX_LISTED
            lines += [f"  and {more} more, in {self.files[-1]}"] if more > 0 else []
        videos = f", {self.num_videos} videos" if self.num_videos else ""
        lines.append(f"{self.num_images} images{videos} read, {self.num_now} of them now")
        return "\n".join(lines)


def predict(
    images: Sequence[str | Path],
    out: str | Path,
    checkpoint: Checkpoint,
    *,
    top: int | None = None,
    threshold: float = 0.0,
    batch: int = 8,
    shown: int = MAX_PAIRS,
    pictures: bool = True,
    device: str = "auto",
) -> PredictReport:
    """Predict files, write the results to a folder, and draw them; a stopped run continues where it was.

    `images` are image files, folders, glob patterns and videos. Of each image the `top` triplets that score at least
    `threshold` are kept, and `shown` pairs drawn at most; `batch` images are predicted together.

    Raises UserError: no such path, results of other settings in `out`, other models than the checkpoint's, a full disk.
    """
    for name, number in (("--batch", batch), ("--top", top), ("--shown", shown)):
        if number is not None and number < 1:
            raise UserError("this number is too small", where=name, expected="at least 1", got=number)
    if not math.isfinite(threshold):
        raise UserError("this is not a threshold", where="--threshold", expected="a finite number", got=threshold)
    arguments = [str(path) for path in images]
    listed = find_sources(arguments, Path(out))
    if not listed.sources and not listed.refused:
        raise UserError(
            "there is no image and no video here",
            where=", ".join(map(printable, arguments)),
            expected=f"files that end with one of {', '.join(sorted(SUFFIXES | VIDEO_SUFFIXES))}",
            got=f"{len(listed.ignored)} other files" if listed.ignored else "no file",
            fix="check the path; a single file may have any name",
        )
    settings = {**_model_settings(checkpoint), "top": top, "threshold": threshold, "shown": shown}
    dataset = checkpoint.config.dataset
    inclusive = dataset.inclusive_boxes and dataset.scores_interactions
    with PredictionFolder.open(Path(out), settings, checkpoint.vocabulary, inclusive=inclusive) as folder:
        run = _Run(checkpoint, device, folder, top, threshold, batch, shown, pictures)
        ahead = [source for source in listed.sources if not folder.is_done(source, run.picture_of(source))]
        run.predict(ahead)
        files = folder.finish(listed.sources, listed.refused)
        reasons = [(source.name, folder.reason(source.name)) for source in listed.sources]
        unreadable = [*listed.refused, *((name, reason) for name, reason in reasons if reason is not None)]
        losses = [(source.name, folder.damage(source.name)) for source in listed.sources]
        damaged = [(name, loss) for name, loss in losses if loss is not None]
        kinds = [folder.kind(source.name) for source in listed.sources]
        num_now = sum(folder.reason(source.name) is None for source in ahead)
    num_images, num_videos = kinds.count("image"), kinds.count("video")
    return PredictReport(num_images, num_videos, num_now, unreadable, damaged, listed.ignored, files)


def _model_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what decides the scores; batch size, precision and where models lie do not."""
    config = checkpoint.config.model_dump(mode="json")
    places = checkpoint.record["places"]
    sections = {
        part: {key: value for key, value in config[part].items() if f"{part}.{key}" not in places}
        for part in ("detector", "pairs", "teacher")
    }
    for name in ("batch_size", "precision"):
        sections["teacher"].pop(name)
    return {"checkpoint": checkpoint.sha256, **sections}


@dataclass(frozen=True)
class _Run:
    checkpoint: Checkpoint
    device: str
    folder: PredictionFolder
    top: int | None
    threshold: float
    batch: int
    shown: int
    pictures: bool

    @cached_property
    def predictor(self) -> Predictor:
        # Loaded at the first readable image: files that were unreadable before may still be.
        return Predictor(self.checkpoint, self.device)

    def predict(self, sources: Sequence[Source]) -> None:
        if not sources:
            return
        max_pixels = max_pixels_of(self.checkpoint.config)
        with tqdm(total=len(sources), desc="predicting", unit="file", disable=None) as bar:
            for batch in self._batches([source for source in sources if not source.is_video], max_pixels, bar):
                for source, pixels, result in self._predict_batch(batch):
                    if self.pictures:
                        buffer = io.BytesIO()
                        self.draw(pixels, result).save(buffer, "JPEG", quality=JPEG_QUALITY)
                        write_atomically(self.folder.picture_of(source.name), buffer.getvalue())
                    self.folder.add(source, result)
                bar.update(len(batch))
            for source in (source for source in sources if source.is_video):
                draw = self.draw if self.pictures else None
                predict_video(source, self.folder, self._results, draw, self.batch, max_pixels)
                bar.update(1)

    def draw(self, pixels: np.ndarray, result: ImageResult, legend: bool = True) -> Image.Image:
        return draw_result(pixels, result, self.checkpoint.vocabulary, max_pairs=self.shown, legend=legend)

    def picture_of(self, source: Source) -> Path | None:
        if not self.pictures:
            return None
        return self.folder.video_of(source.name, ".mp4") if source.is_video else self.folder.picture_of(source.name)

    def _results(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[ImageResult]:
        return self.predictor.predict(images, names, top=self.top, threshold=self.threshold)

    def _batches(
        self, sources: Sequence[Source], max_pixels: int, bar: tqdm
    ) -> Iterator[list[tuple[Source, np.ndarray]]]:
        batch: list[tuple[Source, np.ndarray]] = []
        for each in self._read_ahead(sources, max_pixels, bar):
            batch.append(each)
            if len(batch) == self.batch or sum(pixels.nbytes for _, pixels in batch) > MAX_BATCH_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read_ahead(self, sources: Sequence[Source], max_pixels: int, bar: tqdm) -> Iterator[tuple[Source, np.ndarray]]:
        queue = iter(sources)
        waiting: deque[tuple[Source, Future[np.ndarray | str]]] = deque()
        with ThreadPoolExecutor(1, "reader") as pool:
            while True:
                for source in islice(queue, READ_AHEAD - len(waiting)):
                    waiting.append((source, pool.submit(_read, source.path, max_pixels)))
                if not waiting:
                    return
                source, future = waiting.popleft()
                image = future.result()
                if isinstance(image, str):
                    self.folder.record(source, "unreadable", image)
                    bar.update(1)
                else:
                    yield source, image

    def _predict_batch(
        self, batch: list[tuple[Source, np.ndarray]]
    ) -> Iterator[tuple[Source, np.ndarray, ImageResult]]:
        # Where memory does not suffice, one image at a time.
        sources, images = [source for source, _ in batch], [pixels for _, pixels in batch]
        try:
            results = self._results(images, [source.name for source in sources])
        except OUT_OF_MEMORY:
            if len(batch) > 1:
                for one in batch:
                    yield from self._predict_batch([one])
            else:
                height, width = images[0].shape[:2]
                reason = f"there is not enough memory for {width} x {height} pixels"
                self.folder.record(sources[0], "unreadable", reason)
            return
        yield from zip(sources, images, results, strict=True)


def _read(path: Path, max_pixels: int) -> np.ndarray | str:
    """Return an image's pixels, or the reason why there are none."""
    try:
        return read_image(path, max_pixels)
    except UnreadableImage as error:
        return str(error)
    except MemoryError:
        return "there is not enough memory for it"
    except OSError as error:
        return f"the system could not read it ({' '.join(str(error).split())})"
