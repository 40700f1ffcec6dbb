"""Small made-up signals for tests: pairs laid flat as the cache lays them, their texts, and labels that follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hoi.records import HoiLabels, PairBatch, TextBank
from hoi.vocabulary import Vocabulary

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
AXES = {"L": 2, "M": 1}
"""Of `make_split` as it comes."""


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def make_bank(width: int = 16, logit_scale: float = 20.0, logit_bias: float | None = None) -> TextBank:
    rng = np.random.default_rng(7)
    prompts = tuple((name,) for name in VOCABULARY.names)
    return TextBank(unit(rng.normal(size=(len(VOCABULARY), width)) + 0.5), logit_scale, logit_bias, prompts)


@dataclass(frozen=True)
class Split:
    """A whole split as one batch, which hands out parts of itself like the cache's reader."""

    whole: PairBatch
    bank: TextBank
    vocabulary: Vocabulary
    labels: HoiLabels

    @property
    def num_images(self) -> int:
        return self.whole.num_images

    def batch(self, image_rows: np.ndarray) -> PairBatch:
        """Images by row, in the given order, with every extra field that there is."""
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

    def with_pairs(self, **changes: torch.Tensor) -> Split:
        return replace(self, whole=replace(self.whole, **changes))


def make_split(
    pairs_of: tuple[int, ...] = (3, 1, 0, 4, 2),
    levels: int = 2,
    seed: int = 0,
    logit_bias: float | None = None,
    margins: int = 1,
) -> Split:
    """Images with the given numbers of pairs.

    The first pair of each image does one annotated interaction, and all its features lie near that text, as those of
    the whole image do. The other pairs look as likely, without an annotation.
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
    labels = HoiLabels(
        image=pair_image[is_first],
        boxes_h=boxes[is_first, 0],
        boxes_o=boxes[is_first, 1],
        interaction=interaction[is_first],
    )
    return Split(whole, bank, VOCABULARY, labels)
