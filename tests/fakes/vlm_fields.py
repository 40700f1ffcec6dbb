"""Made-up fields of a vision language model over a made-up split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.fakes.synthetic import VOCABULARY, Split, make_split, unit

NAME = "coca"
NUM_SENTENCES = 3


def with_fields(split: Split, seed: int = 5) -> Split:
    """The split with a map and every field of a pass: each object's real interactions are asked and sum to 1.

    Images without a pair are asked nothing, and the last image has no caption.
    """
    rng = np.random.default_rng(seed)
    batch, width = split.whole, split.bank.text_embedding.shape[1]
    admitted = torch.from_numpy(VOCABULARY.object_mask)[batch.labels_o]
    asked_pairs = admitted & ~torch.from_numpy(VOCABULARY.is_no_interaction)
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
    extra = {**batch.extra, "spatial_map": spatial_map, **{f"{NAME}/{own}": value for own, value in fields.items()}}
    return replace(split, whole=replace(batch, extra=extra))


def taught(pairs_of: tuple[int, ...] = (3, 1, 0, 4, 2), **settings: int) -> Split:
    return with_fields(make_split(pairs_of, **settings))


def _shares(scores: torch.Tensor) -> torch.Tensor:
    groups = torch.nn.functional.one_hot(torch.from_numpy(VOCABULARY.object_of)).float()
    return scores / (scores @ groups @ groups.T).clamp(min=1e-9)
