"""Stage one without its files: detector, pairs and teacher turn images into records.

Every forward pass of the teacher has one of three fixed shapes (crops, whole images, regions; the last of a call is
padded with zeros), so that the same call on the same device, with the same number of threads, gives the same bytes.
Which images share a call changes the last bits of an embedding only. `few_images` pads nothing, where one image's time
matters more than these.

Shapes: N detections, P pairs, M margins, K interactions, L levels, D joint width, U distinct crops, S side in pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import open_clip
import torch
import torchvision
from jaxtyping import Int
from torch import Tensor

from hoi.boxes import union_boxes
from hoi.config import PairsConfig, PipelineConfig
from hoi.crops import CropStyle, boxes_in_window, crop_windows, cut_crop, share_windows, whole_image_window
from hoi.detectors import Detector, build_detector
from hoi.machine import may_have_side_threads
from hoi.records import Detections, ImageSignals, TextBank
from hoi.teachers import build_teacher
from hoi.vocabulary import Vocabulary


def pair_detections(
    detections: Detections, person_idx: int, config: PairsConfig, *, with_itself: bool = False
) -> Int[np.ndarray, "P 2"]:
    """Return an image's candidate pairs, int32 rows (human, object) of `detections`, by human, then by object.

    The best `max_humans` persons and the best `max_objects` other detections of at least `min_score` take part;
    a person may be the object of another person, and with `with_itself` also of itself, for what it does alone.
    """
    candidates = detections.scores >= config.min_score
    is_person = detections.labels == person_idx
    humans = np.flatnonzero(candidates & is_person)[: config.max_humans]
    objects = np.flatnonzero(candidates & ~is_person)[: config.max_objects]
    partners = np.sort(np.concatenate([humans, objects]))
    pairs = [(human, partner) for human in humans for partner in partners if with_itself or partner != human]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


IMAGE_BATCH = 8
"""Whole images of one forward pass, if the batch size allows: few, since a call with fewer still pays for all."""
CHUNK_IMAGES = 16
MAX_CHUNK_BYTES = 256 << 20
"""Decoded images that are held at once, whichever limit comes first; the detector sees them together."""
CUT_AHEAD = 256
"""Crops that are cut before they are needed, on a CPU."""


Chunk = list[tuple[str, np.ndarray]]
"""Image ids and images."""


@dataclass(frozen=True)
class _Job:
    """One image with its geometry worked out; its pixels are released once its crops are cut."""

    image_id: str
    size_hw: tuple[int, int]
    detections: Detections
    pairs_ho: np.ndarray
    unions: np.ndarray
    windows: np.ndarray
    """int32 [U, 8], the distinct crops."""
    window_of_pair: np.ndarray
    """int64 [P, M], rows of `windows`."""
    paired: np.ndarray
    """int64 [N'], the detections that are cropped: those of pairs, where crops of regions are asked for, else none."""
    window_of_paired: np.ndarray
    """int64 [N'], rows of `windows`."""


class Extractor:
    """Detector (or another one) and teacher of a config, applied to images.

    Without a text bank the teacher embeds the vocabulary's interactions. `few_images` skips the padding of batches, for
    single images whose last bits do not matter. UserErrors are those of `build_detector` and `build_teacher`.
    """

    def __init__(
        self,
        config: PipelineConfig,
        vocabulary: Vocabulary,
        device: str,
        text_bank: TextBank | None = None,
        *,
        few_images: bool = False,
        detector: Detector | None = None,
    ) -> None:
        self._config, self._vocabulary, self._device, self._few = config, vocabulary, device, few_images
        self._detector = detector or build_detector(config.detector, vocabulary, device, config.dataset)
        self._teacher = build_teacher(config.teacher, device)
        self._map_levels = self._teacher.levels if "map" in config.teacher.regions else ()
        self._crop_px, self._image_px = self._teacher.crop_style.size_px, self._teacher.image_size_px
        self.text_bank = text_bank or self._teacher.text_bank(vocabulary)
        self.axes = self._axes()

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        """Return one record for each image, uint8 [H, W, 3] RGB, in order; without a person it has no pairs."""
        return self.extract_stream(zip(image_ids, images, strict=True))

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        """Do the same for (image id, image), taken a few at a time so that the next ones are decoded meanwhile."""
        jobs: list[_Job] = []
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            size, device = self._config.teacher.batch_size, None if self._few else self._device
            crops = _Batches(lambda batch: (self._teacher.encode_crops(batch),), size, self._crop_px, device)
            whole = _Batches(self._encode_images, min(IMAGE_BATCH, size), self._image_px, device)
            with _side_thread(self._device) as thread:
                for chunk in _chunks(images):
                    jobs += self._begin(chunk, partial(_cut, self._teacher.crop_style, thread), crops, whole)
            if not jobs:
                return []
            encoded = crops.finish()
            image_embeddings, *maps = whole.finish()
            region_levels = [self._encode_regions(jobs, maps)] if "map" in self._config.teacher.regions else []
        num_windows = [len(job.windows) for job in jobs]
        none = np.zeros((0, self.axes["D"]), np.float32)
        crop_embeddings = np.split(encoded[0].cpu().numpy() if encoded else none, np.cumsum(num_windows)[:-1])
        if "crop" in self._config.teacher.regions:
            region_levels += [[_crop_features(*pair)[:, None] for pair in zip(jobs, crop_embeddings, strict=True)]]
        features = [np.concatenate(levels, axis=1) for levels in zip(*region_levels, strict=True)]
        spatial = maps[-1].float().cpu().numpy() if self._config.teacher.spatial_map else [None] * len(jobs)
        rows = zip(jobs, image_embeddings.cpu().numpy(), crop_embeddings, features, spatial, strict=True)
        return [self._record(*row) for row in rows]

    def provenance(self) -> dict[str, object]:
        """Return everything that changes a record's content, in plain JSON types, and the `versions` that ran."""
        return {
            "detector": self._detector.provenance(),
            "pairs": self._config.pairs.model_dump(),
            "teacher": self._teacher.provenance(),
            "device": torch.device(self._device).type,
            "num_threads": torch.get_num_threads(),
            "versions": {library.__name__: library.__version__ for library in (torch, torchvision, open_clip)},
        }

    def _axes(self) -> dict[str, int]:
        num_interactions, width = self.text_bank.text_embedding.shape
        axes = {
            "K": num_interactions,
            "D": width,
            "M": len(self._config.teacher.crop.margins),
            "L": len(self._map_levels) + ("crop" in self._config.teacher.regions),
        }
        if self._config.teacher.spatial_map:
            probe = torch.zeros(1, 3, self._image_px, self._image_px, dtype=torch.uint8)
            axes |= dict(zip("CHW", self._teacher.encode_images(probe).maps[-1].shape[1:], strict=True))
        return axes

    def _begin(
        self, chunk: Chunk, cut: Callable[..., Iterator[Tensor]], crops: _Batches, whole: _Batches
    ) -> list[_Job]:
        """Detect, pair and cut the images of a chunk; crops and whole images join the batches."""
        found = self._detector.detect([image for _, image in chunk], [image_id for image_id, _ in chunk])
        jobs = [self._plan(*pair, detections) for pair, detections in zip(chunk, found, strict=True)]
        pixels = [torch.from_numpy(np.array(image, order="C")).to(self._device).permute(2, 0, 1) for _, image in chunk]
        windows = ((of, window) for of, job in zip(pixels, jobs, strict=True) for window in job.windows)
        for crop in cut(windows, self._crop_px):
            crops.add(crop)
        whole_windows = ((of, whole_image_window(job.size_hw)) for of, job in zip(pixels, jobs, strict=True))
        for crop in cut(whole_windows, self._image_px):
            whole.add(crop)
        return jobs

    def _plan(self, image_id: str, image: np.ndarray, detections: Detections) -> _Job:
        size_hw = (image.shape[0], image.shape[1])
        pairs_ho = pair_detections(
            detections, self._vocabulary.person_idx, self._config.pairs, with_itself=self._vocabulary.has_no_object
        )
        unions = union_boxes(detections.boxes_xyxy, pairs_ho)
        crop, resize_mode = self._config.teacher.crop, self._teacher.crop_style.resize_mode
        windows = np.stack(
            [crop_windows(unions, margin, crop.mode, size_hw, resize_mode) for margin in crop.margins], axis=1
        )
        paired = np.unique(pairs_ho) if "crop" in self._config.teacher.regions else np.zeros(0, np.int64)
        boxes = detections.boxes_xyxy[paired]
        windows_of_boxes = crop_windows(boxes, crop.margins[0], crop.mode, size_hw, resize_mode)
        every = np.concatenate([windows.reshape(-1, 8), windows_of_boxes])
        distinct, window_of = share_windows(every, crop.merge_px, self._crop_px)
        of_pair, of_paired = np.split(window_of, [windows.shape[0] * windows.shape[1]])
        of_pair = of_pair.reshape(len(pairs_ho), len(crop.margins))
        return _Job(image_id, size_hw, detections, pairs_ho, unions, distinct, of_pair, paired, of_paired)

    def _encode_images(self, batch: Tensor) -> tuple[Tensor, ...]:
        whole, teacher = self._teacher.encode_images(batch), self._config.teacher
        kept = whole.maps if "map" in teacher.regions else whole.maps[-1:] if teacher.spatial_map else ()
        return (whole.embedding, *kept)

    def _encode_regions(self, jobs: Sequence[_Job], maps: Sequence[Tensor]) -> list[np.ndarray]:
        """Return each image's map features, float32 [N + P, L', D]: its detections, then its pairs' unions."""
        side, batch_size = self._image_px, self._config.teacher.batch_size
        regions, rows_of, start = [], [], 0
        for row, job in enumerate(jobs):
            boxes = np.concatenate([job.detections.boxes_xyxy, job.unions])
            distinct, place = np.unique(boxes, axis=0, return_inverse=True)
            in_input = boxes_in_window(distinct, whole_image_window(job.size_hw), side)
            regions.append(np.concatenate([np.full((len(distinct), 1), row, np.float32), in_input], axis=1))
            rows_of.append(place.reshape(-1) + start)
            start += len(distinct)
        flat = torch.from_numpy(np.concatenate(regions)).to(self._device)
        encoded = [np.zeros((0, len(self._map_levels), self.axes["D"]), np.float32)]
        for chunk in flat.split(batch_size):
            padded = torch.cat([chunk, chunk.new_zeros(batch_size - len(chunk), 5)]) if not self._few else chunk
            encoded.append(self._teacher.encode_regions(maps, padded)[: len(chunk)].cpu().numpy())
        features = np.concatenate(encoded)
        return [features[rows] for rows in rows_of]

    def _record(
        self, job: _Job, image: np.ndarray, crops: np.ndarray, features: np.ndarray, spatial_map: np.ndarray | None
    ) -> ImageSignals:
        # Similarities come from the stored embeddings, so that scoring a cache again gives what it holds.
        image_embedding = image.astype(np.float16)
        union_embedding = crops[job.window_of_pair].astype(np.float16)
        num = len(job.detections)
        return ImageSignals(
            image_id=job.image_id,
            size_hw=np.array(job.size_hw, np.int32),
            detections=job.detections,
            pairs_ho=job.pairs_ho,
            image_embedding=image_embedding,
            image_similarity=similarity(image_embedding, self.text_bank.text_embedding),
            union_embedding=union_embedding,
            union_similarity=similarity(union_embedding, self.text_bank.text_embedding),
            detection_feature=features[:num].astype(np.float16),
            union_feature=features[num:].astype(np.float16),
            spatial_map=None if spatial_map is None else spatial_map.astype(np.float16),
        )


def similarity(embedding: np.ndarray, text_embedding: np.ndarray) -> np.ndarray:
    """Return the cosines, float16 [..., K], of stored embeddings, float16 [..., D], and texts, float32 [K, D].

    The last bits depend on the number of axes, so scoring again must use the extractor's: [D] for images, [P, M, D] for
    pairs.
    """
    return (embedding.astype(np.float32) @ text_embedding.T).astype(np.float16)


@contextmanager
def _side_thread(device: str) -> Iterator[Executor | None]:
    """Yield a thread to cut crops in, on a CPU and if allowed, while earlier ones are encoded."""
    if device != "cpu" or not may_have_side_threads():
        yield None
        return
    # A thread starts with as many OpenMP threads as there are cores, whatever its maker has.
    pool = ThreadPoolExecutor(1, "cutter", torch.set_num_threads, (torch.get_num_threads(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(
    style: CropStyle, thread: Executor | None, windows: Iterable[tuple[Tensor, np.ndarray]], size_px: int
) -> Iterator[Tensor]:
    """Yield the crops, uint8 [3, S, S], of pairs of an image and a window."""
    if thread is None:
        yield from (cut_crop(pixels, window, size_px, style) for pixels, window in windows)
        return
    futures = (thread.submit(cut_crop, *pair, size_px, style) for pair in windows)
    ahead = deque(islice(futures, CUT_AHEAD))
    while ahead:
        crop = ahead.popleft().result()
        ahead.extend(islice(futures, 1))
        yield crop


class _Batches:
    """Collects rows [3, S, S] and encodes them in batches of one size, padded on a device; without one, unpadded."""

    def __init__(
        self, encode: Callable[[Tensor], tuple[Tensor, ...]], size: int, side_px: int, device: str | None
    ) -> None:
        self._encode, self._size, self._blank = encode, size, None
        if device is not None:
            zeros = torch.zeros(size, 3, side_px, side_px, dtype=torch.uint8, device=device)
            self._blank = zeros.contiguous(memory_format=torch.channels_last)
        self._rows: list[Tensor] = []
        self._encoded: list[tuple[Tensor, ...]] = []

    def add(self, row: Tensor) -> None:
        self._rows.append(row)
        if len(self._rows) == self._size:
            self._run()

    def finish(self) -> tuple[Tensor, ...]:
        """Return all rows' encodings, one tensor for each that `encode` gives; none without rows."""
        if self._rows:
            self._run()
        return tuple(torch.cat(each) for each in zip(*self._encoded, strict=True))

    def _run(self) -> None:
        num = len(self._rows)
        if self._blank is None:
            # Crops are cut channels-last, and joined like this they stay so without a second copy.
            batch = torch.cat([row[None] for row in self._rows])
        else:
            batch = self._blank
            for place, row in enumerate(self._rows):
                batch[place] = row
            batch[num:] = 0
        self._rows = []
        self._encoded.append(tuple(each[:num] for each in self._encode(batch)))


def _chunks(images: Iterable[tuple[str, np.ndarray]]) -> Iterator[Chunk]:
    chunk: Chunk = []
    for image_id, image in images:
        if chunk and image.nbytes + sum(other.nbytes for _, other in chunk) > MAX_CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append((image_id, image))
        if len(chunk) == CHUNK_IMAGES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _crop_features(job: _Job, embeddings: np.ndarray) -> np.ndarray:
    """Return the embeddings of an image's detections, then its unions, float32 [N + P, D].

    A detection in no pair is not encoded; its row is zero and never read.
    """
    of_detections = np.zeros((len(job.detections), embeddings.shape[1]), np.float32)
    of_detections[job.paired] = embeddings[job.window_of_paired]
    return np.concatenate([of_detections, embeddings[job.window_of_pair[:, 0]]])
