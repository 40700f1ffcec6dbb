"""Measure students without labels: consistency under mirroring, and coverage of the phrases.

Coverage is of all pairs of `evaluation.split`, from the cache. Consistency is measured on a sample of its images, whose
mirrored copies go through teacher and student with the same boxes. No label is read.

Shapes: P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hoi.cache.read.split import CacheSplit, open_split
from hoi.config import PipelineConfig
from hoi.datasets import UnreadableImage, open_images
from hoi.errors import UserError
from hoi.evaluation.baselines import DirectClip, direct_settings
from hoi.extraction import Extractor
from hoi.files import write_json
from hoi.machine import choose_device
from hoi.prediction.predictor import batch_of
from hoi.quality.measures import LIMITS, agreement, coverage, format_quality, mirror
from hoi.records import Detections, PairBatch
from hoi.scoring import Scorer, extra_of
from hoi.training.train import run_folder

FILE_NAME = "quality.json"
BATCH_IMAGES = 64
TEACHER = "direct_clip"
STUDENT = "student"
"""Name of a student's fused score among its branches."""


@dataclass(frozen=True)
class QualityReport:
    """What was measured, as in the file, and the file."""

    content: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        return f"{format_quality(self.content)}\n\nwrote {self.path}"


@dataclass(frozen=True)
class _Candidate:
    """A scorer of pairs, the row of its score, and the exponent of the detection prior."""

    scorer: Scorer
    row: str
    exponent: float
    device: torch.device

    def score(self, batch: PairBatch) -> np.ndarray:
        """Return scores [P, K], without the detection prior."""
        with torch.inference_mode():
            return self.scorer.branch_scores(batch.to(self.device))[self.row].cpu().double().numpy()


@dataclass(frozen=True)
class _GivenDetections:
    """A detector that returns the detections it was given, by image."""

    by_image: dict[str, Detections]

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        return [self.by_image[image_id] for image_id in image_ids]

    def provenance(self) -> dict[str, object]:
        return {"name": "given"}


def measure_quality(config: PipelineConfig, sample: int = 24, branches: bool = False) -> QualityReport:
    """Measure every student (and its `branches`), first seed, and the teacher itself, with `sample` images mirrored."""
    if sample < 0:
        raise UserError("this number is too small", where="--sample", expected="0 or more", got=sample)
    torch.set_num_threads(config.train.threads)
    split = open_split(config, config.evaluation.split)
    if not split.num_pairs:
        raise UserError("there is no pair to measure", where=f"split '{config.evaluation.split}'", fix="add images")
    candidates = _candidates(config, split, branches)
    extra = sorted({field for each in candidates.values() for field in extra_of(each.scorer)})
    scores_of, (prior, image, admitted) = _score(split, candidates, extra)
    images, mirrored = _score_mirrored(config, split, candidates, extra, sample)
    rows = np.isin(image, images)
    scorers = {}
    for name, candidate in candidates.items():
        scores, measures = scores_of[name], {}
        if images:
            measures["flip"] = {"rank": agreement(scores[rows], np.concatenate(mirrored[name]), admitted[rows])}
        final = scores * (prior**candidate.exponent)[:, None]
        phrases = [each.to_dict() for each in coverage(final, admitted, image)]
        scorers[name] = {"measures": measures, "phrases": phrases}
    content: dict[str, Any] = {
        "name": config.name,
        "split": config.evaluation.split,
        "num_images": split.num_images,
        "num_readable": int(split.is_readable.sum()),
        "num_images_with_pair": int((np.diff(split.pair_offsets) > 0).sum()),
        "num_pairs": split.num_pairs,
        "num_images_looked_at_again": len(images),
        "phrases": split.vocabulary.names,
        "scorers": scorers,
        "limits": list(LIMITS),
        "labels_read": None,
        "fingerprint": split.fingerprint,
    }
    path = Path(config.output) / FILE_NAME
    write_json(path, content)
    return QualityReport(content, path)


def _candidates(config: PipelineConfig, split: CacheSplit, branches: bool) -> dict[str, _Candidate]:
    device = choose_device(config.train.device)
    candidates = {}
    for name, settings in config.students.items():
        if settings.supervision == "teacher":
            folder = run_folder(config, name, config.train.seeds[0], split.fingerprint)
            student = folder.load_student(split.text_bank, split.vocabulary, split.axes).to(device)
            batch = next(split.batches(1, extra=student.extra_fields)).to(device)
            with torch.inference_mode():
                rows = student.branch_scores(batch) if branches else [STUDENT]
            for row in rows:
                part = name if row == STUDENT else f"{name}/{row}"
                candidates[part] = _Candidate(student, row, settings.score_exponent, device)
    plain = DirectClip(split.text_bank, split.vocabulary, direct_settings(split.text_bank, split.axes["M"])[0], TEACHER)
    return {**candidates, TEACHER: _Candidate(plain, TEACHER, 1.0, device)}


def _score(
    split: CacheSplit, candidates: dict[str, _Candidate], extra: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    """Return scores [P, K] by candidate, and of all pairs the prior they lack, image and admitted interactions."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    prior, image, admitted = [], [], []
    for batch in split.batches(BATCH_IMAGES, extra=extra):
        for name, candidate in candidates.items():
            scores[name].append(candidate.score(batch))
        prior.append((batch.scores_h * batch.scores_o).double().numpy())
        image.append(batch.image_rows[batch.pair_image].numpy())
        admitted.append(split.vocabulary.object_mask[batch.labels_o.numpy()])
    joined = {name: np.concatenate(parts) for name, parts in scores.items()}
    return joined, tuple(map(np.concatenate, (prior, image, admitted)))


def _score_mirrored(
    config: PipelineConfig, split: CacheSplit, candidates: dict[str, _Candidate], extra: Sequence[str], num: int
) -> tuple[list[int], dict[str, list[np.ndarray]]]:
    """Mirror images with pairs, evenly spread over the split, and score their pairs; leave unreadable ones out.

    Return the rows of the images, and by candidate the scores [P, K] of each image.
    """
    if not num:
        return [], {}
    with_pair = np.flatnonzero(np.diff(split.pair_offsets) > 0)
    rows = with_pair[np.unique(np.linspace(0, len(with_pair) - 1, min(num, len(with_pair))).astype(int))]
    source = open_images(config.dataset, config.evaluation.split)
    row_of = {image_id: row for row, image_id in enumerate(source.image_ids)}
    given = _GivenDetections({})
    device = choose_device(config.cache.device, "cache.device").type
    extractor = Extractor(config, split.vocabulary, device, split.text_bank, few_images=True, detector=given)
    read: list[int] = []
    scores: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    for row in tqdm(rows.tolist(), "mirrored", unit="image", disable=None, leave=False):
        image_id = split.image_ids[row]
        try:
            pixels = source.read(row_of[image_id])
        except UnreadableImage:
            continue
        read.append(row)
        here = slice(*split.detection_offsets[row : row + 2])
        detections = Detections(split.boxes_xyxy[here], split.scores[here], split.labels[here])
        pixels, given.by_image[image_id] = mirror(pixels, detections)
        batch = batch_of(extractor.extract([image_id], [pixels]), extra, split.vocabulary.no_object_idx)
        for name, candidate in candidates.items():
            scores[name].append(candidate.score(batch))
    return read, scores
