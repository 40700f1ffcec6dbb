"""Any open_clip model as a teacher."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hoi.config import TeacherConfig
from hoi.errors import UserError
from hoi.machine import mixed
from hoi.prompts import interaction_prompts
from hoi.records import TextBank
from hoi.teachers import WholeImages
from hoi.teachers.loading import encode_texts, load_model
from hoi.teachers.towers import open_tower
from hoi.vocabulary import Vocabulary
from hoi.weights import weights_sha256

Precision = Literal["fp32", "bf16", "fp16"]
MIN_PRECISION_COSINE = 0.999
"""Least agreement of a lower precision with fp32, on synthetic crops, at start."""
MIN_PRECISION_SPEEDUP = 1.3
"""What `auto` asks of a lower precision: enough that a busy machine does not decide differently tomorrow."""
LOWER_PRECISIONS: dict[str, tuple[Precision, ...]] = {"cpu": ("bf16",), "cuda": ("bf16", "fp16")}
"""What `auto` tries. In fp16 a CPU is slow."""


class OpenClipTeacher:
    """See `Teacher`. Embeddings leave in float32 whatever the precision inside."""

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
        self._precision: Precision = self._fastest_precision() if config.precision == "auto" else config.precision
        if self._precision != "fp32":
            self._check_precision()

    def text_bank(self, vocabulary: Vocabulary) -> TextBank:
        """Return the normalised mean of each interaction's normalised prompt embeddings, in fp32."""
        prompts = interaction_prompts(vocabulary, self._config.prompts, self._config.no_interaction_prompts)
        tokens = self._tokenizer([text for texts in prompts for text in texts])
        each = encode_texts(self._model, tokens, self._device)
        rows = torch.stack([texts.mean(0) for texts in each.split([len(texts) for texts in prompts])])
        scale, bias = self._model.logit_scale.exp().item(), getattr(self._model, "logit_bias", None)
        head = self._tower.head() if self._config.spatial_map else None
        unit_rows = functional.normalize(rows, dim=-1).cpu().numpy()
        return TextBank(unit_rows, scale, None if bias is None else bias.item(), prompts, head)

    @torch.inference_mode()
    def encode_crops(self, crops: Tensor) -> Tensor:
        return self._encode(crops, self._precision)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> WholeImages:
        with mixed(self._precision, self._device):
            embedding, maps = self._tower.whole(self._normalised(images))
        return WholeImages(_unit(embedding), maps)

    @torch.inference_mode()
    def encode_regions(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        with mixed(self._precision, self._device):
            levels = self._tower.regions(maps, regions.to(self._device))
        return torch.stack([_unit(level) for level in levels], dim=1)

    def provenance(self) -> dict[str, object]:
        config, style = self._config, self.crop_style
        architecture = json.dumps(self._architecture, sort_keys=True)
        tokens = self._tokenizer([*config.prompts, *config.no_interaction_prompts])
        return {
            "name": "open_clip",
            "weights_sha256": self._sha256,
            "architecture_sha256": hashlib.sha256(architecture.encode()).hexdigest(),
            "tokens_sha256": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
            "prompts": list(config.prompts),
            "no_interaction_prompts": list(config.no_interaction_prompts),
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
            "crop_size_px": style.size_px,
            "crop_mode": config.crop.mode,
            "crop_margins": list(config.crop.margins),
            **({"crop_merge_px": config.crop.merge_px} if config.crop.merge_px else {}),
            "fill_rgb": list(style.fill_rgb),
            "interpolation": style.interpolation,
            "resize_mode": style.resize_mode,
            "image_size_px": self.image_size_px,
            "image_padding": "centred square",
            "levels": [level for region in config.regions for level in (self.levels if region == "map" else [region])],
            "spatial_map": config.spatial_map,
            "precision": self._precision,
            "batch_size": config.batch_size,
        }

    def _encode(self, crops: Tensor, precision: Precision) -> Tensor:
        with mixed(precision, self._device):
            embedding = self._model.encode_image(self._normalised(crops))
        return _unit(embedding)

    def _normalised(self, pixels: Tensor) -> Tensor:
        floats = pixels.to(self._device).contiguous(memory_format=torch.channels_last).float()
        # W and RGB as one axis: an axis of three leaves a CPU's vector units idle.
        rows = floats.permute(0, 2, 3, 1).view(len(floats), floats.shape[2], -1)
        rows.div_(255).sub_(self._mean.repeat(floats.shape[3])).div_(self._std.repeat(floats.shape[3]))
        return floats

    def _check_precision(self) -> None:
        """Raise if the precision moves embeddings: weights may overflow in fp16, or lose too much in bf16."""
        cosine = self._agreement(self._precision)
        # Written so that NaN, which compares as False, is refused too.
        if not cosine > MIN_PRECISION_COSINE:
            problem = f"precision {self._precision} changes the teacher's embeddings"
            expected = f"a cosine above {MIN_PRECISION_COSINE} with fp32"
            fix = "set teacher.precision to fp32" + (" or bf16" if self._precision == "fp16" else "")
            raise UserError(problem, where="teacher.precision", expected=expected, got=f"{cosine:.5f}", fix=fix)

    def _fastest_precision(self) -> Precision:
        """Return the fastest precision that keeps the embeddings, or fp32 where none is clearly faster."""
        lower = LOWER_PRECISIONS[self._device.type]
        seconds = {p: self._seconds(p) for p in lower if self._agreement(p) > MIN_PRECISION_COSINE}
        fastest = min(seconds, key=seconds.__getitem__, default=None)
        if fastest is not None and self._seconds("fp32") > MIN_PRECISION_SPEEDUP * seconds[fastest]:
            return fastest
        return "fp32"

    @torch.inference_mode()
    def _agreement(self, precision: Precision) -> float:
        """Return the least cosine with fp32 over a few smooth synthetic crops."""
        crops = self._synthetic_crops(4)
        return (self._encode(crops, precision) * self._encode(crops, "fp32")).sum(-1).min().item()

    @torch.inference_mode()
    def _seconds(self, precision: Precision) -> float:
        """Return the best time of a few forward passes: of whole batches on a GPU, of a few crops on a CPU."""
        crops = self._synthetic_crops(4 if self._device.type == "cpu" else self._config.batch_size)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self._encode(crops, precision).cpu()
            times.append(time.perf_counter() - start)
        return min(times)

    def _synthetic_crops(self, number: int) -> Tensor:
        coarse = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
        smooth = functional.interpolate(coarse, (self.crop_style.size_px,) * 2, mode="bilinear")
        return smooth.to(self._device, torch.uint8)


def _unit(embedding: Tensor) -> Tensor:
    return functional.normalize(embedding.float(), dim=-1)
