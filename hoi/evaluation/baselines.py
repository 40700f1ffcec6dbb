"""What needs no training, as scorers of the same cached pairs: the detector alone, and CLIP asked directly.

Letters: B images, P pairs, K interactions, M crop margins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hoi.config import VlmConfig
from hoi.evaluation.hico import match, score_matches
from hoi.records import BranchScores, HoiLabels, PairBatch, TextBank
from hoi.scoring import Scorer, extra_of, gated, score_split
from hoi.vocabulary import Vocabulary

Form = Literal["softmax", "object_softmax", "sigmoid"]

TEMPERATURES = (1.0, 0.5, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


@dataclass(frozen=True)
class DetectorPrior:
    """Knows boxes and classes only: every interaction that an object admits is equally likely.

    Args:
        vocabulary: Says which interactions an object admits.
    """

    vocabulary: Vocabulary

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to one score a pair, spread over its object's interactions."""
        admitted = _admitted(batch, self.vocabulary).float()
        return {"detector_prior": admitted / admitted.sum(-1, keepdim=True).clamp(min=1)}


@dataclass(frozen=True)
class DirectSetting:
    """How direct CLIP is read; the first of `direct_settings` is CLIP as it comes.

    Args:
        form: `softmax` over all K; `object_softmax` over the interactions of the pair's object; `sigmoid` of each
            alone, for teachers with a logit bias.
        temperature: Divides the logits.
        margin: Row of the cached crop margins, or None for the mean of their similarities.
    """

    form: Form
    temperature: float
    margin: int | None


@dataclass(frozen=True)
class DirectClip:
    """The frozen teacher in place of a student: no training, no box geometry, crops at test time.

    Args:
        bank: The teacher's logit scale and bias.
        vocabulary: Says which interactions an object admits.
        setting: How similarities become scores.
        name: Row name of its scores.
    """

    bank: TextBank
    vocabulary: Vocabulary
    setting: DirectSetting
    name: str

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to scores from the union crop of each pair."""
        similarity = batch.union_similarity.float()
        margin = self.setting.margin
        return {self.name: self.read(similarity.mean(1) if margin is None else similarity[:, margin], batch)}

    def read(self, similarity: Float[Tensor, "P K"], batch: PairBatch) -> Float[Tensor, "P K"]:
        """Cosines of each pair, from whatever picture, to scores in [0, 1], float64."""
        logits = (self.bank.logit_scale * similarity + (self.bank.logit_bias or 0.0)) / self.setting.temperature
        # In float64 a softmax over hundreds of classes keeps the order of scores that float32 would round to zero.
        logits = logits.double()
        if self.setting.form == "sigmoid":
            return logits.sigmoid()
        if self.setting.form == "object_softmax":
            # A finite floor, so that an object that admits no interaction gives no NaN.
            logits = logits.masked_fill(~_admitted(batch, self.vocabulary), torch.finfo(logits.dtype).min)
        return logits.softmax(-1)


@dataclass(frozen=True)
class DirectClipLevels:
    """What the whole image adds to the crops, without training.

    Args:
        crop: Direct CLIP on union crops; its setting reads the whole image as well.
    """

    crop: DirectClip

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to the crop's rows, `NAME_image` (the whole image's score at each of its pairs) and `NAME_product`."""
        crops = self.crop.branch_scores(batch)
        name = self.crop.name
        image = self.crop.read(batch.image_similarity.float()[batch.pair_image], batch)
        return {name: crops[name], f"{name}_image": image, f"{name}_product": crops[name] * image}


@dataclass(frozen=True)
class GatedDirectClip:
    """Direct CLIP with the competition gate that a student may use: what of a student's gain needs no training.

    Args:
        crop: Direct CLIP on union crops.
        gate_exponent: See `hoi.scoring.gated`.
        name: Row name of its scores.
    """

    crop: DirectClip
    gate_exponent: float
    name: str

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to the gated scores of the union crops."""
        scores = self.crop.branch_scores(batch)[self.crop.name]
        vocabulary = self.crop.vocabulary
        is_real = _admitted(batch, vocabulary) & torch.from_numpy(~vocabulary.is_no_interaction).to(scores.device)
        return {self.name: gated(scores, is_real, batch.rows_h, batch.rows_o, self.gate_exponent)}


@dataclass(frozen=True)
class DirectVlm:
    """A vision language model in the place of a student: its confidences as they are cached, 0 where it was not asked.

    Args:
        vlm: The pass's name.
        image: Row name of its confidences in the whole image, given to each pair; None where it has none.
        pairs: Row name of its confidences in each pair's union crop; None where it has none.
    """

    vlm: str
    image: str | None
    pairs: str | None

    @property
    def rows(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(row for row in (self.image, self.pairs) if row is not None)

    @property
    def scoring_fields(self) -> tuple[str, ...]:
        """See `hoi.scoring.extra_of`."""
        named = {"vlm_scores": self.image, "vlm_pair_scores": self.pairs}
        return tuple(f"{self.vlm}/{own}" for own, row in named.items() if row is not None)

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Batch to the rows that there are."""
        rows = {}
        if self.image is not None:
            rows[self.image] = batch.extra[f"{self.vlm}/vlm_scores"][batch.pair_image]
        if self.pairs is not None:
            rows[self.pairs] = batch.extra[f"{self.vlm}/vlm_pair_scores"]
        return rows


def direct_vlms(vlms: Mapping[str, VlmConfig]) -> list[DirectVlm]:
    """The passes of a pipeline file to their rows, `vlm_image` and `vlm_pairs`; those of further passes are
    `vlm_image/NAME` and `vlm_pairs/NAME`."""
    images = [name for name, settings in vlms.items() if settings.image_scores]
    pairs = [name for name, settings in vlms.items() if settings.pair_scores]

    def row(kind: str, names: list[str], name: str) -> str | None:
        if name not in names:
            return None
        return kind if name == names[0] else f"{kind}/{name}"

    found = [DirectVlm(name, row("vlm_image", images, name), row("vlm_pairs", pairs, name)) for name in vlms]
    return [scorer for scorer in found if scorer.scoring_fields]


def _admitted(batch: PairBatch, vocabulary: Vocabulary) -> Tensor:
    return torch.from_numpy(vocabulary.object_mask).to(batch.labels_o.device)[batch.labels_o]


def direct_settings(bank: TextBank, num_margins: int) -> list[DirectSetting]:
    """Every reading of direct CLIP, the plainest first: the teacher's own form and scale, on the first margin.

    Args:
        bank: A logit bias (SigLIP) makes sigmoid the teacher's own form and adds it to the choice.
        num_margins: M.
    """
    forms: tuple[Form, ...] = ("softmax", "object_softmax")
    if bank.logit_bias is not None:
        forms = ("sigmoid", *forms)
    margins: tuple[int | None, ...] = (*range(num_margins), None) if num_margins > 1 else (0,)
    return [DirectSetting(form, t, margin) for form, margin, t in product(forms, margins, TEMPERATURES)]


def setting_knobs(setting: DirectSetting, exponent: float, margins: tuple[float, ...]) -> dict[str, Any]:
    """The knobs that made a row, with the crop margin as the factor that it is."""
    margin = "mean" if setting.margin is None else margins[setting.margin]
    return {**asdict(setting), "margin": margin, "score_exponent": exponent}


EXPONENTS = (1.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.4, 2.0, 2.8)
"""γ of (s_h · s_o)^γ, the plain product first; 2.8 is published for HICO-DET (spatially-conditioned-graphs)."""


@dataclass(frozen=True)
class Tuned:
    """The best of a grid.

    Args:
        choice: Row of the scorers that were tried.
        exponent: γ.
        quality: mAP on the tuning split, as a fraction.
        num_tried: Size of the grid.
    """

    choice: int
    exponent: float
    quality: float
    num_tried: int

    def to_dict(self, split: str) -> dict[str, Any]:
        """What a result row says of its tuning."""
        return {"tuned_on": split, "tuned_full": round(100 * self.quality, 4), "num_tried": self.num_tried}


class Tuner:
    """A labelled split on which many readings of the same pairs are compared; pairs are matched to the truth once.

    Args:
        batches: Gives the split's batches anew, in the same order each time.
        labels: Of the split.
        vocabulary: Whose interactions.
        device: Where scorers compute.
    """

    def __init__(
        self,
        batches: Callable[[Sequence[str]], Iterable[PairBatch]],
        labels: HoiLabels,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> None:
        self.batches, self.vocabulary, self.device = batches, vocabulary, device
        detected = score_split(_DetectionScore(), batches(()), vocabulary, 1.0, device)["detection"]
        self._detection_score = detected.score
        self._matches = match(detected, labels, len(vocabulary), protocol="official")

    def tune(self, scorers: Iterable[Scorer], name: str) -> Tuned:
        """Scorers × exponents to the pair with the best mAP; among equals the first tried, so the plainest.

        Args:
            scorers: The settings to choose from.
            name: Which of their rows is judged.
        """
        tried: list[Tuned] = []
        unmarked = np.zeros(len(self.vocabulary), bool)
        for choice, scorer in enumerate(scorers):
            plain = score_split(scorer, self.batches(extra_of(scorer)), self.vocabulary, 0.0, self.device)[name].score
            for exponent in EXPONENTS:
                score = plain * self._detection_score**exponent
                result = score_matches(self._matches, score, unmarked, unmarked)
                tried.append(Tuned(choice, exponent, result.full or 0.0, 0))
        best = max(tried, key=lambda found: found.quality)
        return Tuned(best.choice, best.exponent, best.quality, len(tried))


class _DetectionScore:
    """1 for every pair, so that the triplets' scores are s_h · s_o alone."""

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        shape = (batch.num_pairs, batch.image_similarity.shape[1])
        return {"detection": torch.ones(shape, device=batch.scores_h.device)}
