"""Rows that need no training, as scorers of the same cached pairs; `BASELINES` is the table of them.

Shapes: P pairs, K interactions, M crop margins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig, VlmConfig
from hoi.evaluation.hico import match, score_matches
from hoi.records import BranchScores, HoiLabels, PairBatch, TextBank, Triplets
from hoi.scoring import Scorer, extra_of, gated, score_split
from hoi.vocabulary import Vocabulary

PRIOR, PLAIN, TUNED, GATED = "detector_prior", "direct_clip", "direct_clip_tuned", "direct_clip_gated"
VLM_IMAGE, VLM_PAIRS = "vlm_image", "vlm_pairs"
TEMPERATURES = (1.0, 0.5, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
EXPONENTS = (1.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.4, 2.0, 2.8)
"""γ of (s_h · s_o)^γ, the plain product first; 2.8 is published for HICO-DET (spatially-conditioned-graphs)."""
GATE_EXPONENTS = (0.5, 0.25, 1.0)
"""Tried on validation for direct CLIP; the students' own is fixed in the pipeline file."""

Form = Literal["softmax", "object_softmax", "sigmoid"]


@dataclass(frozen=True)
class DetectorPrior:
    """Knows boxes and classes only: every interaction that an object admits is equally likely."""

    vocabulary: Vocabulary

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        admitted = _admitted(batch, self.vocabulary).float()
        return {PRIOR: admitted / admitted.sum(-1, keepdim=True).clamp(min=1)}


@dataclass(frozen=True)
class DirectSetting:
    """How direct CLIP is read; the first of `direct_settings` is CLIP as it comes."""

    form: Form  # over all K, over the interactions of the pair's object, or each alone (of a teacher with a logit bias)
    temperature: float  # divides the logits
    margin: int | None  # row of the cached crop margins; None for the mean of their similarities

    def to_dict(self, exponent: float, margins: Sequence[float]) -> dict[str, Any]:
        """Return the settings of a result row, with the crop margin as the factor that it is."""
        margin = "mean" if self.margin is None else margins[self.margin]
        return {**asdict(self), "margin": margin, "score_exponent": exponent}


def direct_settings(bank: TextBank, num_margins: int) -> list[DirectSetting]:
    """Return every reading of direct CLIP, the plainest first: the teacher's own form and scale, on the first margin.

    A logit bias (SigLIP) makes sigmoid the teacher's own form and adds it to the choice.
    """
    forms: tuple[Form, ...] = ("softmax", "object_softmax")
    if bank.logit_bias is not None:
        forms = ("sigmoid", *forms)
    margins: tuple[int | None, ...] = (*range(num_margins), None) if num_margins > 1 else (0,)
    return [DirectSetting(form, t, margin) for form, margin, t in product(forms, margins, TEMPERATURES)]


@dataclass(frozen=True)
class DirectClip:
    """The frozen teacher in place of a student: no training, no box geometry, crops at test time."""

    bank: TextBank  # the teacher's logit scale and bias
    vocabulary: Vocabulary
    setting: DirectSetting
    name: str  # row name of its scores

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        similarity = batch.union_similarity.float()
        margin = self.setting.margin
        return {self.name: self.read(similarity.mean(1) if margin is None else similarity[:, margin], batch)}

    def read(self, similarity: Float[Tensor, "P K"], batch: PairBatch) -> Float[Tensor, "P K"]:
        """Turn cosines of each pair, from whatever picture, into scores in [0, 1], float64."""
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
    """Direct CLIP on crops, on whole images and on both, without training; one setting reads them all."""

    crop: DirectClip

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return the crop's row, `NAME_image` (the whole image's score at each of its pairs) and `NAME_product`."""
        crops = self.crop.branch_scores(batch)
        name = self.crop.name
        image = self.crop.read(batch.image_similarity.float()[batch.pair_image], batch)
        return {name: crops[name], f"{name}_image": image, f"{name}_product": crops[name] * image}


@dataclass(frozen=True)
class GatedDirectClip:
    """Direct CLIP with the competition gate that a student may use: what of a student's gain needs no training."""

    crop: DirectClip
    gate_exponent: float  # see hoi.scoring.gated
    name: str

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        scores = self.crop.branch_scores(batch)[self.crop.name]
        vocabulary = self.crop.vocabulary
        is_real = _admitted(batch, vocabulary) & torch.from_numpy(~vocabulary.is_no_interaction).to(scores.device)
        return {self.name: gated(scores, is_real, batch.rows_h, batch.rows_o, self.gate_exponent)}


@dataclass(frozen=True)
class DirectVlm:
    """A vision language model in place of a student: its confidences as they are cached, 0 where it was not asked."""

    vlm: str  # the pass's name
    named: dict[str, str]  # table of the pass → row name of its confidences

    @property
    def rows(self) -> tuple[str, ...]:
        return tuple(self.named.values())

    @property
    def scoring_fields(self) -> tuple[str, ...]:
        """See `hoi.scoring.extra_of`."""
        return tuple(f"{self.vlm}/{table}" for table in self.named)

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        """Return the confidences in each pair's union crop, and each pair's of its whole image."""
        tables = {table: batch.extra[f"{self.vlm}/{table}"] for table in self.named}
        return {
            row: tables[table][batch.pair_image] if table == "vlm_scores" else tables[table]
            for table, row in self.named.items()
        }


def direct_vlms(vlms: Mapping[str, VlmConfig]) -> list[DirectVlm]:
    """Return a scorer for each pass; the first has the rows `vlm_image` and `vlm_pairs`, others `vlm_image/NAME`."""
    named: dict[str, dict[str, str]] = {vlm: {} for vlm in vlms}
    for table, row, key in (("vlm_scores", VLM_IMAGE, "image_scores"), ("vlm_pair_scores", VLM_PAIRS, "pair_scores")):
        for number, vlm in enumerate(name for name, settings in vlms.items() if getattr(settings, key)):
            named[vlm][table] = f"{row}/{vlm}" if number else row
    return [DirectVlm(vlm, tables) for vlm, tables in named.items() if tables]


def _admitted(batch: PairBatch, vocabulary: Vocabulary) -> Tensor:
    return torch.from_numpy(vocabulary.object_mask).to(batch.labels_o.device)[batch.labels_o]


@dataclass(frozen=True)
class Tuned:
    """The best of a grid."""

    choice: int  # row of the scorers that were tried
    exponent: float  # γ
    quality: float  # mAP on the tuning split, as a fraction
    num_tried: int

    def to_dict(self, split: str) -> dict[str, Any]:
        """Return what a result row says of its tuning."""
        return {"tuned_on": split, "tuned_full": round(100 * self.quality, 4), "num_tried": self.num_tried}


class Tuner:
    """A labelled split on which many readings of the same pairs are compared; pairs are matched to the truth once.

    `batches` gives the split's batches anew, in the same order each time.
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
        """Return the scorer and exponent with the best mAP of the row `name`; among equals the first tried."""
        tried: list[Tuned] = []
        unmarked = np.zeros(len(self.vocabulary), bool)
        for choice, scorer in enumerate(scorers):
            plain = score_split(scorer, self.batches(extra_of(scorer)), self.vocabulary, 0.0, self.device)[name].score
            for exponent in EXPONENTS:
                score = plain * self._detection_score**exponent
                result = score_matches(self._matches, score, unmarked, unmarked)
                tried.append(Tuned(choice, exponent, result.full or 0.0, 0))
        best = max(tried, key=lambda tuned: tuned.quality)
        return Tuned(best.choice, best.exponent, best.quality, len(tried))


class _DetectionScore:
    # 1 for every pair, so that the triplets' scores are s_h · s_o alone.

    def branch_scores(self, batch: PairBatch) -> BranchScores:
        return {"detection": torch.ones(batch.num_pairs, batch.image_similarity.shape[1], device=batch.scores_h.device)}


@runtime_checkable
class Scoring(Protocol):
    """The evaluated split, as a baseline sees it."""

    config: PipelineConfig
    split: CacheSplit

    def tuner(self) -> Tuner:
        """Open another split, whose labels tune."""

    def score(self, scorer: Scorer, exponent: float) -> dict[str, Triplets]:
        """Score the whole split, by row name."""


Rows = Iterator[tuple[str, Triplets, dict[str, Any]]]  # row name, triplets and settings


def _prior(scoring: Scoring) -> Rows:
    for name, triplets in scoring.score(DetectorPrior(scoring.split.vocabulary), 1.0).items():
        yield name, triplets, {"score_exponent": 1.0}


def _direct_clip(scoring: Scoring) -> Rows:
    (setting, *_), margins = _settings(scoring), scoring.config.teacher.crop.margins
    scorer = DirectClipLevels(DirectClip(scoring.split.text_bank, scoring.split.vocabulary, setting, PLAIN))
    for name, triplets in scoring.score(scorer, 1.0).items():
        yield name, triplets, setting.to_dict(1.0, margins)


def _vlms(scoring: Scoring) -> Rows:
    for scorer in direct_vlms(scoring.config.vlms):
        for name, triplets in scoring.score(scorer, 1.0).items():
            yield name, triplets, {"vlm": scorer.vlm, "score_exponent": 1.0}


def _tuned_clip(scoring: Scoring) -> Rows:
    split, config = scoring.split, scoring.config
    margins, tune_split = config.teacher.crop.margins, config.evaluation.tune_split
    scorers = [DirectClip(split.text_bank, split.vocabulary, setting, TUNED) for setting in _settings(scoring)]
    bar = tqdm(scorers, desc="tuning direct CLIP", unit="setting", disable=None, leave=False)
    best = scoring.tuner().tune(bar, TUNED)
    chosen = scorers[best.choice].setting
    settings = {**chosen.to_dict(best.exponent, margins), **best.to_dict(tune_split)}
    yield TUNED, scoring.score(scorers[best.choice], best.exponent)[TUNED], settings

    # The gate weighs a pair's scores against its rivals', so it wants a temperature of its own.
    alike = [s for s in scorers if (s.setting.form, s.setting.margin) == (chosen.form, chosen.margin)]
    gates = [GatedDirectClip(scorer, exponent, GATED) for scorer in alike for exponent in GATE_EXPONENTS]
    best_gate = scoring.tuner().tune(gates, GATED)
    gate = gates[best_gate.choice]
    settings = gate.crop.setting.to_dict(best_gate.exponent, margins) | {"gate_exponent": gate.gate_exponent}
    # What form and margin were chosen among counts as well.
    tried = {**best_gate.to_dict(tune_split), "num_tried": best.num_tried + best_gate.num_tried}
    yield GATED, scoring.score(gate, best_gate.exponent)[GATED], {**settings, **tried}


def _settings(scoring: Scoring) -> list[DirectSetting]:
    return direct_settings(scoring.split.text_bank, scoring.split.axes["M"])


@dataclass(frozen=True)
class Baseline:
    """Some rows of the result table."""

    score: Callable[[Scoring], Rows]
    about: dict[str, str]  # row name → what it is; of the second vision language model on, NAME/PASS
    is_tuned: bool = False  # by labels of `evaluation.tune_split`; left out where it has none


BASELINES = (
    Baseline(_prior, {PRIOR: "boxes and classes alone; every interaction of an object is equally likely"}),
    Baseline(
        _direct_clip,
        {
            PLAIN: "the frozen teacher asked about each pair's union crop, as it comes",
            "direct_clip_image": "the frozen teacher's scores of the whole image, given to each of its pairs",
            "direct_clip_product": "union crop times whole image",
        },
    ),
    Baseline(
        _vlms,
        {
            VLM_IMAGE: "the vision language model's confidences in the whole image, given to each of its pairs",
            VLM_PAIRS: "the vision language model asked about each pair's union crop",
        },
    ),
    Baseline(
        _tuned_clip,
        {
            TUNED: "the frozen teacher on union crops, read as labels say is best for it",
            GATED: "the same, with the students' training-free gate on top",
        },
        is_tuned=True,
    ),
)
"""In the order of the result table. `hoi.config` keeps students from taking these names."""
ABOUT = {name: about for baseline in BASELINES for name, about in baseline.about.items()}


def baseline_names(vlms: Mapping[str, VlmConfig]) -> list[str]:
    """Return the row names of all baselines of a pipeline file, those of its passes last."""
    fixed = [name for name in ABOUT if name not in (VLM_IMAGE, VLM_PAIRS)]
    return [*fixed, *(row for scorer in direct_vlms(vlms) for row in scorer.rows)]
