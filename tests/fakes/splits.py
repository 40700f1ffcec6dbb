"""Made-up splits for students: pairs in flat arrays as the cache has them, their texts, labels, maps and VLM fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hoi.config import TrainConfig
from hoi.matching import LabelTargets
from hoi.records import HoiLabels, PairBatch, TextBank, Triplets, VisualHead
from hoi.students.base import Student, build_student
from hoi.students.hoiclip.settings import HoiclipConfig
from hoi.students.multilevel.settings import MultiLevelConfig
from hoi.training.loop import fit
from hoi.vocabulary import Vocabulary
from tests.fakes.extractors import unit

VOCABULARY = Vocabulary(
    objects=("person", "bicycle", "dog", "cloud"),
    verbs=("ride", "push", "pet", "walk", "no_interaction"),
    interactions=(
        ("ride", "bicycle"),
        ("push", "bicycle"),
        ("no_interaction", "bicycle"),
        ("pet", "dog"),
        ("walk", "dog"),
        ("no_interaction", "dog"),
    ),
)
"""K = 6. No interaction has a person or a cloud for its object."""
ADMITTED = torch.from_numpy(VOCABULARY.object_mask)
REAL = ADMITTED & ~torch.from_numpy(VOCABULARY.is_no_interaction)
"""bool [O, K]: what each object admits, with and without `no_interaction`."""
AXES = {"L": 2, "M": 1}
"""Of `make_split` by default."""
VLM = "coca"
"""The pass of `with_vlm_fields`."""
NUM_SENTENCES = 3
CHANNELS, CELLS = 24, 2
"""Of the map of `make_map_split`: channels, and cells a side."""
SMALL_HOICLIP: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "feedforward": 32, "dropout": 0.0}


def labels_of(*rows: tuple[Any, ...]) -> HoiLabels:
    """Return labels of (image, box_h, box_o, interaction) rows; what more a row holds is left out."""
    image, interaction = (np.array([row[column] for row in rows], np.int64) for column in (0, 3))
    boxes_h, boxes_o = (np.array([row[column] for row in rows], np.float64).reshape(-1, 4) for column in (1, 2))
    return HoiLabels(image, boxes_h, boxes_o, interaction)


def triplets_of(*rows: tuple[Any, ...]) -> Triplets:
    """Return triplets of (image, box_h, box_o, interaction, score) rows."""
    return Triplets(**vars(labels_of(*rows)), score=np.array([row[4] for row in rows], np.float64))


def make_bank(width: int = 16, logit_scale: float = 20.0, logit_bias: float | None = None) -> TextBank:
    rng = np.random.default_rng(7)
    prompts = tuple((name,) for name in VOCABULARY.names)
    return TextBank(unit(rng.normal(size=(len(VOCABULARY), width)) + 0.5), logit_scale, logit_bias, prompts)


@dataclass(frozen=True)
class Split:
    """A whole split as one batch; it gives parts of itself like the cache's reader."""

    whole: PairBatch
    bank: TextBank
    vocabulary: Vocabulary
    labels: HoiLabels

    @property
    def num_images(self) -> int:
        return self.whole.num_images

    def batch(self, image_rows: np.ndarray) -> PairBatch:
        """Return the images of these rows, in the given order, with every extra field."""
        rows = torch.as_tensor(np.asarray(image_rows, dtype=np.int64))
        pairs = [torch.nonzero(self.whole.pair_image == row).flatten() for row in rows]
        flat = torch.cat(pairs) if pairs else torch.zeros(0, dtype=torch.int64)
        of_image = {"size_hw", "image_embedding", "image_similarity"}
        values = {
            name: getattr(self.whole, name)[rows if name in of_image else flat]
            for name in PairBatch.__dataclass_fields__
            if name not in ("image_rows", "pair_image", "extra")
        }
        slots = [torch.zeros(0, dtype=torch.int64), *(torch.full((len(p),), i) for i, p in enumerate(pairs))]
        of_pair = {"union_embedding", "vlm_pair_scores"}
        extra = {n: v[flat if n.split("/")[-1] in of_pair else rows] for n, v in self.whole.extra.items()}
        return PairBatch(image_rows=rows, pair_image=torch.cat(slots), **values, extra=extra)

    def batches(
        self, batch_images: int, rng: np.random.Generator | None, extra: Sequence[str] = ()
    ) -> Iterator[PairBatch]:
        order = np.arange(self.num_images) if rng is None else rng.permutation(self.num_images)
        for start in range(0, self.num_images, batch_images):
            yield self.batch(order[start : start + batch_images])

    def with_pairs(self, **changes: Any) -> Split:
        return replace(self, whole=replace(self.whole, **changes))


def make_split(
    pairs_of: tuple[int, ...] = (3, 1, 0, 4, 2),
    levels: int = 2,
    seed: int = 0,
    logit_bias: float | None = None,
    margins: int = 1,
) -> Split:
    """Return images with the given numbers of pairs.

    The first pair of each image has one annotated interaction; its features and those of the whole image are near that
    text. The features of the other pairs are as near to one text, but have no annotation.
    """
    rng = np.random.default_rng(seed)
    bank = make_bank(logit_bias=logit_bias)
    texts, width = bank.text_embedding, bank.text_embedding.shape[1]
    num_images, num_pairs = len(pairs_of), sum(pairs_of)
    pair_image = np.repeat(np.arange(num_images), pairs_of)
    is_first = np.r_[True, pair_image[1:] != pair_image[:-1]] if num_pairs else np.zeros(0, bool)
    interaction = rng.integers(0, len(VOCABULARY), num_pairs)

    def near(rows: np.ndarray, noise: float, *axes: int) -> np.ndarray:
        base = rows.reshape(len(rows), *([1] * len(axes)), width)
        return unit(base + noise * rng.normal(size=(len(rows), *axes, width)))

    union = near(texts[interaction], 0.15, margins)
    of_first = texts[interaction[is_first]]
    image = rng.normal(size=(num_images, width))
    image[np.array(pairs_of) > 0] = of_first + 0.1 * rng.normal(size=of_first.shape)
    image = unit(image)
    top_left = rng.uniform(0, 100, size=(num_pairs, 2, 2))
    boxes = np.concatenate([top_left, top_left + rng.uniform(10, 80, size=(num_pairs, 2, 2))], -1).astype(np.float32)
    whole = PairBatch(
        image_rows=torch.arange(num_images),
        size_hw=torch.tensor([[180.0, 190.0]]).repeat(num_images, 1),
        image_embedding=torch.from_numpy(image).half(),
        image_similarity=torch.from_numpy(image @ texts.T).half(),
        pair_image=torch.from_numpy(pair_image),
        boxes_h=torch.from_numpy(boxes[:, 0]),
        boxes_o=torch.from_numpy(boxes[:, 1]),
        scores_h=torch.from_numpy(rng.uniform(0.3, 1, num_pairs).astype(np.float32)),
        scores_o=torch.from_numpy(rng.uniform(0.3, 1, num_pairs).astype(np.float32)),
        labels_o=torch.from_numpy(VOCABULARY.object_of[interaction]),
        pair_rows=torch.arange(num_pairs),
        rows_h=torch.arange(num_pairs),
        rows_o=torch.arange(num_pairs) + num_pairs,
        human_feature=torch.from_numpy(near(texts[interaction], 0.3, levels)).half(),
        object_feature=torch.from_numpy(near(texts[interaction], 0.3, levels)).half(),
        union_feature=torch.from_numpy(near(texts[interaction], 0.2, levels)).half(),
        union_similarity=torch.from_numpy(union @ texts.T).half(),
        extra={"union_embedding": torch.from_numpy(union).half()},
    )
    labels = HoiLabels(pair_image[is_first], boxes[is_first, 0], boxes[is_first, 1], interaction[is_first])
    return Split(whole, bank, VOCABULARY, labels)


def with_vlm_fields(split: Split, seed: int = 5) -> Split:
    """Add a map and every field of a VLM pass: scores of the interactions an object has sum to 1.

    Images without a pair are asked nothing, and the last image has no caption.
    """
    rng = np.random.default_rng(seed)
    batch, width = split.whole, split.bank.text_embedding.shape[1]
    asked_pairs = REAL[batch.labels_o]
    asked = torch.zeros(batch.num_images, len(VOCABULARY)).index_add(0, batch.pair_image, asked_pairs.float()) > 0
    mask = torch.from_numpy(rng.uniform(size=(batch.num_images, NUM_SENTENCES)) < 0.7)
    mask[:, 0], mask[-1] = True, False
    sentences = torch.from_numpy(unit(rng.normal(size=(batch.num_images, NUM_SENTENCES, width))))
    fields = {
        "vlm_scores": _shares(torch.from_numpy(rng.uniform(size=asked.shape)).float() * asked),
        "vlm_asked": asked.float(),
        "vlm_pair_scores": _shares(torch.from_numpy(rng.uniform(size=asked_pairs.shape)).float() * asked_pairs),
        "context_embedding": sentences * mask[:, :, None],
        "context_mask": mask.float(),
    }
    spatial_map = torch.from_numpy(rng.normal(size=(batch.num_images, 5, 3, 4))).float()
    extra = {**batch.extra, "spatial_map": spatial_map, **{f"{VLM}/{name}": value for name, value in fields.items()}}
    return replace(split, whole=replace(batch, extra=extra))


def make_vlm_split(pairs_of: tuple[int, ...] = (3, 1, 0, 4, 2), **settings: Any) -> Split:
    return with_vlm_fields(make_split(pairs_of, **settings))


def _shares(scores: torch.Tensor) -> torch.Tensor:
    groups = torch.nn.functional.one_hot(torch.from_numpy(VOCABULARY.object_of)).float()
    return scores / (scores @ groups @ groups.T).clamp(min=1e-9)


def make_head(width: int, kind: str = "resnet") -> VisualHead:
    rng = np.random.default_rng(5)
    projection = rng.normal(size=(CHANNELS + 1, width)).astype(np.float32) / 4
    if kind == "vit":
        norm = np.stack([rng.uniform(0.5, 1.5, CHANNELS), rng.normal(size=CHANNELS)]).astype(np.float32)
        projection[-1] = 0
        return VisualHead(projection, norm=norm)
    return VisualHead(projection, value=rng.normal(size=(CHANNELS + 1, CHANNELS)).astype(np.float32) / 4)


def make_map_split(pairs_of: tuple[int, ...] = (3, 1, 0, 4, 2), kind: str = "resnet", **settings: Any) -> Split:
    """As `make_split`, with a spatial map; the first two pairs of an image share their human."""
    split = make_split(pairs_of, **settings)
    shared, image = torch.arange(split.whole.num_pairs), split.whole.pair_image.tolist()
    is_second = [row for row in range(1, len(image)) if image[:row].count(image[row]) == 1]
    shared[is_second] -= 1
    of_humans = ("boxes_h", "scores_h", "human_feature", "rows_h")
    split = split.with_pairs(**{name: getattr(split.whole, name)[shared] for name in of_humans})
    rng = np.random.default_rng(9)
    spatial = torch.from_numpy(rng.normal(size=(len(pairs_of), CHANNELS, CELLS, CELLS)).astype(np.float32))
    bank: TextBank = replace(split.bank, visual=make_head(split.bank.text_embedding.shape[1], kind))
    whole = replace(split.whole, extra={**split.whole.extra, "spatial_map": spatial.half()})
    return Split(whole, bank, split.vocabulary, split.labels)


def fresh_hoiclip(split: Split, seed: int = 3, **settings: Any) -> Student:
    axes = {"L": 2, "M": split.whole.union_similarity.shape[1], "C": CHANNELS, "H": CELLS, "W": CELLS}
    config = HoiclipConfig(method="hoiclip", **{**SMALL_HOICLIP, **settings})
    return build_student(config, split.bank, VOCABULARY, axes, seed=seed).eval()


def fresh_multilevel(split: Split, **settings: Any) -> Student:
    axes = {"L": split.whole.union_feature.shape[1], "M": split.whole.union_similarity.shape[1]}
    config = MultiLevelConfig(**{"width": 64, **settings})
    return build_student(config, split.bank, VOCABULARY, axes, seed=3).eval()


def overfitted(
    student: Student, split: Split, steps: int, learning_rate: float, labels: LabelTargets | None = None
) -> Student:
    """Train a student on the whole split as one batch, and return it."""
    train = TrainConfig(epochs=steps, batch_images=split.num_images, learning_rate=learning_rate, weight_decay=0.0)
    return fit(student, split, train, seed=0, device=torch.device("cpu"), labels=labels)[0]
