"""Drawn images with captions become a tiny CLIP, made of open_clip's own classes.

The only thing that training sees is an iterator of (image, caption). Letters: B pairs of a batch, S pixels of a side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hoi.world import caption, caption_crop, render, sample_scene
from hoi.world.tokenizer import BPE_FILE, NUM_BASE_TOKENS, learn_merges, open_tokenizer, write_merges

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
"""Of the model's input, RGB in [0, 1]."""
PAD_COLOURS = (0, 127)
"""What a crop shows beyond the image's end: pipelines pad with black or with the model's mean."""


def captioned_images(
    seed: int, num_scenes: int, crops_per_scene: int, size_px: int
) -> Iterator[tuple[np.ndarray, str]]:
    """Scenes of the split `clip` to (image uint8 [S, S, 3], caption): each whole, and zoomed in on some of its parts.

    Args:
        seed: World seed.
        num_scenes: Scenes 0 to num_scenes - 1 of the split are drawn.
        crops_per_scene: Zooms into a scene, each with a caption of its own.
        size_px: S.
    """
    random = np.random.default_rng((seed, num_scenes))
    for index in range(num_scenes):
        scene = sample_scene(seed, "clip", index)
        image = render(scene)
        yield resize(image, size_px), caption(scene, 0)
        for variant in range(crops_per_scene):
            text, (x0, y0, x1, y1) = caption_crop(scene, variant)
            side = max(x1 - x0, y1 - y0) * random.uniform(0.95, 1.4)
            shift = random.uniform(-0.06, 0.06, 2) * side
            left, top = (x0 + x1 - side) / 2 + shift[0], (y0 + y1 - side) / 2 + shift[1]
            pad = int(random.choice(PAD_COLOURS))
            yield resize(cut_square(image, round(left), round(top), max(round(side), 8), pad), size_px), text


def cut_square(image: np.ndarray, left: int, top: int, side: int, pad: int) -> np.ndarray:
    """The square of an image that starts at (left, top); what lies outside of the image is `pad`."""
    square = np.full((side, side, 3), pad, np.uint8)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return square


def resize(image: np.ndarray, size_px: int) -> np.ndarray:
    """Antialiased bilinear resize to a square, uint8."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    sized = functional.interpolate(pixels, (size_px, size_px), mode="bilinear", antialias=True)
    return sized[0].permute(1, 2, 0).contiguous().numpy()


def augment(images: Tensor, image_px: int, min_view: float, jitter: float, generator: torch.Generator) -> Tensor:
    """Stored images to training views: a random square of each, mirrored at random, with changed colours.

    Args:
        images: uint8 [B, 3, S, S].
        image_px: Side of the views.
        min_view: Smallest square, as a share of S.
        jitter: Strength of the colour changes.
        generator: Source of randomness.

    Returns:
        float [B, 3, image_px, image_px], normalised by MEAN and STD.
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
    # In place: new memory for 14 MB at every step costs more than the arithmetic.
    views.mul_(gain / 255).add_(shift).clamp_(0, 1)
    return normalise(views).contiguous(memory_format=torch.channels_last)


def normalise(images: Tensor) -> Tensor:
    """float [B, 3, H, W] in [0, 1] to the model's input, in place."""
    return images.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


MAX_LOGIT_SCALE = 100.0
"""As in CLIP."""


@dataclass(frozen=True)
class ClipRecipe:
    """All that decides a training, its seed aside."""

    num_scenes: int = 14_000
    crops_per_scene: int = 3
    stored_px: int = 112
    """Side of the images in memory; the training crop is cut out of them."""
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


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor, caption_ids: Tensor) -> Tensor:
    """Symmetric InfoNCE in which equal captions of other images are left out of the negatives.

    Args:
        image, text: [B, D], unit norm.
        logit_scale: Factor on cosine.
        caption_ids: int64 [B], equal for equal captions.
    """
    logits = logit_scale * image @ text.T
    same = caption_ids[:, None] == caption_ids[None, :]
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -math.inf)
    target = torch.arange(len(logits))
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def model_config(recipe: ClipRecipe, vocab_size: int) -> dict[str, dict]:
    """The content of open_clip_config.json."""
    return {
        "model_cfg": {
            "embed_dim": recipe.joint_width,
            "quick_gelu": False,
            "vision_cfg": {
                "image_size": recipe.image_px,
                "layers": [1, 1, 1, 1],
                "width": recipe.width,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": recipe.context_length,
                "vocab_size": vocab_size,
                "tokenizer_kwargs": {"bpe_path": BPE_FILE},
                "width": recipe.text_width,
                "heads": recipe.text_width // 32,
                "layers": recipe.text_layers,
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bilinear",
            "resize_mode": "shortest",
        },
    }


def build_clip(config: dict[str, dict]) -> CLIP:
    """A model with random weights, of the class that open_clip builds from the same config."""
    plain = config["model_cfg"]
    return CLIP(
        embed_dim=plain["embed_dim"],
        vision_cfg=CLIPVisionCfg(**plain["vision_cfg"]),
        text_cfg=CLIPTextCfg(**plain["text_cfg"]),
        quick_gelu=plain["quick_gelu"],
    )


def train_clip(
    pairs: Iterable[tuple[np.ndarray, str]],
    recipe: ClipRecipe,
    seed: int,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Images with captions to a folder that open_clip loads as `local-dir:`.

    Args:
        pairs: (image uint8 [S, S, 3], caption), all of one size; nothing else is known of the images.
        recipe: Sizes, steps and rates.
        seed: Of the initial weights, the order and the augmentation.
        folder: Gets the merges file, open_clip_config.json and open_clip_model.safetensors (float16).
        report: Gets a line of progress now and then.
    """
    pixels: list[Tensor] = []
    captions: list[str] = []
    for image, text in pairs:
        pixels.append(torch.from_numpy(image).permute(2, 0, 1))
        captions.append(text)
        if len(captions) % 4000 == 0:
            report(f"{len(captions)} images drawn")
    distinct = sorted(set(captions))
    rows = {text: row for row, text in enumerate(distinct)}
    caption_ids = torch.tensor([rows[text] for text in captions])

    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(captions, recipe.max_merges)
    write_merges(merges, folder / BPE_FILE)
    tokens = open_tokenizer(folder / BPE_FILE, recipe.context_length)(distinct)
    report(f"{len(pixels)} images, {len(distinct)} distinct captions, {len(merges)} merges")

    torch.manual_seed(seed)
    config = model_config(recipe, NUM_BASE_TOKENS + len(merges))
    model = build_clip(config).to(memory_format=torch.channels_last).train()
    optimizer, schedule = optimizer_of(
        model, recipe.learning_rate, recipe.weight_decay, recipe.warmup_steps, recipe.steps
    )
    generator = torch.Generator().manual_seed(seed)
    batches = row_batches(len(pixels), recipe.batch_size, generator)
    for step in range(1, recipe.steps + 1):
        batch = next(batches)
        images = torch.stack([pixels[row] for row in batch.tolist()])
        views = augment(images, recipe.image_px, recipe.min_view, recipe.jitter, generator)
        ids = caption_ids[batch]
        # On short texts the fused attention's backward pass costs a fifth of the step, the plain one next to nothing.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(views)
            text_features = model.encode_text(tokens[ids])
        image_features = functional.normalize(image_features.float(), dim=1)
        text_features = functional.normalize(text_features.float(), dim=1)
        loss = contrastive_loss(image_features, text_features, model.logit_scale.exp(), ids)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        if step % 100 == 0 or step == recipe.steps:
            found = (image_features @ text_features.T).argmax(1)
            hits = (ids[found] == ids).float().mean().item()
            report(
                f"step {step}/{recipe.steps} loss {loss.item():.3f} in-batch top-1 {hits:.2f} "
                f"scale {model.logit_scale.exp().item():.0f}"
            )
    save_open_clip(model, config, {"seed": seed, **asdict(recipe)}, folder)


def save_open_clip(model: nn.Module, config: dict[str, dict], recipe: dict[str, object], folder: Path) -> None:
    """Writes float16 weights, with the recipe in the file's metadata, and the config beside the merges file."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    file = folder / "open_clip_model.safetensors"
    save_file(state, file, metadata={"recipe": json.dumps(recipe)})
    file.chmod(0o644)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def optimizer_of(
    model: nn.Module, learning_rate: float, weight_decay: float, warmup_steps: int, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with warm-up and cosine; gains, biases and the scale are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * done))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def row_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of one batch after the other, each epoch in a new order, the rest of an epoch left out."""
    batch_size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
