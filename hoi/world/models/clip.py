"""The world's CLIP: its captioned images, its small BPE vocabulary, and its training from images and captions alone.

The model has open_clip's own classes; CLIP's own vocabulary of 49,408 tokens would be most of its weights.

Shapes: B pairs of a batch, S pixels of a side.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hoi.world import caption, caption_crop, render, sample_scene
from hoi.world.models.loop import Report, adamw, fit, row_batches, save_float16, warmup_cosine

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
"""Of the model's input, RGB in [0, 1]."""
PAD_COLOURS = (0, 127)
"""Colours beyond the edge of the image: pipelines pad with black or with the model's mean."""
MAX_LOGIT_SCALE = 100.0
"""As in CLIP."""
BPE_FILE = "bpe_merges.txt.gz"
"""Beside the weights, as `tokenizer_kwargs.bpe_path` names it."""
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
"""How SimpleTokenizer splits lower-case English into words."""
NUM_BASE_TOKENS = 2 * 256 + 2
"""Every byte, inside and at the end of a word, and the start and the end of a text."""

Pair = tuple[str, str]


@dataclass(frozen=True)
class ClipRecipe:
    """Everything that decides a training but its seed."""

    num_scenes: int = 14_000
    crops_per_scene: int = 3
    stored_px: int = 112
    """Side of the images in memory, which training crops are taken from."""
    image_px: int = 96
    width: int = 16
    joint_width: int = 128
    text_layers: int = 2
    text_width: int = 128
    context_length: int = 32
    max_merges: int = 400
    steps: int = 2600
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    min_view: float = 0.75
    """Smallest training crop, as a share of the stored side."""
    jitter: float = 0.2
    """Largest relative change of contrast and of each colour, and largest shift of brightness over 2."""


def captioned_images(
    seed: int, num_scenes: int, crops_per_scene: int, size_px: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Yield (image uint8 [S, S, 3], caption) of the split `clip`: each scene, and crops with captions of their own."""
    rng = np.random.default_rng((seed, num_scenes))
    for index in range(num_scenes):
        scene = sample_scene(seed, "clip", index)
        image = render(scene)
        yield resize(image, size_px), caption(scene, 0)
        for variant in range(crops_per_scene):
            text, (x0, y0, x1, y1) = caption_crop(scene, variant)
            side = max(x1 - x0, y1 - y0) * rng.uniform(0.95, 1.4)
            shift = rng.uniform(-0.06, 0.06, 2) * side
            left, top = (x0 + x1 - side) / 2 + shift[0], (y0 + y1 - side) / 2 + shift[1]
            pad = int(rng.choice(PAD_COLOURS))
            yield resize(cut_square(image, round(left), round(top), max(round(side), 8), pad), size_px), text


def cut_square(image: np.ndarray, left: int, top: int, side: int, pad: int) -> np.ndarray:
    """Return the square of an image that starts at (left, top), padded beyond the image's edge."""
    square = np.full((side, side, 3), pad, np.uint8)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return square


def resize(image: np.ndarray, size_px: int) -> np.ndarray:
    """Resize to a square (antialiased, bilinear), uint8."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    sized = functional.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True)
    return sized[0].permute(1, 2, 0).contiguous().numpy()


def augment(images: Tensor, image_px: int, min_view: float, jitter: float, generator: torch.Generator) -> Tensor:
    """Return a random square of each image, uint8 [B, 3, S, S], mirrored at random, with jittered colours.

    The result is float [B, 3, image_px, image_px], normalised by MEAN and STD; `min_view` and `jitter` are a recipe's.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    scale = uniform(min_view, 1.0, count)
    room = 1 - scale
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale * (torch.randint(0, 2, (count,), generator=generator) * 2 - 1)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = uniform(-1, 1, count, 2) * room[:, None]
    grid = functional.affine_grid(theta, [count, 3, image_px, image_px], align_corners=False)
    views = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    gain = uniform(1 - jitter, 1 + jitter, count, 3, 1, 1) * uniform(1 - jitter, 1 + jitter, count, 1, 1, 1)
    shift = uniform(-jitter / 2, jitter / 2, count, 1, 1, 1) + 0.5 - 0.5 * gain
    # In place: allocating 14 MB at every step takes longer than the arithmetic.
    views.mul_(gain / 255).add_(shift).clamp_(0, 1)
    views.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
    return views.contiguous(memory_format=torch.channels_last)


def learn_merges(captions: Iterable[str], max_merges: int) -> list[Pair]:
    """Return the most frequent symbol pairs in order of merging; ties are in alphabetical order.

    There are fewer than `max_merges` once every word is a single token.
    """
    encoder = bytes_to_unicode()
    counts: Counter[tuple[str, ...]] = Counter()
    for text in captions:
        for word in re.findall(WORD_PATTERN, text.lower()):
            letters = [encoder[byte] for byte in word.encode()]
            counts[(*letters[:-1], letters[-1] + "</w>")] += 1
    merges: list[Pair] = []
    while len(merges) < max_merges:
        pairs: Counter[Pair] = Counter()
        for symbols, count in counts.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        # Merging never makes two words equal.
        counts = Counter({_merge(symbols, best): count for symbols, count in counts.items()})
    return merges


def _merge(symbols: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    result: list[str] = []
    at = 0
    while at < len(symbols):
        if symbols[at : at + 2] == pair:
            result.append(pair[0] + pair[1])
            at += 2
        else:
            result.append(symbols[at])
            at += 1
    return tuple(result)


def write_merges(merges: Iterable[Pair], path: Path) -> None:
    """Write the gzip file that open_clip's SimpleTokenizer reads; equal merges give equal bytes."""
    # No newline at the end: SimpleTokenizer would read an empty merge out of it.
    text = "\n".join(["#version: hoi-distill world", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor, caption_ids: Tensor) -> Tensor:
    """Return the symmetric InfoNCE loss of unit-norm embeddings [B, D].

    Other images of the same caption (equal `caption_ids`, int64 [B]) are no negatives.
    """
    logits = logit_scale * image @ text.T
    same = caption_ids[:, None] == caption_ids[None, :]
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -math.inf)
    target = torch.arange(len(logits))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def open_clip_config(model_cfg: dict[str, object]) -> dict[str, dict]:
    """Return the content of open_clip_config.json."""
    preprocess = {"mean": list(MEAN), "std": list(STD), "interpolation": "bilinear", "resize_mode": "shortest"}
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def model_config(recipe: ClipRecipe, vocab_size: int) -> dict[str, dict]:
    """Return the content of the CLIP's open_clip_config.json."""
    vision = {"image_size": recipe.image_px, "layers": [1, 1, 1, 1], "width": recipe.width, "head_width": 64}
    text = {
        "context_length": recipe.context_length,
        "vocab_size": vocab_size,
        "tokenizer_kwargs": {"bpe_path": BPE_FILE},
        "width": recipe.text_width,
        "heads": recipe.text_width // 32,
        "layers": recipe.text_layers,
    }
    return open_clip_config(
        {"embed_dim": recipe.joint_width, "quick_gelu": False, "vision_cfg": vision, "text_cfg": text}
    )


def stored_pairs(
    seed: int, num_scenes: int, crops_per_scene: int, size_px: int, report: Report
) -> tuple[list[Tensor], list[str]]:
    """Draw all images, uint8 [3, S, S], and captions of `captioned_images` into memory."""
    pixels: list[Tensor] = []
    captions: list[str] = []
    for image, text in captioned_images(seed, num_scenes, crops_per_scene, size_px):
        pixels.append(torch.from_numpy(image).permute(2, 0, 1))
        captions.append(text)
        if len(captions) % 4000 == 0:
            report(f"{len(captions)} images drawn")
    return pixels, captions


def numbered(captions: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the distinct captions, sorted, and the row of each caption among them."""
    distinct = sorted(set(captions))
    rows = {text: row for row, text in enumerate(distinct)}
    return distinct, torch.tensor([rows[text] for text in captions])


def train_clip(recipe: ClipRecipe, seed: int, folder: Path, report: Report) -> None:
    """Train a CLIP and write a folder that open_clip loads as `local-dir:`: merges, config and float16 weights.

    Nothing but captions is known of the images. `seed` is of the scenes, the initial weights, the order and the
    augmentation.
    """
    pixels, captions = stored_pairs(seed, recipe.num_scenes, recipe.crops_per_scene, recipe.stored_px, report)
    distinct, caption_ids = numbered(captions)

    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(captions, recipe.max_merges)
    write_merges(merges, folder / BPE_FILE)
    tokens = SimpleTokenizer(bpe_path=str(folder / BPE_FILE), context_length=recipe.context_length)(distinct)
    report(f"{len(pixels)} images, {len(distinct)} distinct captions, {len(merges)} merges")

    torch.manual_seed(seed)
    config = model_config(recipe, NUM_BASE_TOKENS + len(merges))
    plain = config["model_cfg"]
    model = CLIP(
        embed_dim=plain["embed_dim"],
        vision_cfg=CLIPVisionCfg(**plain["vision_cfg"]),
        text_cfg=CLIPTextCfg(**plain["text_cfg"]),
        quick_gelu=plain["quick_gelu"],
    )
    model = model.to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(seed)
    batches = row_batches(len(pixels), recipe.batch_size, generator)

    def limit_scale() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def losses(step: int) -> dict[str, Tensor]:
        limit_scale()
        batch = next(batches)
        images = torch.stack([pixels[row] for row in batch.tolist()])
        views = augment(images, recipe.image_px, recipe.min_view, recipe.jitter, generator)
        ids = caption_ids[batch]
        # For short texts, the backward pass of fused attention takes a fifth of the step, that of the plain one little.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(views)
            text_features = model.encode_text(tokens[ids])
        image_features = functional.normalize(image_features.float(), dim=1)
        text_features = functional.normalize(text_features.float(), dim=1)
        scale = model.logit_scale.exp()
        top1 = (ids[(image_features @ text_features.T).argmax(1)] == ids).float().mean()
        loss = contrastive_loss(image_features, text_features, scale, ids)
        return {"loss": loss, "in-batch top-1": top1, "scale": scale}

    rate = warmup_cosine(recipe.learning_rate, recipe.warmup_steps, recipe.steps)
    fit(model, adamw(model, recipe.weight_decay), rate, losses, recipe.steps, report)
    limit_scale()
    save_open_clip(model, config, {"seed": seed, **asdict(recipe)}, folder)


def save_open_clip(model: nn.Module, config: dict[str, dict], recipe: dict[str, object], folder: Path) -> None:
    """Write float16 weights, with the recipe in the file's metadata, and the config."""
    save_float16(model, folder / "open_clip_model.safetensors", {"recipe": json.dumps(recipe)})
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
