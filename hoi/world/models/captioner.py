"""The world's captioner: a small CoCa (open_clip's class) that starts from the world's CLIP.

It learns a decoder from images and captions, and from yes-no questions that the captions answer. "a man riding a horse"
answers "is a person riding a horse?" with yes; a verb of the same object that the caption leaves out counts as no. (For
scenes of another seed, a quarter of what an image shows gets a no, 6 % of all noes.) So the model learns how likely a
caption is to say it.

Shapes: B pairs of a batch, R texts, T tokens, S pixels of a side.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from open_clip.coca_model import CoCa, MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hoi.config import TeacherConfig
from hoi.prompts import a_object, verb_ing
from hoi.teachers.loading import load_model
from hoi.vlm.coca import image_states, resized_positions
from hoi.vlm.scoring import Lexicon, named_objects, said_interactions, vocabulary_lexicon
from hoi.vocabulary import Vocabulary
from hoi.world.captions import DOING, GRIPS, NOUNS
from hoi.world.models.clip import (
    BPE_FILE,
    augment,
    contrastive_loss,
    numbered,
    open_clip_config,
    save_open_clip,
    stored_pairs,
)
from hoi.world.models.loop import Report, adamw, fit, row_batches, warmup_cosine
from hoi.world.vocabulary import INTERACTIONS, NO_INTERACTION, OBJECTS, VERBS

QUESTION = "is a person {verb_ing} {a_object}?"
YES, NO = "yes", "no"
IGNORED = -100
"""Label of a token that is not predicted: padding, and the words of a question."""
RESNET_STRIDE = 32
"""Pixels per cell of the image tower's last map."""


@dataclass(frozen=True)
class CaptionerRecipe:
    """Everything that decides a training but its seed and the CLIP it starts from."""

    num_scenes: int = 14_000
    crops_per_scene: int = 3
    stored_px: int = 144
    """Side of the images in memory, which training crops are taken from."""
    sizes_px: tuple[int, ...] = (128, 160)
    """Sides of the training crop, one after the other; the last is the model's input."""
    steps: tuple[int, ...] = (1600, 600)
    """For each size."""
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


def world_lexicon() -> Lexicon:
    """Return the words of the world's captions for its verbs and objects."""
    synonyms = {verb: list(words) for verb, words in DOING.items() if verb != NO_INTERACTION}
    synonyms["hold"] += [words for grips in GRIPS.values() for words in grips]
    synonyms |= {name: list(nouns) for name, nouns in NOUNS.items()}
    return vocabulary_lexicon(Vocabulary(OBJECTS, VERBS, INTERACTIONS), synonyms)


def caption_questions(captions: Sequence[str]) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Return all questions that captions raise; and, for each caption, the rows of those that it answers yes and no.

    No is the answer about an object that the caption names, with a verb that other captions use with this object.
    """
    lexicon = world_lexicon()
    said = [said_interactions(text, lexicon) for text in captions]
    verbs_of: dict[str, set[str]] = defaultdict(set)
    for pairs in said:
        for verb, name in pairs:
            verbs_of[name].add(verb)
    asked = [(verb, name) for name in sorted(verbs_of) for verb in sorted(verbs_of[name])]
    row_of = {pair: row for row, pair in enumerate(asked)}
    yes, no = [], []
    for text, pairs in zip(captions, said, strict=True):
        on_objects = {(verb, name) for name in named_objects(text, lexicon) for verb in verbs_of[name]}
        yes.append(sorted(row_of[pair] for pair in pairs))
        no.append(sorted(row_of[pair] for pair in on_objects - pairs))
    return [QUESTION.format(verb_ing=verb_ing(verb), a_object=a_object(name)) for verb, name in asked], yes, no


class Texts:
    """Captions and questions as tokens, and those that belong to each image."""

    def __init__(self, captions: list[str], tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.captions, self.caption_of = numbered(captions)
        questions, self.yes, self.no = caption_questions(self.captions)
        self.tokens = tokenizer(self.captions)
        self.end = int(self.tokens.max())
        self.labels = _labels(self.tokens, torch.ones(len(self.tokens), dtype=torch.long), self.end)
        # The answer is the last word: everything before it, the start included, is not predicted.
        lengths = (tokenizer(questions) == self.end).long().argmax(1)
        self.answers = {}
        for word in (YES, NO):
            tokens = tokenizer([f"{question} {word}" for question in questions])
            self.answers[word] = tokens, _labels(tokens, lengths, self.end)

    def questions(self, batch: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return tokens and labels of `number` questions for each image; every second one has the answer yes, if any.

        An image whose caption raises no question gets one of another image, with all labels ignored.
        """
        tokens, labels = [], []
        for caption in self.caption_of[batch].tolist():
            yes, no = self.yes[caption], self.no[caption]
            for turn in range(number):
                rows, word = (yes, YES) if yes and turn % 2 == 0 else (no, NO)
                pick = int(torch.randint(0, 1 << 30, (), generator=generator))
                row = rows[pick % len(rows)] if rows else 0
                token, label = (values[row] for values in self.answers[word])
                tokens.append(token)
                labels.append(label if rows else torch.full_like(label, IGNORED))
        return torch.stack(tokens), torch.stack(labels)


def _labels(tokens: Tensor, first: Tensor, end: int) -> Tensor:
    """Return the labels of tokens [R, T]: themselves from column `first` [R] to the end of the text, else ignored."""
    column = torch.arange(tokens.shape[1])
    last = (tokens == end).long().argmax(1)
    return tokens.masked_fill((column < first[:, None]) | (column > last[:, None]), IGNORED)


def model_config(recipe: CaptionerRecipe, clip: dict) -> dict[str, dict]:
    """Return the content of the captioner's open_clip_config.json, given the CLIP's model_cfg."""
    text = {**clip["text_cfg"], "output_tokens": True}
    decoder = {name: text[name] for name in ("context_length", "vocab_size", "width")}
    return open_clip_config(
        {
            "embed_dim": clip["embed_dim"],
            "quick_gelu": False,
            "vision_cfg": {**clip["vision_cfg"], "image_size": recipe.sizes_px[-1]},
            "text_cfg": text,
            "multimodal_cfg": {**decoder, "heads": recipe.decoder_heads, "layers": recipe.decoder_layers},
            "custom_text": True,
        }
    )


def build_captioner(config: dict[str, dict]) -> CoCa:
    """Return a model with random weights, of the class that open_clip builds from this config."""
    plain = config["model_cfg"]
    model = CoCa(
        embed_dim=plain["embed_dim"],
        multimodal_cfg=MultimodalCfg(**plain["multimodal_cfg"]),
        text_cfg=CLIPTextCfg(**plain["text_cfg"]),
        vision_cfg=CLIPVisionCfg(**plain["vision_cfg"]),
        quick_gelu=plain["quick_gelu"],
    )
    # open_clip leaves this one uninitialised.
    torch.nn.init.normal_(model.text_decoder.text_projection, std=plain["multimodal_cfg"]["width"] ** -0.5)
    return model


def train_captioner(recipe: CaptionerRecipe, seed: int, clip_folder: Path, folder: Path, report: Report) -> None:
    """Train a captioner that starts from the world's CLIP; arguments and files are those of `train_clip`."""
    clip = load_model(TeacherConfig(model=f"local-dir:{clip_folder}"))
    pixels, captions = stored_pairs(seed, recipe.num_scenes, recipe.crops_per_scene, recipe.stored_px, report)
    texts = Texts(captions, clip.tokenizer)
    report(f"{len(pixels)} images, {len(texts.captions)} distinct captions, {len(texts.answers[YES][0])} questions")

    torch.manual_seed(seed)
    config = model_config(recipe, clip.architecture)
    generator = torch.Generator().manual_seed(seed)
    batches = row_batches(len(pixels), recipe.batch_size, generator)
    model = build_captioner(config).to(memory_format=torch.channels_last).train()
    start_from_clip(model, clip.model.state_dict())
    sizes_px = [size for size, steps in zip(recipe.sizes_px, recipe.steps, strict=True) for _ in range(steps)]

    def losses(step: int) -> dict[str, Tensor]:
        batch = next(batches)
        images = torch.stack([pixels[row] for row in batch.tolist()])
        views = augment(images, sizes_px[step - 1], recipe.min_view, recipe.jitter, generator)
        parts = captioner_losses(model, views, texts, batch, recipe.questions_per_image, generator)
        weights = (recipe.caption_weight, recipe.question_weight, recipe.contrastive_weight)
        loss = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
        return {"loss": loss, **parts}

    rate = warmup_cosine(recipe.learning_rate, recipe.warmup_steps, len(sizes_px))
    fit(model, adamw(model, recipe.weight_decay), rate, losses, len(sizes_px), report)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clip_folder / BPE_FILE, folder / BPE_FILE)
    save_open_clip(model, config, {"seed": seed, **asdict(recipe)}, folder)


def start_from_clip(model: CoCa, clip: dict[str, Tensor]) -> None:
    """Copy both towers and the scale of a CLIP whose config differs in the image size alone."""
    model.text.load_state_dict({name: clip[name] for name in model.text.state_dict()})
    image = {name: clip[f"visual.{name}"] for name in model.visual.state_dict()}
    name = "attnpool.positional_embedding"
    image[name] = resized_positions(image[name], model.visual.image_size // RESNET_STRIDE)
    model.visual.load_state_dict(image)
    with torch.no_grad():
        model.logit_scale.copy_(clip["logit_scale"])


def captioner_losses(
    model: CoCa, views: Tensor, texts: Texts, batch: Tensor, questions_per_image: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the losses `caption`, `question` and `contrastive` of a batch, in nats per token or pair.

    `views` is float [B, 3, S, S], normalised; `batch` int64 [B], rows of the images.
    """
    ids = texts.caption_of[batch]
    # For short texts, the backward pass of fused attention takes a fifth of the step, that of the plain one little.
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
        question, answer = texts.questions(batch, questions_per_image, generator)
        length = int((question == texts.end).long().argmax(1).max()) + 1
        repeated = image_tokens.repeat_interleave(questions_per_image, 0)
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
    """Return the text tower's states for tokens int64 [R, T] shorter than its context.

    open_clip's tower without class token takes whole contexts only, which are mostly padding.
    """
    tower, length = model.text, tokens.shape[1]
    states = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    return tower.ln_final(tower.transformer(states, attn_mask=tower.attn_mask[:length, :length]))


def _token_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the sum of the cross-entropies, and the number of tokens."""
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return loss, int((labels != IGNORED).sum())
