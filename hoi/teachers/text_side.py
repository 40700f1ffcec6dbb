"""The text side of a teacher alone: sentences to its joint space, with no image tower at hand.

Letters: n texts, D joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from hoi.config import TeacherConfig
from hoi.teachers.loading import load_model
from hoi.weights import weights_sha256

TEXT_BATCH = 64
"""Texts of one forward pass."""


class TextSide:
    """A frozen open_clip model without its image tower, which is let go as soon as the weights are hashed.

    Args:
        config: The teacher.
        device: `cpu` or `cuda`.

    Raises:
        UserError: see `hoi.teachers.loading.load_model`.
    """

    def __init__(self, config: TeacherConfig, device: str) -> None:
        loaded = load_model(config)
        # One hash for the whole teacher, so that it can be compared with what the base pass says of it.
        self._sha256 = weights_sha256(loaded.model)
        del loaded.model.visual
        self._model, self._tokenizer = loaded.model.to(device), loaded.tokenizer
        self._device = torch.device(device)
        self.width = int(loaded.architecture["embed_dim"])

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float32[Tensor, "n D"]:
        """Texts, cut at the model's context length, to unit-norm embeddings on the CPU, in fp32."""
        if not texts:
            return torch.zeros(0, self.width)
        tokens = self._tokenizer(list(texts))
        parts = [self._model.encode_text(chunk.to(self._device)).float() for chunk in tokens.split(TEXT_BATCH)]
        return functional.normalize(torch.cat(parts), dim=-1).cpu()

    def provenance(self) -> dict[str, object]:
        """What decides the embeddings, in plain JSON types."""
        return {"name": "open_clip", "weights_sha256": self._sha256, "batch_size": TEXT_BATCH}
