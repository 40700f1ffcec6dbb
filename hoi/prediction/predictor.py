"""Predict scored triplets in images, with detector, CLIP and student in memory.

The steps are those of the cached path, down to the float16 in which a cache keeps features, so an image gets the scores
that it would get there (to 1e-4: forward passes are not padded here, which changes the last bits).

Shapes: B images, N detections, P pairs, K interactions, D joint width of the teacher, M crop margins, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hoi.config import PipelineConfig
from hoi.datasets.images import read_image, upright_rgb
from hoi.errors import UserError
from hoi.evaluation.baselines import DirectClip, direct_settings
from hoi.extraction import Extractor, similarity
from hoi.machine import choose_device, keeping_to_own_threads
from hoi.prediction.checkpoint import Checkpoint
from hoi.prompts import a_object, verb_ing
from hoi.records import Detections, ImageSignals, PairBatch, Triplets
from hoi.scoring import score_triplets
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, Vocabulary

BoxXyxy = tuple[float, float, float, float]
Picture = Union[Image.Image, np.ndarray, str, Path]
"""A PIL image of any mode, an array uint8 [H, W, 3] RGB, or the path of an image file."""
STUDENT, TEACHER = "student", "direct_clip"
DIRECT_EXPONENT = 1.0  # of the detection prior in direct CLIP's score, as in stage three
MAX_IMAGE_PIXELS = 100_000_000
IMAGE_FIELDS = ("image_embedding", "image_similarity", "spatial_map")
PAIR_FIELDS = ("union_embedding", "union_similarity", "union_feature")


@dataclass(frozen=True, slots=True)
class HoiTriplet:
    """One scored ⟨human, verb, object⟩."""

    human_xyxy: BoxXyxy  # pixel edges of the upright image
    object_xyxy: BoxXyxy  # the human's again for what a person does alone
    human_score: float  # the detector's confidence
    object_score: float
    verb: str
    object: str
    phrase: str  # the interaction in words
    interaction_idx: int
    score: float  # the student's, detection prior included
    teacher_score: float  # direct CLIP's, as in the row `direct_clip` of stage three
    human_idx: int  # row of the image's detections
    object_idx: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "human_xyxy": list(self.human_xyxy), "object_xyxy": list(self.object_xyxy)}


@dataclass(frozen=True)
class ImageResult:
    """What was predicted in an upright image: detections with their N class names, and triplets, by falling score."""

    image_id: str
    size_hw: tuple[int, int]
    detections: Detections
    object_names: list[str]
    triplets: list[HoiTriplet]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
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


class ExtraFields(dict[str, Tensor]):
    """`PairBatch.extra` that raises only where a missing field is read.

    A student may name a field of an extra pass because its training targets need it, and score pairs without it.
    """

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"this student scores pairs with '{name}', which a single image does not have",
            where=f"the field {name}",
            expected="fields of detector and teacher alone",
            got="a field of an extra pass over a cache" if "/" in name else "a field that the teacher did not compute",
            fix="choose a student that scores without this field, or evaluate this one from a cache",
        )


def batch_of(signals: Sequence[ImageSignals], extra: Sequence[str], no_object_idx: int | None) -> PairBatch:
    """Collate signals of B ≥ 1 images to a float32 batch on the CPU, equal to `CacheSplit.batch` of the same images.

    A field of `extra` that the signals lack raises when it is read. `no_object_idx` is the object label of a human with
    itself; None where there are no such pairs.
    """
    num_pairs = [len(each.pairs_ho) for each in signals]
    first_row = np.cumsum([0, *(len(each.detections) for each in signals)])[:-1]
    of_pair = np.repeat(np.arange(len(signals)), num_pairs)
    pairs_ho = np.concatenate([each.pairs_ho for each in signals]).astype(np.int64)
    rows_h, rows_o = (pairs_ho + first_row[of_pair][:, None]).T
    boxes, scores, labels = (
        np.concatenate([getattr(each.detections, name) for each in signals])
        for name in ("boxes_xyxy", "scores", "labels")
    )
    regions = np.concatenate([each.detection_feature for each in signals])
    labels_o = labels[rows_o].astype(np.int64)
    if no_object_idx is not None:
        labels_o[rows_h == rows_o] = no_object_idx
    return PairBatch(
        image_rows=torch.arange(len(signals)),
        size_hw=_floats(np.stack([each.size_hw for each in signals])),
        image_embedding=_field(signals, "image_embedding"),
        image_similarity=_field(signals, "image_similarity"),
        pair_image=torch.from_numpy(of_pair),
        boxes_h=_floats(boxes[rows_h]),
        boxes_o=_floats(boxes[rows_o]),
        scores_h=_floats(scores[rows_h]),
        scores_o=_floats(scores[rows_o]),
        labels_o=torch.from_numpy(labels_o),
        pair_rows=torch.arange(len(pairs_ho)),
        rows_h=torch.from_numpy(rows_h.copy()),
        rows_o=torch.from_numpy(rows_o.copy()),
        human_feature=_floats(regions[rows_h]),
        object_feature=_floats(regions[rows_o]),
        union_feature=_field(signals, "union_feature"),
        union_similarity=_field(signals, "union_similarity"),
        extra=ExtraFields({name: _field(signals, name) for name in extra if hasattr(signals[0], name)}),
    )


def _field(signals: Sequence[ImageSignals], name: str) -> Tensor:
    values = [getattr(each, name) for each in signals]
    if name not in (*IMAGE_FIELDS, *PAIR_FIELDS) or values[0] is None:
        ExtraFields().__missing__(name)
    return _floats(np.stack(values) if name in IMAGE_FIELDS else np.concatenate(values))


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def random_signals(checkpoint: Checkpoint, num_pairs: int, rng: np.random.Generator) -> ImageSignals:
    """Return the signals of no image, with features near the texts of interactions, so that scores are of all sizes."""
    axes, texts, vocabulary = checkpoint.axes, checkpoint.bank.text_embedding, checkpoint.vocabulary
    num = num_pairs + 1

    def near_texts(*shape: int) -> np.ndarray:
        rows = rng.integers(len(texts), size=shape)
        vectors = texts[rows] + rng.normal(0, 0.3 / axes["D"] ** 0.5, (*shape, axes["D"]))
        return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)

    corners = rng.uniform(0, 400, (num, 2))
    image, union = near_texts(), near_texts(num_pairs, axes["M"])
    has_map = {"C", "H", "W"} <= axes.keys()
    return ImageSignals(
        image_id="random",
        size_hw=np.array([480, 640], np.int32),
        detections=Detections(
            np.concatenate([corners, corners + rng.uniform(5, 80, (num, 2))], 1).astype(np.float32),
            rng.uniform(0.2, 1, num).astype(np.float32),
            np.r_[vocabulary.person_idx, rng.integers(len(vocabulary.objects), size=num_pairs)],
        ),
        pairs_ho=np.stack([np.zeros(num_pairs), np.arange(1, num)], 1).astype(np.int32),
        image_embedding=image,
        image_similarity=similarity(image, texts),
        union_embedding=union,
        union_similarity=similarity(union, texts),
        detection_feature=near_texts(num, axes["L"]),
        union_feature=near_texts(num_pairs, axes["L"]),
        spatial_map=rng.normal(size=(axes["C"], axes["H"], axes["W"])).astype(np.float16) if has_map else None,
    )


class Predictor:
    """A checkpoint, ready to predict. Calls change nothing in it, so several threads may share one.

    Raises UserError: other models than the checkpoint's, or a student that reads what a single image does not have.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto") -> None:
        self.checkpoint = checkpoint
        self.vocabulary: Vocabulary = checkpoint.vocabulary
        self.config: PipelineConfig = checkpoint.config
        self.device = choose_device(device, "--device")
        if self.config.detector.needs_annotations:
            raise UserError(
                "this student was made for annotated boxes, which other images do not have",
                where=f"{checkpoint.folder}, detector {self.config.detector.name}",
                expected="a detector of images, or precomputed detections of them",
                fix="build the cache with another detector, then train and make the checkpoint again",
            )
        self._extractor = Extractor(
            self.config, self.vocabulary, self.device.type, text_bank=checkpoint.bank, few_images=True
        )
        checkpoint.check_models(self._extractor.provenance())
        self._student = checkpoint.student().to(self.device)
        self._exponent = self.config.students[checkpoint.name].score_exponent
        plain = direct_settings(checkpoint.bank, checkpoint.axes["M"])[0]
        self._direct = DirectClip(checkpoint.bank, self.vocabulary, plain, TEACHER)
        self._phrases = [phrase_of(self.vocabulary, k) for k in range(len(self.vocabulary))]
        self._num_admitted = self.vocabulary.object_mask.sum(1)
        with torch.inference_mode():
            # Raises where the student reads what a single image does not have.
            self._student.branch_scores(self._batch([random_signals(checkpoint, 1, np.random.default_rng(0))]))

    @classmethod
    def from_checkpoint(cls, folder: str | Path, device: str = "auto", overrides: Sequence[str] = ()) -> Predictor:
        """Load a checkpoint's folder; see `Checkpoint.open` for the overrides."""
        return cls(Checkpoint.open(folder, overrides), device)

    def __call__(
        self, image: Picture, *, image_id: str | None = None, top: int | None = None, threshold: float = 0.0
    ) -> ImageResult:
        """Predict one image; see `predict`."""
        return self.predict([image], None if image_id is None else [image_id], top=top, threshold=threshold)[0]

    def predict(
        self,
        images: Sequence[Picture],
        image_ids: Sequence[str] | None = None,
        *,
        top: int | None = None,
        threshold: float = 0.0,
    ) -> list[ImageResult]:
        """Predict images, in their order, and keep of each the `top` triplets that score at least `threshold`.

        Raises UnreadableImage, with the reason, for a path that cannot be read, and ValueError for an array that is no
        image.
        """
        names = list(image_ids or ())
        if image_ids is None:
            names = [
                Path(each).name if isinstance(each, (str, Path)) else f"image-{n}" for n, each in enumerate(images)
            ]
        pixels = [self._pixels(image) for image in images]
        # To start a thread takes longer than it would save for a few images.
        with keeping_to_own_threads():
            signals = self._extractor.extract(names, pixels)
        return list(self._results(signals, top, threshold)) if signals else []

    def _pixels(self, image: Picture) -> np.ndarray:
        if isinstance(image, (str, Path)):
            return read_image(Path(image), max_pixels_of(self.config))
        if isinstance(image, Image.Image):
            return upright_rgb(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        return image

    def _batch(self, signals: Sequence[ImageSignals]) -> PairBatch:
        batch = batch_of(signals, self._student.scoring_fields, self.vocabulary.no_object_idx).to(self.device)
        return replace(batch, extra=ExtraFields(batch.extra))

    @torch.inference_mode()
    def _results(self, signals: Sequence[ImageSignals], top: int | None, threshold: float) -> Iterator[ImageResult]:
        batch = self._batch(signals)
        branches = self._student.branch_scores(batch)
        scored = score_triplets(batch, branches[STUDENT], self.vocabulary, self._exponent)
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
        detections = signals.detections
        boxes: list[BoxXyxy] = [(x1, y1, x2, y2) for x1, y1, x2, y2 in detections.boxes_xyxy.tolist()]
        confidences = detections.scores.tolist()
        arrays = (signals.pairs_ho[pairs], scored.interaction[rows], scored.score[rows], teacher[rows])
        columns = [array.tolist() for array in arrays]
        triplets = [
            HoiTriplet(
                boxes[human_idx],
                boxes[object_idx],
                confidences[human_idx],
                confidences[object_idx],
                self.vocabulary.interactions[k][0],
                self.vocabulary.interactions[k][1],
                self._phrases[k],
                k,
                score,
                teacher_score,
                human_idx,
                object_idx,
            )
            for (human_idx, object_idx), k, score, teacher_score in zip(*columns, strict=True)
        ]
        height, width = signals.size_hw.tolist()
        names = [self.vocabulary.objects[label] for label in detections.labels.tolist()]
        return ImageResult(signals.image_id, (height, width), detections, names, triplets)


def max_pixels_of(config: PipelineConfig) -> int:
    """Return the width × height above which an image is refused."""
    return getattr(config.dataset, "max_image_pixels", MAX_IMAGE_PIXELS)


def phrase_of(vocabulary: Vocabulary, interaction_idx: int) -> str:
    """Return an interaction in words: the phrase of its own, or as `riding a bicycle`."""
    phrase, (verb, object_name) = vocabulary.phrases[interaction_idx], vocabulary.interactions[interaction_idx]
    if phrase is not None:
        return phrase
    if object_name == NO_OBJECT:
        return verb_ing(verb)
    return f"{'no interaction with' if verb == NO_INTERACTION else verb_ing(verb)} {a_object(object_name)}"
