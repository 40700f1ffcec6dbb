"""Images → ImageSignals: detector, pairs and teacher over the images of one call.

Bits: every forward pass of the teacher has one of three fixed shapes (crops, whole images, regions; the last of a call
is padded with zeros), so the same call on the same device, with the same number of threads, gives the same bytes. Which
images share a call moves an embedding by its last bits only: a row's place in a batch may decide how it is summed.

Letters: N detections, P pairs, M margins, K interactions, L levels, D joint width, U distinct crops, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import open_clip
import torch
import torchvision
from torch import Tensor

from hoi.boxes import union_boxes
from hoi.config import PipelineConfig
from hoi.crops import boxes_in_window, crop_windows, cut_crop, whole_image_window
from hoi.detectors import build_detector
from hoi.pairing import pair_detections
from hoi.records import Detections, ImageSignals
from hoi.teachers import build_teacher
from hoi.vocabulary import Vocabulary

IMAGE_BATCH = 8
"""Whole images of one forward pass, if the batch size allows: few, since a call with fewer still pays for all."""


@dataclass(frozen=True)
class _Job:
    """One image with its geometry worked out, before any pixel is encoded."""

    pixels: Tensor
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
    """Stage one without its files: everything that it knows of an image.

    Args:
        config: `dataset`, `detector`, `pairs` and `teacher` are read.
        vocabulary: Objects to detect and interactions to score.
        device: `cpu` or `cuda`.

    Raises:
        UserError: see `build_detector` and `build_teacher`.
    """

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> None:
        self._config, self._vocabulary, self._device = config, vocabulary, device
        self._detector = build_detector(config.detector, vocabulary, device, config.dataset)
        self._teacher = build_teacher(config.teacher, device)
        self._map_levels = self._teacher.levels if "map" in config.teacher.regions else ()
        self.text_bank = self._teacher.text_bank(vocabulary)
        self.axes = self._axes()

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        """Images, uint8 [H, W, 3] RGB, to one record each, in their order; no person found means zero pairs.

        Raises:
            UserError: a look-up detector does not know an image.
        """
        if not images:
            return []
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            found = self._detector.detect(images, image_ids)
            jobs = [self._plan(image, detections) for image, detections in zip(images, found, strict=True)]
            crop_embeddings = self._encode_crops(jobs)
            image_embeddings, maps = self._encode_images(jobs)
            region_levels = [self._encode_regions(jobs, maps)] if "map" in self._config.teacher.regions else []
        if "crop" in self._config.teacher.regions:
            region_levels.append(
                [_crop_features(job, crops)[:, None] for job, crops in zip(jobs, crop_embeddings, strict=True)]
            )
        spatial = maps[-1] if self._config.teacher.spatial_map else None
        records = []
        for row, (image_id, job) in enumerate(zip(image_ids, jobs, strict=True)):
            # Similarities come from the stored embeddings, so that scoring a cache again gives what it holds.
            image_embedding = image_embeddings[row].astype(np.float16)
            union_embedding = crop_embeddings[row][job.window_of_pair].astype(np.float16)
            features = np.concatenate([level[row] for level in region_levels], axis=1)
            num = len(job.detections)
            records.append(
                ImageSignals(
                    image_id=image_id,
                    size_hw=np.array(job.size_hw, np.int32),
                    detections=job.detections,
                    pairs_ho=job.pairs_ho,
                    image_embedding=image_embedding,
                    image_similarity=self._similarity(image_embedding),
                    union_embedding=union_embedding,
                    union_similarity=self._similarity(union_embedding),
                    detection_feature=features[:num].astype(np.float16),
                    union_feature=features[num:].astype(np.float16),
                    spatial_map=None if spatial is None else spatial[row].float().cpu().numpy().astype(np.float16),
                )
            )
        return records

    def provenance(self) -> dict[str, object]:
        """Everything that changes a record's content, in plain JSON types.

        `versions` says what ran and is no part of a fingerprint. The rest is; `num_threads`, too, moves last bits.
        """
        return {
            "detector": self._detector.provenance(),
            "pairs": self._config.pairs.model_dump(),
            "teacher": self._teacher.provenance(),
            "device": torch.device(self._device).type,
            "num_threads": torch.get_num_threads(),
            "versions": {
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "open_clip": open_clip.__version__,
            },
        }

    def _axes(self) -> dict[str, int]:
        """Size of every letter of the records; C, H, W only where maps are asked for."""
        num_interactions, width = self.text_bank.text_embedding.shape
        axes = {
            "K": num_interactions,
            "D": width,
            "M": len(self._config.teacher.crop.margins),
            "L": len(self._map_levels) + ("crop" in self._config.teacher.regions),
        }
        if self._config.teacher.spatial_map:
            side = self._teacher.image_size_px
            maps = self._teacher.encode_images(torch.zeros(1, 3, side, side, dtype=torch.uint8)).maps
            axes |= dict(zip("CHW", maps[-1].shape[1:], strict=True))
        return axes

    def _plan(self, image: np.ndarray, detections: Detections) -> _Job:
        size_hw = (image.shape[0], image.shape[1])
        pairs_ho = pair_detections(detections, self._vocabulary.person_idx, self._config.pairs)
        unions = union_boxes(detections.boxes_xyxy, pairs_ho)
        crop, resize_mode = self._config.teacher.crop, self._teacher.crop_style.resize_mode
        windows = np.stack(
            [crop_windows(unions, margin, crop.mode, size_hw, resize_mode) for margin in crop.margins], axis=1
        )
        paired = np.unique(pairs_ho) if "crop" in self._config.teacher.regions else np.zeros(0, np.int64)
        boxes = detections.boxes_xyxy[paired]
        windows_of_boxes = crop_windows(boxes, crop.margins[0], crop.mode, size_hw, resize_mode)
        every = np.concatenate([windows.reshape(-1, 8), windows_of_boxes])
        distinct, window_of = np.unique(every, axis=0, return_inverse=True)
        window_of_pair, window_of_paired = np.split(window_of.reshape(-1), [windows.shape[0] * windows.shape[1]])
        pixels = torch.from_numpy(np.array(image, order="C")).to(self._device).permute(2, 0, 1)
        return _Job(
            pixels,
            size_hw,
            detections,
            pairs_ho,
            unions,
            distinct,
            window_of_pair.reshape(len(pairs_ho), len(crop.margins)),
            paired,
            window_of_paired,
        )

    def _encode_crops(self, jobs: Sequence[_Job]) -> list[np.ndarray]:
        """Every image's distinct windows to embeddings, float32 [U, D]; crops of all images fill common batches."""
        style, batch_size = self._teacher.crop_style, self._config.teacher.batch_size
        batch = self._blank(batch_size, style.size_px)
        flat = [(job.pixels, window) for job in jobs for window in job.windows]
        encoded = []
        for start in range(0, len(flat), batch_size):
            chunk = flat[start : start + batch_size]
            for row, (pixels, window) in enumerate(chunk):
                batch[row] = cut_crop(pixels, window, style.size_px, style)
            batch[len(chunk) :] = 0
            encoded.append(self._teacher.encode_crops(batch)[: len(chunk)].cpu().numpy())
        width = self.axes["D"]
        return _split(np.concatenate([np.zeros((0, width), np.float32), *encoded]), [len(job.windows) for job in jobs])

    def _encode_images(self, jobs: Sequence[_Job]) -> tuple[np.ndarray, tuple[Tensor, ...]]:
        """Whole images to embeddings, float32 [B, D], and maps [B, C, H, W]."""
        side, style = self._teacher.image_size_px, self._teacher.crop_style
        embeddings, maps = [], []
        batch_size = min(IMAGE_BATCH, self._config.teacher.batch_size)
        for start in range(0, len(jobs), batch_size):
            chunk = jobs[start : start + batch_size]
            batch = self._blank(batch_size, side)
            for row, job in enumerate(chunk):
                batch[row] = cut_crop(job.pixels, whole_image_window(job.size_hw), side, style)
            whole = self._teacher.encode_images(batch)
            embeddings.append(whole.embedding[: len(chunk)].cpu().numpy())
            maps.append([level[: len(chunk)] for level in whole.maps])
        return np.concatenate(embeddings), tuple(torch.cat(level) for level in zip(*maps, strict=True))

    def _encode_regions(self, jobs: Sequence[_Job], maps: Sequence[Tensor]) -> list[np.ndarray]:
        """Every image's detections, then its pairs' unions, to features of the map, float32 [N + P, L', D]."""
        side, batch_size = self._teacher.image_size_px, self._config.teacher.batch_size
        regions, rows_of, start = [], [], 0
        for row, job in enumerate(jobs):
            boxes = np.concatenate([job.detections.boxes_xyxy, job.unions])
            distinct, place = np.unique(boxes, axis=0, return_inverse=True)
            in_input = boxes_in_window(distinct, whole_image_window(job.size_hw), side)
            regions.append(np.concatenate([np.full((len(distinct), 1), row, np.float32), in_input], axis=1))
            rows_of.append(place.reshape(-1) + start)
            start += len(distinct)
        flat = torch.from_numpy(np.concatenate(regions)).to(self._device)
        width = self.axes["D"]
        encoded = [np.zeros((0, len(self._map_levels), width), np.float32)]
        for chunk in flat.split(batch_size):
            padded = torch.cat([chunk, chunk.new_zeros(batch_size - len(chunk), 5)])
            encoded.append(self._teacher.encode_regions(maps, padded)[: len(chunk)].cpu().numpy())
        features = np.concatenate(encoded)
        return [features[rows] for rows in rows_of]

    def _blank(self, batch_size: int, size_px: int) -> Tensor:
        """Zeros, uint8 [batch_size, 3, size_px, size_px], in the layout that the teacher reads."""
        zeros = torch.zeros(batch_size, 3, size_px, size_px, dtype=torch.uint8, device=self._device)
        return zeros.contiguous(memory_format=torch.channels_last)

    def _similarity(self, embedding: np.ndarray) -> np.ndarray:
        return (embedding.astype(np.float32) @ self.text_bank.text_embedding.T).astype(np.float16)


def _crop_features(job: _Job, embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of an image's windows to those of its detections, then its unions, float32 [N + P, D].

    A detection that takes part in no pair is not encoded; its row is zero and no reader asks for it.
    """
    of_detections = np.zeros((len(job.detections), embeddings.shape[1]), np.float32)
    of_detections[job.paired] = embeddings[job.window_of_paired]
    return np.concatenate([of_detections, embeddings[job.window_of_pair[:, 0]]])


def _split(rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(counts)[:-1])
