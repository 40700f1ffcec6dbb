"""open_clip's image towers, opened up: one pass gives the image's embedding and the maps that regions are cut from.

The tower's own last layers take each region to the joint image-text space:

ModifiedResNet  `c4`: RoIAlign of the stride-16 map to twice the attention pool's grid, last stage, attention pool;
                `c5`: RoIAlign of the last map to the attention pool's grid, attention pool.
ViT             `tokens`: RoIAlign of the last block's patch tokens, mean (or the model's attentional pool), final norm,
                projection.
timm            `features`: RoIAlign of the trunk's feature map, then the trunk's own pooling and projection.

RoIAlign samples as densely as the map (`sampling_ratio=0`): a region of the tower's own grid is returned unchanged.

Shapes: B images, C channels, H W cells of a map, D joint width, R regions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from hoi.errors import UserError
from hoi.records import VisualHead

RESNET_STRIDE = 32


def open_tower(visual: Any, image_size_px: int, own_size_px: int) -> ResNetTower | TimmTower | ViTTower:
    """Return the tower of open_clip's `model.visual`, for whole images of another size than its crops.

    Weights are shared with `visual`; only position embeddings are interpolated (bicubic), in a copy of their own. Of
    normalised pixels [B, 3, S, S], `whole` gives embeddings [B, D] (any norm) and maps [B, C, H, W]; `regions` gives an
    embedding [R, D] (any norm) per level of rois [R, 5] in input pixels; `head` gives the layers from a cell of the
    last map to the joint space, or None if cells do not go one by one.

    Raises UserError: the size does not suit the tower, or the tower is of none of the three kinds.
    """
    kind: type[ResNetTower | TimmTower | ViTTower]
    if hasattr(visual, "attnpool") and hasattr(visual, "layer4"):
        kind, stride = ResNetTower, RESNET_STRIDE
    elif hasattr(visual, "trunk"):
        patches = getattr(visual.trunk, "patch_embed", None)
        kind, stride = TimmTower, 1 if patches is None else patches.patch_size[0]
    elif hasattr(visual, "transformer") and hasattr(visual, "proj"):
        kind, stride = ViTTower, visual.patch_size[0]
    else:
        problem = f"the image tower {type(visual).__name__} gives no regions"
        raise UserError(problem, expected="a ModifiedResNet, a ViT or a timm trunk")
    if image_size_px % stride:
        problem, expected = "the whole images' side does not suit the image tower", f"a multiple of {stride}"
        raise UserError(problem, where="teacher.image_size_px", expected=expected, got=image_size_px)
    return kind(visual, image_size_px, own_size_px)


class ResNetTower:
    """CLIP's own ResNet, whose attention pool lands in the joint space."""

    levels: tuple[str, ...] = ("c4", "c5")

    def __init__(self, visual: Any, image_size_px: int, own_size_px: int) -> None:
        self._visual = visual
        self._grid = _grid_of(visual.attnpool.positional_embedding)
        self._whole_pool = _with_grid(visual.attnpool, image_size_px // RESNET_STRIDE)

    def whole(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        # C4 has stride 16, C5 stride 32.
        stages = self._visual.forward_intermediates(pixels, indices=[3, 4], intermediates_only=True)
        c4, c5 = stages["image_intermediates"]
        return self._whole_pool(c5), (c4, c5)

    def regions(self, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, ...]:
        c4, c5 = maps
        fine = self._visual.layer4(_align(c4, rois, 2 * self._grid, RESNET_STRIDE // 2))
        return self._visual.attnpool(fine), self._visual.attnpool(_align(c5, rois, self._grid, RESNET_STRIDE))

    def head(self) -> VisualHead:
        # Value and output projection of the attention pool, without its position embeddings.
        pool = self._visual.attnpool
        value, projection = (_matrix(layer.weight.T, layer.bias) for layer in (pool.v_proj, pool.c_proj))
        return VisualHead(projection, value=value)


class ViTTower:
    """CLIP's own vision transformer; its map holds the last block's patch tokens, before final norm and projection."""

    levels: tuple[str, ...] = ("tokens",)

    def __init__(self, visual: Any, image_size_px: int, own_size_px: int) -> None:
        self._stride = visual.patch_size[0]
        self._grid = _grid_of(visual.positional_embedding)
        self._visual = _with_grid(visual, image_size_px // self._stride)

    def whole(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        output = self._visual.forward_intermediates(pixels, indices=1)
        return output["image_features"], (output["image_intermediates"][-1],)

    def regions(self, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, ...]:
        # The mean of a region takes the place of the class token.
        tokens = _align(maps[-1], rois, self._grid, self._stride).flatten(2).transpose(1, 2)
        visual = self._visual
        if visual.attn_pool is not None:
            # CoCa: the pool's first query is the one that contrastive training used.
            pooled = visual.ln_post(visual.attn_pool(tokens))[:, 0]
        elif visual.pool_type == "avg" and not visual.final_ln_after_pool:
            pooled = visual.ln_post(tokens).mean(1)
        else:
            pooled = visual.ln_post(tokens.mean(1))
        return (pooled @ visual.proj,)

    def head(self) -> VisualHead | None:
        visual = self._visual
        # A learned pool (CoCa) mixes its cells.
        if visual.attn_pool is not None or visual.proj is None:
            return None
        norm = torch.stack([visual.ln_post.weight, visual.ln_post.bias]).detach().float().cpu().numpy()
        return VisualHead(_matrix(visual.proj, None), norm=norm)


class TimmTower:
    """A timm trunk with open_clip's projection; its map is what the trunk's head pools (also by attention: SigLIP)."""

    levels: tuple[str, ...] = ("features",)

    def __init__(self, visual: Any, image_size_px: int, own_size_px: int) -> None:
        if image_size_px != own_size_px:
            visual = _with_shared_weights(visual)
            visual.set_input_size(image_size_px)
        self._visual, self._trunk = visual, visual.trunk
        # None for a trunk that keeps maps instead of tokens.
        self._num_prefix_tokens: int | None = getattr(self._trunk, "num_prefix_tokens", None)
        self._channels_last = getattr(self._trunk, "output_fmt", "NCHW") == "NHWC"
        weight = next(visual.parameters())
        with torch.inference_mode():
            probe = torch.zeros(1, 3, image_size_px, image_size_px, dtype=weight.dtype, device=weight.device)
            cells = self._map(self._trunk.forward_features(probe)).shape[-1]
        self._stride = image_size_px / cells
        self._grid = max(1, round(own_size_px / self._stride))

    def whole(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        features = self._trunk.forward_features(pixels)
        return self._visual.head(self._trunk.forward_head(features)), (self._map(features),)

    def regions(self, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, ...]:
        aligned = _align(maps[-1], rois, self._grid, self._stride)
        if self._num_prefix_tokens is None:
            features = aligned.permute(0, 2, 3, 1) if self._channels_last else aligned
        else:
            # The mean of a region takes the place of each prefix token.
            tokens = aligned.flatten(2).transpose(1, 2)
            prefix = tokens.mean(1, keepdim=True).expand(-1, self._num_prefix_tokens, -1)
            features = torch.cat([prefix, tokens], dim=1)
        return (self._visual.head(self._trunk.forward_head(features)),)

    def head(self) -> None:
        """Return None: trunks pool in ways of their own."""

    def _map(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            return features.permute(0, 3, 1, 2) if self._channels_last else features
        tokens = features[:, self._num_prefix_tokens or 0 :]
        side = math.isqrt(tokens.shape[1])
        return tokens.transpose(1, 2).unflatten(2, (side, side)).contiguous()


def _matrix(weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """Return weight [C, D] over bias [D], or zeros, as float32 [C + 1, D]."""
    last = weight.new_zeros(weight.shape[1]) if bias is None else bias
    return torch.cat([weight, last[None]]).detach().float().cpu().numpy()


def _align(features: Tensor, rois: Tensor, cells: int, stride: float) -> Tensor:
    rois = rois.to(features.dtype)
    return roi_align(features, rois, cells, spatial_scale=1 / stride, sampling_ratio=0, aligned=True)


def _grid_of(positions: Tensor) -> int:
    """Return the side of the grid of position embeddings [1 + side², C]."""
    return math.isqrt(len(positions) - 1)


def _with_grid(module: Any, side: int) -> Any:
    """Return the module with position embeddings [1 + side², C]; the first, of the pooled or class token, stays."""
    positions = module.positional_embedding.detach()
    old = _grid_of(positions)
    if side == old:
        return module
    grid = positions[1:].float().T.reshape(1, -1, old, old)
    grid = functional.interpolate(grid, (side, side), mode="bicubic", antialias=True, align_corners=False)
    module = _with_shared_weights(module)
    resized = torch.cat([positions[:1], grid.flatten(2)[0].T.to(positions.dtype)])
    module.positional_embedding = nn.Parameter(resized, requires_grad=False)
    return module


def _with_shared_weights(module: Any) -> Any:
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
