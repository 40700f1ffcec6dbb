"""What a vision language model says of images, as the records of an extra pass.

Nothing is detected and no image is embedded here: labels, boxes and pairs are the cache's, and of the teacher only the
text side is opened.

Shapes: K interactions, O object classes, n candidates of one image, P pairs, S sentences at most, D joint width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoi.boxes import union_boxes
from hoi.config import PipelineConfig, VlmConfig
from hoi.crops import CropStyle, crop_windows, cut_crop
from hoi.errors import UserError
from hoi.prompts import interaction_prompts
from hoi.records import ImageSignals
from hoi.registry import load_target
from hoi.vlm import Likelihoods, PhraseBank, VlmSignals, build_vlm
from hoi.vlm.scoring import (
    Confidences,
    candidate_rows,
    confidences_by_likelihood,
    confidences_by_text,
    confidences_by_yes,
    vocabulary_lexicon,
)
from hoi.vocabulary import Vocabulary

BLANK_PX = 224
BLANK_GREY = 128  # of the image that shows nothing
MAX_CROP_PX = 672
"""Union crops keep the image's own pixels up to this side; the model resizes them as it resizes any image."""

Image = tuple[ImageSignals, np.ndarray]
"""What the base pass knows of an image, and its pixels: uint8 [H, W, 3] RGB, upright."""


class VlmExtractor:
    """A vision language model and what the section `vlms.NAME` asks of it."""

    def __init__(self, config: PipelineConfig, name: str, vocabulary: Vocabulary, device: str) -> None:
        settings = self._settings = config.vlms[name]
        self._crop, self._vocabulary, self._device = config.teacher.crop, vocabulary, device
        texts = _phrases(settings, vocabulary, f"vlms.{name}.phrase")
        self._model = build_vlm(settings, device)
        self._text_side = load_target(config.teacher.TEXT_SIDE)(config.teacher, device) if settings.caption else None
        self._lexicon = vocabulary_lexicon(vocabulary, settings.synonyms)
        self.phrases = self._on_blank(texts)
        self.axes = {
            **({"K": len(vocabulary)} if settings.image_scores else {}),
            **({"Q": len(vocabulary)} if settings.pair_scores else {}),
            **({"S": settings.max_sentences, "D": self._text_side.width} if self._text_side is not None else {}),
        }

    def extract(self, images: Iterable[Image], teacher: Mapping[str, Any]) -> list[VlmSignals]:
        """Return one record for each image, in order; images are taken a batch at a time.

        `teacher` is the base pass's provenance of its teacher, for the style of its crops.
        """
        records: list[VlmSignals] = []
        remaining = iter(images)
        while chunk := list(islice(remaining, self._settings.batch_size)):
            records += self._extract(chunk, teacher)
        return records

    def provenance(self) -> dict[str, Any]:
        """Return everything that changes a record's content, in plain JSON types; `versions` is for the manifest."""
        of_model = dict(self._model.provenance())
        versions = of_model.pop("versions", {})
        settings = self._settings.model_dump(mode="json", exclude={"model", "pretrained"})
        return {
            "vlm": {**settings, "provenance": of_model, "max_crop_px": MAX_CROP_PX},
            "text": None if self._text_side is None else self._text_side.provenance(),
            "device": torch.device(self._device).type,
            "num_threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, **versions},
        }

    def _on_blank(self, texts: tuple[str, ...]) -> PhraseBank:
        """Return the phrases with their tokens, and how likely each is on a blank image."""
        num_tokens, prior = np.zeros(len(texts), np.int32), np.zeros(len(texts), np.float32)
        rows = np.flatnonzero(np.array(texts) != "")
        if self._settings.scoring in ("sum", "mean"):
            blank = np.full((BLANK_PX, BLANK_PX, 3), BLANK_GREY, np.uint8)
            [on_blank] = self._model.log_likelihoods([blank], [[texts[row] for row in rows]], self._settings.question)
            num_tokens[rows], prior[rows] = on_blank.num_tokens, on_blank.log_likelihood
        return PhraseBank(texts, num_tokens, prior)

    def _extract(self, chunk: Sequence[Image], teacher: Mapping[str, Any]) -> list[VlmSignals]:
        settings = self._settings
        images = [image for _, image in chunk]
        captions = self._model.captions(images) if settings.caption else None
        records: list[dict[str, Any]] = [{"image_id": signals.image_id} for signals, _ in chunk]
        if captions is not None:
            for record, caption in zip(records, captions, strict=True):
                record |= self._context(caption)
        if settings.image_scores:
            labels = [self._labels(signals) for signals, _ in chunk]
            for record, (confidences, sums) in zip(records, self._score(images, labels, captions), strict=True):
                scores, asked = confidences.scores.astype(np.float16), confidences.asked.astype(np.uint8)
                record |= {"vlm_scores": scores, "vlm_asked": asked, "vlm_log_likelihood": sums}
        if settings.pair_scores:
            for record, (signals, image) in zip(records, chunk, strict=True):
                record["vlm_pair_scores"] = self._of_pairs(signals, image, teacher)
        return [VlmSignals(**record) for record in records]

    def _context(self, caption: str) -> dict[str, Any]:
        assert self._text_side is not None
        # A model that writes bytes may write any, and a NUL would end the stored text.
        caption = caption.replace("\0", "")
        texts = sentences(caption)[: self._settings.max_sentences]
        embedding = np.zeros((self._settings.max_sentences, self._text_side.width), np.float16)
        embedding[: len(texts)] = self._text_side.encode(texts).numpy().astype(np.float16)
        mask = (np.arange(len(embedding)) < len(texts)).astype(np.uint8)
        return {"caption": caption, "context_embedding": embedding, "context_mask": mask}

    def _labels(self, signals: ImageSignals) -> np.ndarray:
        """Return int64 [P], the object of every pair; `no_object` for a human with itself."""
        human, obj = signals.pairs_ho.T
        labels = signals.detections.labels[obj].astype(np.int64)
        if self._vocabulary.no_object_idx is not None:
            labels[human == obj] = self._vocabulary.no_object_idx
        return labels

    def _score(
        self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray], captions: Sequence[str] | None
    ) -> list[tuple[Confidences, np.ndarray]]:
        """Return confidences and sums of log-probabilities, float32 [K], of images or crops and the classes in each."""
        with_no_interaction, every = self._settings.no_interaction == "asked", np.arange(len(self._vocabulary.objects))
        rows = [candidate_rows(self._vocabulary, np.isin(every, each), with_no_interaction) for each in labels]
        asked = [place for place, candidates in enumerate(rows) if len(candidates)]
        num = len(self._vocabulary)
        nothing = Confidences(np.zeros(num, np.float32), np.zeros(num, bool)), np.zeros(num, np.float32)
        result = [nothing] * len(rows)
        if asked:
            images, rows = [images[place] for place in asked], [rows[place] for place in asked]
            captions = captions and [captions[place] for place in asked]
            for place, answer in zip(asked, self._score_candidates(images, rows, captions), strict=True):
                result[place] = answer
        return result

    def _score_candidates(
        self, images: Sequence[np.ndarray], rows: Sequence[np.ndarray], captions: Sequence[str] | None
    ) -> Iterator[tuple[Confidences, np.ndarray]]:
        settings, vocabulary, phrases = self._settings, self._vocabulary, self.phrases
        with_product = {"no_interaction": settings.no_interaction}
        texts = [[phrases.phrases[row] for row in candidates] for candidates in rows]
        no_sums = np.zeros(len(vocabulary), np.float32)
        if settings.scoring == "yes_no":
            questions = [[settings.yes_no_question.format(phrase=text) for text in each] for each in texts]
            for yes, candidates in zip(self._model.yes_probabilities(images, questions), rows, strict=True):
                yield confidences_by_yes(yes, candidates, vocabulary, **with_product), no_sums
            return
        if settings.scoring == "free_text":
            if settings.question is not None:
                captions = self._model.answers(images, settings.question)
            elif captions is None:
                captions = self._model.captions(images)
            for text, candidates in zip(captions, rows, strict=True):
                yield confidences_by_text(text, candidates, vocabulary, self._lexicon, **with_product), no_sums
            return
        likelihoods = self._model.log_likelihoods(images, texts, settings.question)
        for of_image, candidates in zip(likelihoods, rows, strict=True):
            sums = no_sums.copy()
            sums[candidates] = of_image.log_likelihood
            confidences = confidences_by_likelihood(
                of_image,
                candidates,
                vocabulary,
                length=settings.scoring,
                temperature=settings.temperature,
                group=settings.group,
                blank=Likelihoods(phrases.prior_log_likelihood[candidates], phrases.num_tokens[candidates]),
                prior_weight=settings.prior_weight,
                **with_product,
            )
            yield confidences, sums

    def _of_pairs(self, signals: ImageSignals, image: np.ndarray, teacher: Mapping[str, Any]) -> np.ndarray:
        """Return float16 [P, K]: each pair's union crop asked about its object; equal questions are asked once."""
        style = CropStyle(
            teacher["crop_size_px"], tuple(teacher["fill_rgb"]), teacher["interpolation"], teacher["resize_mode"]
        )
        unions, size_hw = union_boxes(signals.detections.boxes_xyxy, signals.pairs_ho), (image.shape[0], image.shape[1])
        windows = crop_windows(unions, self._crop.margins[0], self._crop.mode, size_hw, style.resize_mode)
        questions = np.concatenate([windows, self._labels(signals)[:, None]], axis=1)
        questions, of_pair = np.unique(questions, axis=0, return_inverse=True)
        pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
        scores = np.zeros((len(questions), len(self._vocabulary)), np.float16)
        for start in range(0, len(questions), self._settings.batch_size):
            chunk = questions[start : start + self._settings.batch_size]
            crops = [_crop(pixels, question[:8], style) for question in chunk]
            for row, (confidences, _) in enumerate(self._score(crops, list(chunk[:, 8:]), None), start):
                scores[row] = confidences.scores.astype(np.float16)
        return scores[of_pair.reshape(-1)]


def sentences(text: str) -> list[str]:
    """Split text at full stops, question and exclamation marks before a space, and at line ends."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip(" .!?\n")]


def _phrases(settings: VlmConfig, vocabulary: Vocabulary, where: str) -> tuple[str, ...]:
    """Return K candidates' texts; empty for `no_interaction` if it is no candidate."""
    try:
        filled = interaction_prompts(vocabulary, [settings.phrase], [settings.no_interaction_phrase])
    except UserError as error:
        raise UserError(error.what, where=where, expected=error.expected, got=error.got or settings.phrase) from None
    dropped = vocabulary.is_no_interaction & (settings.no_interaction != "asked")
    return tuple("" if drop else texts[0] for texts, drop in zip(filled, dropped, strict=True))


def _crop(pixels: Tensor, window: np.ndarray, style: CropStyle) -> np.ndarray:
    side = int(min(MAX_CROP_PX, max(window[2] - window[0], window[3] - window[1])))
    return cut_crop(pixels, window, side, style).permute(1, 2, 0).contiguous().numpy()
