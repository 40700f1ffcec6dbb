"""Made-up signals with a spatial map, and a frozen head that takes its cells to the joint space."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hoi.config import HoiclipConfig
from hoi.records import PairBatch, TextBank, VisualHead
from hoi.students.registry import Student, build_student
from tests.fakes.synthetic import VOCABULARY, Split, make_split

CHANNELS, CELLS = 24, 2
SMALL: dict[str, Any] = {"width": 16, "layers": 2, "heads": 2, "feedforward": 32, "dropout": 0.0}


def make_head(width: int, kind: str = "resnet") -> VisualHead:
    rng = np.random.default_rng(5)
    projection = rng.normal(size=(CHANNELS + 1, width)).astype(np.float32) / 4
    if kind == "vit":
        norm = np.stack([rng.uniform(0.5, 1.5, CHANNELS), rng.normal(size=CHANNELS)]).astype(np.float32)
        projection[-1] = 0
        return VisualHead(projection, norm=norm)
    return VisualHead(projection, value=rng.normal(size=(CHANNELS + 1, CHANNELS)).astype(np.float32) / 4)


class MapSplit(Split):
    """A split whose images have a map as well."""

    def batch(self, image_rows: np.ndarray) -> PairBatch:
        spatial = self.whole.extra["spatial_map"]
        pairs_only = {name: value for name, value in self.whole.extra.items() if name != "spatial_map"}
        batch = Split.batch(replace(self, whole=replace(self.whole, extra=pairs_only)), image_rows)
        rows = torch.as_tensor(np.asarray(image_rows, dtype=np.int64))
        return replace(batch, extra={**batch.extra, "spatial_map": spatial[rows]})


def make_map_split(pairs_of: tuple[int, ...] = (3, 1, 0, 4, 2), kind: str = "resnet", **settings: Any) -> MapSplit:
    """As `make_split`, with a map; the first two pairs of an image share their human."""
    split = make_split(pairs_of, **settings)
    shared = torch.arange(split.whole.num_pairs)
    is_second = [row for row in range(1, len(shared)) if _slot(split.whole.pair_image, row) == 1]
    shared[is_second] -= 1
    of_humans = ("boxes_h", "scores_h", "human_feature", "rows_h")
    split = split.with_pairs(**{name: getattr(split.whole, name)[shared] for name in of_humans})
    rng = np.random.default_rng(9)
    spatial = torch.from_numpy(rng.normal(size=(len(pairs_of), CHANNELS, CELLS, CELLS)).astype(np.float32))
    bank: TextBank = replace(split.bank, visual=make_head(split.bank.text_embedding.shape[1], kind))
    whole = replace(split.whole, extra={**split.whole.extra, "spatial_map": spatial.half()})
    return MapSplit(whole, bank, split.vocabulary, split.labels)


def _slot(pair_image: torch.Tensor, row: int) -> int:
    return int((pair_image[:row] == pair_image[row]).sum())


def fresh(split: Split, seed: int = 3, **settings: Any) -> Student:
    axes = {"L": 2, "M": split.whole.union_similarity.shape[1], "C": CHANNELS, "H": CELLS, "W": CELLS}
    config = HoiclipConfig(method="hoiclip", **{**SMALL, **settings})
    return build_student(config, split.bank, VOCABULARY, axes, seed=seed).eval()
