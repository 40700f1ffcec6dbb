"""The embedded world's own small detector, for images of any size: an anchor-free network, object centres at stride 4.

Class heatmaps and box distances as in TTFNet. People and objects have separate box distances, because a rider and a
bicycle share their centre. `hoi.world.models.detector` trains it.

Shapes: B images, C classes, G box groups (people, objects), H and W pixels, h and w cells of 4 pixels, N boxes.
Source: Liu et al., Training-Time-Friendly Network (AAAI 2020); different: box groups, exponential distances, and one
bump for both heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from hoi.config import WorldDetectorConfig
from hoi.detectors import MAX_CANDIDATES, keep_detections, kept_settings, match_classes
from hoi.errors import UserError
from hoi.files import find_local, open_file, parse_json
from hoi.records import Detections
from hoi.vocabulary import Vocabulary
from hoi.weights import DAMAGED, load_weights, weights_sha256

MAX_BATCH = 16
"""Images per forward pass."""
STRIDE = 4
"""Pixels of a heatmap cell."""
PAD_TO = 32
"""Sides are padded to a multiple of the coarsest stride."""
METADATA_KEY = "detector"
"""Of the weight file: class names, shape and recipe, in JSON."""


class WorldDetector:
    """See `Detector`. Images of equal size share a forward pass; none is padded to another's size."""

    def __init__(self, config: WorldDetectorConfig, vocabulary: Vocabulary, device: str, *_: object) -> None:
        self._config, self._device = config, device
        net = load_detector(find_local(config.weights))
        labels = match_classes(net.class_names, vocabulary, f"detector world, weights {config.weights}")
        self._labels, self._classes = labels[labels >= 0], torch.from_numpy(np.flatnonzero(labels >= 0)).to(device)
        self._sha256 = weights_sha256(net)
        self._net = net.to(device).to(memory_format=torch.channels_last)

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        rows_of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, image in enumerate(images):
            rows_of_size[image.shape[:2]].append(row)
        detections: dict[int, Detections] = {}
        for rows in rows_of_size.values():
            for start in range(0, len(rows), MAX_BATCH):
                batch = rows[start : start + MAX_BATCH]
                found = self._detect(np.stack([images[row] for row in batch]), [image_ids[row] for row in batch])
                detections.update(zip(batch, found, strict=True))
        return [detections[row] for row in range(len(images))]

    def provenance(self) -> dict[str, object]:
        return {"name": "world", "weights_sha256": self._sha256, **kept_settings(self._config)}

    @torch.inference_mode()
    def _detect(self, images: np.ndarray, image_ids: Sequence[str]) -> list[Detections]:
        height, width = size_hw = images.shape[1], images.shape[2]
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        padded = functional.pad(pixels, (0, -width % PAD_TO, 0, -height % PAD_TO))
        logits, distances = self._net(padded)
        results = []
        for image_id, image_logits, image_distances in zip(image_ids, logits, distances, strict=True):
            of_classes = image_logits[self._classes], image_distances, self._net.group_of[self._classes]
            raw = peaks(*of_classes, size_hw, self._config.min_score)
            boxes, scores, classes = (value.cpu().numpy() for value in raw)
            kept = (boxes, scores, self._labels[classes], size_hw)
            results.append(keep_detections(*kept, self._config, nms=True, image_id=image_id))
        return results


@dataclass(frozen=True)
class DetectorShape:
    """Channels at strides 2, 4, 8, 16, 32, and of the pyramid and head."""

    channels: tuple[int, int, int, int, int] = (16, 32, 64, 128, 128)
    pyramid: int = 64


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _head(inputs: int, outputs: int, bias: float) -> nn.Sequential:
    first, last = _conv(inputs, inputs), nn.Conv2d(inputs, outputs, 1)
    nn.init.constant_(last.bias, bias)  # type: ignore[arg-type] # torch types it as optional
    return nn.Sequential(first, last)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)), inplace=True)


class DetectorNet(nn.Module):
    """The network; class `person` has box distances of its own."""

    group_of: Tensor

    def __init__(self, class_names: Sequence[str], shape: DetectorShape) -> None:
        super().__init__()
        self.class_names, self.shape = tuple(class_names), shape
        c2, c4, c8, c16, c32 = shape.channels
        self.stride4 = nn.Sequential(_conv(3, c2, 2), _conv(c2, c4, 2), _Residual(c4))
        self.stride8 = nn.Sequential(_conv(c4, c8, 2), _Residual(c8))
        self.stride16 = nn.Sequential(_conv(c8, c16, 2), _Residual(c16))
        self.stride32 = nn.Sequential(_conv(c16, c32, 2))
        self.lateral = nn.ModuleList(nn.Conv2d(c, shape.pyramid, 1) for c in (c4, c8, c16, c32))
        self.smooth = nn.ModuleList(_conv(shape.pyramid, shape.pyramid) for _ in range(3))
        self.class_head = _head(shape.pyramid, len(self.class_names), bias=-4.0)
        self.box_head = _head(shape.pyramid, 8, bias=1.5)
        groups = torch.tensor([0 if name == "person" else 1 for name in self.class_names])
        self.register_buffer("group_of", groups, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [B, C, h, w] and distances [B, G, 4, h, w] of images, float [B, 3, H, W] in [0, 1].

        Distances go in pixels from a cell's centre to the left, top, right and bottom edge. 32 divides H and W.
        """
        x4 = self.stride4(images * 4 - 2)
        x8 = self.stride8(x4)
        x16 = self.stride16(x8)
        maps = (x4, x8, x16, self.stride32(x16))
        top = self.lateral[3](maps[3])
        for level in (2, 1, 0):
            top = functional.interpolate(top, scale_factor=2.0) + self.lateral[level](maps[level])
            top = self.smooth[level](top)
        raw = self.box_head(top).float()
        distances = STRIDE * raw.clamp(max=5.0).exp()
        return self.class_head(top).float(), distances.unflatten(1, (2, 4))


def _cell_centres(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = (torch.arange(width, device=device) + 0.5) * STRIDE
    y = (torch.arange(height, device=device) + 0.5) * STRIDE
    return x, y


def boxes_at(distances: Tensor) -> Tensor:
    """Convert distances [..., 4, h, w] to boxes xyxy [..., 4, h, w], in pixels."""
    x, y = _cell_centres(distances.shape[-2], distances.shape[-1], distances.device)
    left, top, right, bottom = distances.unbind(-3)
    return torch.stack([x - left, y[:, None] - top, x + right, y[:, None] + bottom], -3)


def peaks(
    logits: Tensor, distances: Tensor, group_of: Tensor, size_hw: tuple[int, int], min_score: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one image's boxes xyxy float [N, 4], scores [N] and class rows int64 [N], neither clipped nor suppressed.

    An even picture has peaks everywhere: of more than `MAX_CANDIDATES`, the best are returned and one more.

    Logits are [C, h, w], distances [G, 4, h, w], `group_of` is int64 [C], and `size_hw` of the image without padding.
    """
    scores = logits.sigmoid()
    # The maximum of each cell and its eight neighbours: max pooling, twenty times as fast on a CPU.
    padded = functional.pad(scores, (1, 1, 1, 1))
    of_row = torch.maximum(torch.maximum(padded[..., :-2], padded[..., 1:-1]), padded[..., 2:])
    best = torch.maximum(torch.maximum(of_row[:, :-2], of_row[:, 1:-1]), of_row[:, 2:])
    chosen = (scores == best) & (scores >= min_score)
    # Cells with their centre in the padding do not count.
    x, y = _cell_centres(scores.shape[1], scores.shape[2], scores.device)
    chosen &= (x < size_hw[1]) & (y < size_hw[0])[:, None]
    classes, rows, columns = torch.where(chosen)
    found = scores[classes, rows, columns]
    if len(found) > MAX_CANDIDATES:
        best_rows = found.sort(descending=True, stable=True).indices[: MAX_CANDIDATES + 1].sort().values
        classes, rows, columns, found = (each[best_rows] for each in (classes, rows, columns, found))
    return boxes_at(distances)[group_of[classes], :, rows, columns], found, classes


def load_detector(path: Path) -> DetectorNet:
    """Read weights that `save_detector` wrote, for inference; a UserError if there is no such file or it is another."""
    with open_file(path, "a weight file", "check detector.weights in the pipeline file"):
        pass
    try:
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {})[METADATA_KEY].encode())
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        names, shape = list(map(str, about["class_names"])), about["shape"]
        shape = DetectorShape(tuple(shape["channels"]), shape["pyramid"])
        # On no device first: a damaged shape would ask for any amount of memory.
        with torch.device("meta"):
            load_weights(DetectorNet(names, shape), {name: value.to("meta") for name, value in state.items()}, path)
    except DAMAGED as error:
        problem, expected = "this is no weight file of the world's detector", "a file that `hoi world` wrote"
        raise UserError(problem, where=path, expected=expected, got=error) from None
    net = DetectorNet(names, shape)
    load_weights(net, state, path)
    return net.eval().requires_grad_(False)
