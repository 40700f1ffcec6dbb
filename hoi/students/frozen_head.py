"""The teacher's frozen last layers, over cells of its spatial map: cell → token → joint space, and back.

Letters: B images, C channels of the map, H W its cells, T tokens, D the joint width, R rows of anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hoi.records import VisualHead

NORM_EPS = 1e-5


class FrozenHead(nn.Module):
    """Buffers alone, which belong to the cache and not to the student's weights.

    Args:
        head: Of the text bank.
    """

    projection: Tensor
    inverse: Tensor
    value: Tensor | None
    norm: Tensor | None

    def __init__(self, head: VisualHead) -> None:
        super().__init__()
        projection = torch.from_numpy(head.projection).float()
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(projection[:-1].double()).float(), persistent=False)
        for name in ("value", "norm"):
            part = getattr(head, name)
            self.register_buffer(name, None if part is None else torch.from_numpy(part).float(), persistent=False)

    @property
    def width(self) -> int:
        """C, of cells and tokens alike."""
        return len(self.projection) - 1

    def tokens(self, spatial_map: Float[Tensor, "B C H W"], embedding: Float[Tensor, "B D"]) -> Float[Tensor, "B T C"]:
        """Map and unit image embedding to the class token and, row by row, the cells: all as the projection takes them.

        The cache has no class token but what became of it. In its place stands the shortest token that projects onto
        the image's embedding, at the mean length of the cells' joint vectors.
        """
        cells = spatial_map.flatten(2).transpose(1, 2)
        if self.norm is not None:
            cells = F.layer_norm(cells, (self.width,), self.norm[0], self.norm[1], NORM_EPS)
        if self.value is not None:
            cells = cells @ self.value[:-1] + self.value[-1]
        length = self.project(cells).norm(dim=-1).mean(1, keepdim=True)
        pooled = (length * embedding - self.projection[-1]) @ self.inverse
        return torch.cat([pooled[:, None], cells], 1)

    def project(self, tokens: Float[Tensor, "*R C"]) -> Float[Tensor, "*R D"]:
        """Tokens to joint vectors, of any length."""
        return tokens @ self.projection[:-1] + self.projection[-1]
