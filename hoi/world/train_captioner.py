"""Drawn images with captions become a tiny CoCa, made of open_clip's own class, that looks at what the CLIP saw.

It starts from the world's CLIP, both towers and the word list, and learns a decoder that writes. Training sees an
iterator of (image, caption), and questions that are made of the captions' words.

Letters: B pairs of a batch, R texts, T tokens, S pixels of a side.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip.coca_model import CoCa, MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hoi.config import TeacherConfig
from hoi.teachers.loading import load_model
from hoi.vlm.coca import image_states, resized_positions
from hoi.world.questions import IGNORED, Texts
from hoi.world.tokenizer import BPE_FILE
from hoi.world.train_clip import MEAN, STD, augment, contrastive_loss, optimizer_of, row_batches, save_open_clip

RESNET_STRIDE = 32
"""Pixels of the image to a cell of the tower's last map."""


@dataclass(frozen=True)
class CaptionerRecipe:
    """All that decides a training, its seed and the CLIP that it starts from aside."""

    num_scenes: int = 14_000
    crops_per_scene: int = 3
    stored_px: int = 144
    """Side of the images in memory; the training crop is cut out of them."""
    sizes_px: tuple[int, ...] = (128, 160)
    """Sides of the training crop, one after the other. The last is the model's own."""
    steps: tuple[int, ...] = (1600, 600)
    """Of each size."""
    decoder_heads: int = 4
    decoder_layers: int = 3
    batch_size: int = 64
    questions_per_image: int = 2
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    min_view: float = 0.75
    jitter: float = 0.2
    caption_weight: float = 2.0
    question_weight: float = 1.0
    contrastive_weight: float = 1.0


def model_config(recipe: CaptionerRecipe, clip: dict) -> dict[str, dict]:
    """The content of open_clip_config.json, given the CLIP's model_cfg."""
    text = {**clip["text_cfg"], "output_tokens": True}
    return {
        "model_cfg": {
            "embed_dim": clip["embed_dim"],
            "quick_gelu": False,
            "vision_cfg": {**clip["vision_cfg"], "image_size": recipe.sizes_px[-1]},
            "text_cfg": text,
            "multimodal_cfg": {
                "context_length": text["context_length"],
                "vocab_size": text["vocab_size"],
                "width": text["width"],
                "heads": recipe.decoder_heads,
                "layers": recipe.decoder_layers,
            },
            "custom_text": True,
        },
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bilinear",
            "resize_mode": "shortest",
        },
    }


def build_captioner(config: dict[str, dict]) -> CoCa:
    """A model with random weights, of the class that open_clip builds from the same config."""
    plain = config["model_cfg"]
    model = CoCa(
        embed_dim=plain["embed_dim"],
        multimodal_cfg=MultimodalCfg(**plain["multimodal_cfg"]),
        text_cfg=CLIPTextCfg(**plain["text_cfg"]),
        vision_cfg=CLIPVisionCfg(**plain["vision_cfg"]),
        quick_gelu=plain["quick_gelu"],
    )
    # open_clip leaves this one as it finds the memory.
    torch.nn.init.normal_(model.text_decoder.text_projection, std=plain["multimodal_cfg"]["width"] ** -0.5)
    return model


def train_captioner(
    pairs: Iterable[tuple[np.ndarray, str]],
    recipe: CaptionerRecipe,
    seed: int,
    clip_folder: Path,
    folder: Path,
    report: Callable[[str], None],
) -> None:
    """Images with captions to a folder that open_clip loads as `local-dir:`.

    Args:
        pairs: (image uint8 [S, S, 3], caption), all of one size; nothing else is known of the images.
        recipe: Sizes, steps and rates.
        seed: Of the initial weights, the order and the augmentation.
        clip_folder: The world's CLIP.
        folder: Gets the CLIP's merges file, open_clip_config.json and open_clip_model.safetensors (float16).
        report: Gets a line of progress now and then.
    """
    clip = load_model(TeacherConfig(model=f"local-dir:{clip_folder}"))
    pixels: list[Tensor] = []
    captions: list[str] = []
    for image, text in pairs:
        pixels.append(torch.from_numpy(image).permute(2, 0, 1))
        captions.append(text)
        if len(captions) % 4000 == 0:
            report(f"{len(captions)} images drawn")
    texts = Texts(captions, clip.tokenizer)
    report(f"{len(pixels)} images, {len(texts.captions)} distinct captions, {len(texts.table.texts)} questions")

    torch.manual_seed(seed)
    config = model_config(recipe, clip.architecture)
    generator = torch.Generator().manual_seed(seed)
    batches = row_batches(len(pixels), recipe.batch_size, generator)
    model = build_captioner(config).to(memory_format=torch.channels_last).train()
    start_from_clip(model, clip.model.state_dict())
    total, done = sum(recipe.steps), 0
    optimizer, schedule = optimizer_of(model, recipe.learning_rate, recipe.weight_decay, recipe.warmup_steps, total)
    for image_px, steps in zip(recipe.sizes_px, recipe.steps, strict=True):
        for step in range(done + 1, done + steps + 1):
            batch = next(batches)
            images = torch.stack([pixels[row] for row in batch.tolist()])
            views = augment(images, image_px, recipe.min_view, recipe.jitter, generator)
            found = losses(model, views, texts, batch, recipe, generator)
            loss = torch.stack([weight * found[name] for name, weight in _weights(recipe).items()]).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0 or step == total:
                report(
                    f"step {step}/{total} at {image_px} px " + " ".join(f"{n} {v.item():.3f}" for n, v in found.items())
                )
        done += steps
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clip_folder / BPE_FILE, folder / BPE_FILE)
    save_open_clip(model, config, {"seed": seed, **asdict(recipe)}, folder)


def start_from_clip(model: CoCa, clip: dict[str, Tensor]) -> None:
    """Gives a captioner both towers and the scale of a CLIP of the same config but for the size of images."""
    model.text.load_state_dict({name: clip[name] for name in model.text.state_dict()})
    image = {name: clip[f"visual.{name}"] for name in model.visual.state_dict()}
    name = "attnpool.positional_embedding"
    image[name] = resized_positions(image[name], model.visual.image_size // RESNET_STRIDE)
    model.visual.load_state_dict(image)
    with torch.no_grad():
        model.logit_scale.copy_(clip["logit_scale"])


def losses(
    model: CoCa,
    views: Tensor,
    texts: Texts,
    batch: Tensor,
    recipe: CaptionerRecipe,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One batch to its three losses, in nats per token or pair.

    Args:
        model: In training.
        views: float [B, 3, S, S], normalised.
        texts: Of all images.
        batch: int64 [B], rows of the images.
        recipe: Gives the number of questions.
        generator: Chooses them.
    """
    ids = texts.caption_of[batch]
    # On short texts the fused attention's backward pass costs a fifth of the step, the plain one next to nothing.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
        pooled, image_tokens = image_states(model.visual, views)
        tokens, labels = texts.tokens[ids], texts.labels[ids]
        ends = (tokens == texts.end).long().argmax(1)
        order = ends.argsort()
        caption_sum, caption_count = torch.zeros(()), 0
        features = torch.empty(len(ids), pooled.shape[1])
        for rows in order.chunk(4):
            length = int(ends[rows].max()) + 1
            states = token_states(model, tokens[rows, :length])
            states_end = states[torch.arange(len(rows)), ends[rows]]
            features[rows] = (states_end @ model.text.text_projection).float()
            logits = model.text_decoder(image_tokens[rows], states[:, :-1])
            part, count = _token_loss(logits, labels[rows, 1:length])
            caption_sum, caption_count = caption_sum + part, caption_count + count
        question, answer = texts.questions(batch, recipe.questions_per_image, generator)
        length = int((question == texts.end).long().argmax(1).max()) + 1
        repeated = image_tokens.repeat_interleave(recipe.questions_per_image, 0)
        logits = model.text_decoder(repeated, token_states(model, question[:, : length - 1]))
        question_sum, question_count = _token_loss(logits, answer[:, 1:length])
    image = functional.normalize(pooled.float(), dim=1)
    text = functional.normalize(features, dim=1)
    return {
        "caption": caption_sum / caption_count,
        "question": question_sum / max(question_count, 1),
        "contrastive": contrastive_loss(image, text, model.logit_scale.exp(), ids),
    }


def token_states(model: CoCa, tokens: Tensor) -> Tensor:
    """Tokens to the text tower's states, as its own forward pass has them, for texts shorter than its context.

    open_clip's tower without class token takes whole contexts only, which is mostly padding.

    Args:
        model: Whose text tower is causal and without class token.
        tokens: int64 [R, T].
    """
    tower, length = model.text, tokens.shape[1]
    states = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    return tower.ln_final(tower.transformer(states, attn_mask=tower.attn_mask[:length, :length]))


def _token_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Sum of the cross-entropies, and of how many tokens."""
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())


def _weights(recipe: CaptionerRecipe) -> dict[str, float]:
    return {
        "caption": recipe.caption_weight,
        "question": recipe.question_weight,
        "contrastive": recipe.contrastive_weight,
    }
