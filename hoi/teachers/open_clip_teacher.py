"""Any open_clip model as a teacher.

Shapes: B images or crops, S side in pixels, D joint width, K interactions, L levels, R regions, T texts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hoi.config import TeacherConfig
from hoi.crops import CropStyle
from hoi.errors import UserError
from hoi.prompts import interaction_prompts
from hoi.records import TextBank
from hoi.teachers import WholeImages
from hoi.teachers.loading import load_model
from hoi.teachers.towers import open_tower
from hoi.vocabulary import Vocabulary
from hoi.weights import weights_sha256

TEXT_BATCH = 64
"""Texts of one forward pass. Not padded: the texts of a vocabulary always come together."""
MIN_PRECISION_COSINE = 0.999
"""Least agreement of a lower precision with fp32, on synthetic crops, at start."""
MIN_PRECISION_SPEEDUP = 1.3
"""What `auto` asks of a lower precision: enough that a busy machine does not decide differently tomorrow."""
_LOWER = {"cpu": ("bf16",), "cuda": ("bf16", "fp16")}
"""What `auto` tries. In fp16 a CPU is slow."""
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class OpenClipTeacher:
    """A `Teacher` whose embeddings are float32, whatever the precision inside."""

    crop_style: CropStyle
    image_size_px: int
    levels: tuple[str, ...]

    def __init__(self, config: TeacherConfig, device: str) -> None:
        loaded = load_model(config)
        self._config, self._device = config, torch.device(device)
        self._sha256 = weights_sha256(loaded.model)
        self._architecture = loaded.architecture
        self._tokenizer = loaded.tokenizer
        # Convolutions on a CPU are faster on channels-last tensors, and twice as fast in bf16.
        self._model = loaded.model.to(self._device, memory_format=torch.channels_last)
        self._mean = torch.tensor(loaded.mean, device=self._device)
        self._std = torch.tensor(loaded.std, device=self._device)
        self.crop_style = loaded.style
        self.image_size_px = config.image_size_px or loaded.style.size_px
        self._tower = open_tower(self._model.visual, self.image_size_px, loaded.style.size_px)
        self.levels = self._tower.levels
        self._precision = self._fastest_precision() if config.precision == "auto" else config.precision
        if self._precision != "fp32":
            self._check_precision()

    @torch.inference_mode()
    def text_bank(self, vocabulary: Vocabulary) -> TextBank:
        """Return the mean of each interaction's normalised prompt embeddings, normalised, in fp32.

        With `spatial_map` the tower's last layers are included, which turn its cells into joint vectors.
        """
        prompts = interaction_prompts(vocabulary, self._config.prompts, self._config.no_interaction_prompts)
        tokens = self._tokenizer([text for texts in prompts for text in texts])
        embeddings = [self._model.encode_text(chunk.to(self._device)).float() for chunk in tokens.split(TEXT_BATCH)]
        each = functional.normalize(torch.cat(embeddings), dim=-1)
        # Templates of `no_interaction` may be fewer or more than the others.
        rows = torch.stack([texts.mean(0) for texts in each.split([len(texts) for texts in prompts])])
        bias = getattr(self._model, "logit_bias", None)
        return TextBank(
            functional.normalize(rows, dim=-1).cpu().numpy(),
            float(self._model.logit_scale.exp().reshape(-1)[0]),
            None if bias is None else float(bias.reshape(-1)[0]),
            prompts,
            self._tower.head() if self._config.spatial_map else None,
        )

    @torch.inference_mode()
    def encode_crops(self, crops: Tensor) -> Tensor:
        return self._encode(crops, self._precision)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> WholeImages:
        with self._autocast(self._precision):
            embedding, maps = self._tower.whole(self._normalised(images))
        return WholeImages(_unit(embedding), maps)

    @torch.inference_mode()
    def encode_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        with self._autocast(self._precision):
            levels = self._tower.regions(maps, regions.to(self._device))
        return torch.stack([_unit(level) for level in levels], dim=1)

    def provenance(self) -> dict[str, object]:
        style = self.crop_style
        architecture = json.dumps(self._architecture, sort_keys=True)
        probe = self._tokenizer([*self._config.prompts, *self._config.no_interaction_prompts])
        return {
            "name": "open_clip",
            "weights_sha256": self._sha256,
            "architecture_sha256": hashlib.sha256(architecture.encode()).hexdigest(),
            "tokens_sha256": hashlib.sha256(probe.numpy().tobytes()).hexdigest(),
            "prompts": list(self._config.prompts),
            "no_interaction_prompts": list(self._config.no_interaction_prompts),
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
            "crop_size_px": style.size_px,
            "crop_mode": self._config.crop.mode,
            "crop_margins": list(self._config.crop.margins),
            **({"crop_merge_px": self._config.crop.merge_px} if self._config.crop.merge_px else {}),
            "fill_rgb": list(style.fill_rgb),
            "interpolation": style.interpolation,
            "resize_mode": style.resize_mode,
            "image_size_px": self.image_size_px,
            "image_padding": "centred square",
            "levels": [
                level for region in self._config.regions for level in (self.levels if region == "map" else [region])
            ],
            "spatial_map": self._config.spatial_map,
            "precision": self._precision,
            "batch_size": self._config.batch_size,
        }

    def _encode(self, crops: Tensor, precision: str) -> Tensor:
        with self._autocast(precision):
            embedding = self._model.encode_image(self._normalised(crops))
        return _unit(embedding)

    def _normalised(self, pixels: Tensor) -> Tensor:
        floats = pixels.to(self._device).contiguous(memory_format=torch.channels_last).float()
        # W and RGB as one axis: an axis of three leaves a CPU's vector units idle.
        rows = floats.permute(0, 2, 3, 1).view(len(floats), floats.shape[2], -1)
        rows.div_(255).sub_(self._mean.repeat(floats.shape[3])).div_(self._std.repeat(floats.shape[3]))
        return floats

    def _autocast(self, precision: str) -> torch.autocast:
        dtype = _AUTOCAST[precision]
        return torch.autocast(self._device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _check_precision(self) -> None:
        """Raise if a precision changes embeddings: weights may overflow in fp16, or lose too much in bf16."""
        cosine = self._agreement(self._precision)
        # Written so that NaN, which compares as False, is refused too.
        if not cosine > MIN_PRECISION_COSINE:
            raise UserError(
                f"precision {self._precision} changes the teacher's embeddings",
                where="teacher.precision",
                expected=f"a cosine above {MIN_PRECISION_COSINE} with fp32",
                got=f"{cosine:.5f}",
                fix="set teacher.precision to fp32" + (" or bf16" if self._precision == "fp16" else ""),
            )

    def _fastest_precision(self) -> str:
        """Return the fastest precision that keeps the embeddings, or fp32 if none is clearly faster."""
        faithful = [p for p in _LOWER[self._device.type] if self._agreement(p) > MIN_PRECISION_COSINE]
        seconds = {precision: self._seconds(precision) for precision in faithful}
        fastest = min(faithful, key=seconds.__getitem__, default="fp32")
        clearly = fastest != "fp32" and self._seconds("fp32") > MIN_PRECISION_SPEEDUP * seconds[fastest]
        return fastest if clearly else "fp32"

    @torch.inference_mode()
    def _agreement(self, precision: str) -> float:
        """Return the least cosine with fp32 over a few smooth synthetic crops."""
        crops = self._synthetic_crops(4)
        return (self._encode(crops, precision) * self._encode(crops, "fp32")).sum(-1).min().item()

    @torch.inference_mode()
    def _seconds(self, precision: str) -> float:
        """Return the best time of a few forward passes: of whole batches on a GPU, of a few crops on a CPU."""
        crops = self._synthetic_crops(4 if self._device.type == "cpu" else self._config.batch_size)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self._encode(crops, precision).cpu()
            times.append(time.perf_counter() - start)
        return min(times)

    def _synthetic_crops(self, number: int) -> Tensor:
        size = self.crop_style.size_px
        coarse = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
        return functional.interpolate(coarse, (size, size), mode="bilinear").to(self._device, torch.uint8)


def _unit(embedding: Tensor) -> Tensor:
    return functional.normalize(embedding.float(), dim=-1)
