"""Images of one's own to scored triplets, with detector, CLIP and student in memory.

The steps are those of the cached path, down to the float16 in which a cache keeps features, so that an image gets the
scores that it would get there (to 1e-4: forward passes here are not padded, which moves last bits).

Letters: P pairs, K interactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from PIL import Image

from hoi.config import PipelineConfig
from hoi.datasets.images import read_image, upright_rgb
from hoi.errors import UserError
from hoi.evaluation.baselines import DirectClip, direct_settings
from hoi.extraction import Extractor
from hoi.machine import choose_device, keeping_to_own_threads
from hoi.prediction.batch import batch_of, blank_signals, on_device
from hoi.prediction.checkpoint import Checkpoint
from hoi.prompts import a_object, verb_ing
from hoi.records import Detections, ImageSignals, PairBatch, Triplets
from hoi.scoring import score_triplets
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, Vocabulary

BoxXyxy = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class HoiTriplet:
    """One scored ⟨human, verb, object⟩. Boxes are pixel-edge xyxy of the upright image.

    Args:
        human_xyxy, object_xyxy: Equal for what a person does alone.
        human_score, object_score: The detector's confidence.
        verb, object: Names of the vocabulary.
        phrase: The interaction in words.
        interaction_idx: Row of the vocabulary's interactions.
        score: The student's, detection prior included.
        teacher_score: Direct CLIP's of the same pair and interaction, as the row `direct_clip` of stage three.
        human_idx, object_idx: Rows of the image's detections.
    """

    human_xyxy: BoxXyxy
    object_xyxy: BoxXyxy
    human_score: float
    object_score: float
    verb: str
    object: str
    phrase: str
    interaction_idx: int
    score: float
    teacher_score: float
    human_idx: int
    object_idx: int

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "human_xyxy": list(self.human_xyxy), "object_xyxy": list(self.object_xyxy)}


@dataclass(frozen=True)
class ImageResult:
    """One image.

    Args:
        image_id: What it was called.
        size_hw: Pixels of the upright image.
        detections: All that the detector found, by falling score.
        object_names: N names, of each detection's class.
        triplets: By falling score.
    """

    image_id: str
    size_hw: tuple[int, int]
    detections: Detections
    object_names: list[str]
    triplets: list[HoiTriplet]

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        boxes, scores = self.detections.boxes_xyxy.tolist(), self.detections.scores.tolist()
        return {
            "image_id": self.image_id,
            "size_hw": list(self.size_hw),
            "detections": [
                {"xyxy": box, "score": score, "object": name}
                for box, score, name in zip(boxes, scores, self.object_names, strict=True)
            ],
            "triplets": [triplet.to_dict() for triplet in self.triplets],
        }


Picture = Union[Image.Image, np.ndarray, str, Path]
"""A PIL image of any mode, an array uint8 [H, W, 3] RGB, or the path of an image file."""
STUDENT, TEACHER = "student", "direct_clip"
DIRECT_EXPONENT = 1.0
"""Of the detection prior in direct CLIP's score, as in stage three."""
MAX_IMAGE_PIXELS = 100_000_000


class Predictor:
    """A checkpoint, ready to run. Calls leave no trace in it, so several threads may share one.

    Args:
        checkpoint: What `Checkpoint.open` gave.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        UserError: models that cannot be loaded or are others than the checkpoint's, or a student that asks for what
            a single image does not have.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto") -> None:
        self.checkpoint = checkpoint
        self.vocabulary: Vocabulary = checkpoint.vocabulary
        self.config: PipelineConfig = checkpoint.config
        self.device = choose_device(device, "--device")
        self._refuse_looked_up()
        self._extractor = Extractor(
            self.config, self.vocabulary, self.device.type, text_bank=checkpoint.bank, few_images=True
        )
        checkpoint.check_models(self._extractor.provenance())
        self._student = checkpoint.student().to(self.device)
        self._settings = self.config.students[checkpoint.name]
        plain = direct_settings(checkpoint.bank, checkpoint.axes["M"])[0]
        self._direct = DirectClip(checkpoint.bank, self.vocabulary, plain, TEACHER)
        self._phrases = [phrase_of(self.vocabulary, k) for k in range(len(self.vocabulary))]
        self._num_admitted = self.vocabulary.object_mask.sum(1)
        with torch.inference_mode():
            self._student.branch_scores(self._batch([blank_signals(checkpoint.axes)]))

    @classmethod
    def from_checkpoint(cls, folder: str | Path, device: str = "auto", overrides: Sequence[str] = ()) -> Predictor:
        """A checkpoint's folder to its predictor.

        Args:
            folder: Written by `hoi.prediction.export`.
            device: `auto`, `cpu` or `cuda`.
            overrides: `section.key=value` of detector, pairs and teacher: `teacher.model=local-dir:FOLDER` says where
                a CLIP lies that was too large to be copied.

        Raises:
            UserError: see `Checkpoint.open` and `Predictor`.
        """
        return cls(Checkpoint.open(folder, overrides), device)

    def __call__(
        self, image: Picture, *, image_id: str | None = None, top: int | None = None, threshold: float = 0.0
    ) -> ImageResult:
        """One image to what is found in it; see `predict`."""
        return self.predict([image], None if image_id is None else [image_id], top=top, threshold=threshold)[0]

    def predict(
        self,
        images: Sequence[Picture],
        image_ids: Sequence[str] | None = None,
        *,
        top: int | None = None,
        threshold: float = 0.0,
    ) -> list[ImageResult]:
        """Images to what is found in each, in their order.

        Args:
            images: Paths, PIL images or uint8 [H, W, 3] RGB arrays.
            image_ids: Their names; None for file names, and numbers for images that have none.
            top: Triplets of each image that are kept, at most; None for all.
            threshold: Least score of a triplet that is kept.

        Raises:
            UnreadableImage: a path that cannot be read as an image; the text is the reason.
            ValueError: an array that is no picture.
        """
        names = [_name(image, row) for row, image in enumerate(images)] if image_ids is None else list(image_ids)
        pixels = [self._pixels(image) for image in images]
        # To start a thread takes longer than it would save for a few images.
        with keeping_to_own_threads():
            signals = self._extractor.extract(names, pixels)
        return list(self._results(signals, top, threshold)) if signals else []

    def _pixels(self, image: Picture) -> np.ndarray:
        if isinstance(image, (str, Path)):
            limit = getattr(self.config.dataset, "max_image_pixels", MAX_IMAGE_PIXELS)
            return read_image(Path(image), limit)
        if isinstance(image, Image.Image):
            return upright_rgb(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image

    def _batch(self, signals: Sequence[ImageSignals]) -> PairBatch:
        batch = batch_of(signals, self._student.scoring_fields, self.vocabulary.no_object_idx)
        return on_device(batch, self.device)

    @torch.inference_mode()
    def _results(self, signals: Sequence[ImageSignals], top: int | None, threshold: float) -> Iterator[ImageResult]:
        batch = self._batch(signals)
        exponent = self._settings.score_exponent
        scored = score_triplets(batch, self._student.branch_scores(batch)[STUDENT], self.vocabulary, exponent)
        direct = self._direct.branch_scores(batch)[TEACHER]
        teacher = score_triplets(batch, direct, self.vocabulary, DIRECT_EXPONENT)
        pair_of = np.repeat(np.arange(batch.num_pairs), self._num_admitted[batch.labels_o.cpu().numpy()])
        bounds = np.searchsorted(scored.image, np.arange(len(signals) + 1))
        first_pair = np.cumsum([0, *(len(each.pairs_ho) for each in signals)])
        for row, each in enumerate(signals):
            rows = np.arange(bounds[row], bounds[row + 1])
            rows = rows[np.argsort(-scored.score[rows], kind="stable")]
            rows = rows[scored.score[rows] >= threshold][:top]
            yield self._result(each, scored, teacher.score, pair_of[rows] - first_pair[row], rows)

    def _result(
        self, signals: ImageSignals, scored: Triplets, teacher: np.ndarray, pairs: np.ndarray, rows: np.ndarray
    ) -> ImageResult:
        found, objects = signals.detections, self.vocabulary.objects
        boxes: list[BoxXyxy] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in found.boxes_xyxy.tolist()]
        confidences = found.scores.tolist()
        columns = (
            signals.pairs_ho[pairs].tolist(),
            scored.interaction[rows].tolist(),
            scored.score[rows].tolist(),
            teacher[rows].tolist(),
        )
        triplets = [
            HoiTriplet(
                boxes[human],
                boxes[thing],
                confidences[human],
                confidences[thing],
                self.vocabulary.interactions[k][0],
                self.vocabulary.interactions[k][1],
                self._phrases[k],
                k,
                score,
                teacher_score,
                human,
                thing,
            )
            for (human, thing), k, score, teacher_score in zip(*columns, strict=True)
        ]
        height, width = signals.size_hw.tolist()
        names = [objects[label] for label in found.labels.tolist()]
        return ImageResult(signals.image_id, (height, width), found, names, triplets)

    def _refuse_looked_up(self) -> None:
        if self.config.detector.needs_annotations:
            raise UserError(
                "this student was made for annotated boxes, which other images do not have",
                where=f"{self.checkpoint.folder}, detector {self.config.detector.name}",
                expected="a detector that looks at images, or precomputed detections of them",
                fix="build the cache with another detector, train and make the checkpoint again",
            )


def phrase_of(vocabulary: Vocabulary, interaction_idx: int) -> str:
    """An interaction in words: its own phrase, or as `riding a bicycle`."""
    own, (verb, thing) = vocabulary.phrases[interaction_idx], vocabulary.interactions[interaction_idx]
    if own is not None:
        return own
    if thing == NO_OBJECT:
        return verb_ing(verb)
    return f"no interaction with {a_object(thing)}" if verb == NO_INTERACTION else f"{verb_ing(verb)} {a_object(thing)}"


def _name(image: Picture, row: int) -> str:
    return Path(image).name if isinstance(image, (str, Path)) else f"image-{row}"
