"""Any open_clip CoCa as a `VisionLanguageModel`: how likely it finds a caption, given an image.

A CoCa writes captions and takes no instructions: what is asked as a question is text that a caption may begin with.
Nothing is needed beyond open_clip: its own `generate` wants `transformers`, so the greedy loop is ours.

An image goes through the image tower once, and texts through the text tower once for all images, since it does not see
them. The texts of one image then lie one after the other in one row of the decoder, where each token sees its own text
alone: the image's keys and values are made once for all of them.

Shapes: B images, L image tokens, R texts, T tokens of all texts together, W width, V words of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from open_clip.coca_model import CoCa
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional

from hoi.config import TeacherConfig, VlmConfig
from hoi.crops import cut_crop, whole_image_window
from hoi.errors import UserError
from hoi.machine import mixed
from hoi.provenance import library_versions
from hoi.teachers.loading import LoadedModel, load_model
from hoi.vlm import Likelihoods
from hoi.weights import RANDOM, RANDOM_SEED, weights_sha256


def image_states(tower: Any, views: Float[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B L W"]]:
    """Return the contrastive embedding, not normalised, and the tokens of normalised images.

    Args:
        views: Of any size if the tower is a ResNet; the positions of its pool are interpolated.
    """
    if not isinstance(tower, ModifiedResNet):
        embedding, tokens = tower(views)
        return embedding, tokens
    cells = tower.stem(views)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        cells = layer(cells)
    pool = tower.attnpool
    x = cells.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + resized_positions(pool.positional_embedding, cells.shape[-1])
    query, key, value = (
        projection(x).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for projection in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    tokens = pool.c_proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
    return tokens[:, 0], tokens


def resized_positions(positions: Tensor, side: int) -> Tensor:
    """Resize position embeddings [1 + old², C] to [1 + side², C]; the first, of the pooled token, stays."""
    old = math.isqrt(len(positions) - 1)
    if old == side:
        return positions
    grid = positions[1:].T.reshape(1, -1, old, old)
    sized = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], sized.flatten(2)[0].T])


YES, NO = "yes", "no"
MAX_KEPT_TEXTS = 4096
"""Texts whose states are kept; a vocabulary's phrases are far fewer."""


class CocaModel:
    """A CoCa with a causal text tower and CLIP's tokenizer. Whole images are padded to a square.

    Raises:
        UserError: it cannot be loaded (`load_model`), or is no such CoCa.
    """

    def __init__(self, config: VlmConfig, device: str) -> None:
        loaded, self._tokenizer = _load(config)
        self._config, self._device = config, torch.device(device)
        self._sha256 = weights_sha256(loaded.model)
        self._architecture, self._style = loaded.architecture, loaded.style
        self._model: CoCa = loaded.model.to(self._device)
        self._start, self._end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        self._context = min(self._model.text.context_length, self._model.text_decoder.context_length)
        self._mean = torch.tensor(loaded.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(loaded.std, device=self._device).view(3, 1, 1)
        self._states: dict[tuple[int, ...], Tensor] = {}

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        return self.answers(images, "")

    @torch.inference_mode()
    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        """Continue the question, which is the beginning of the caption."""
        prompt = [self._start, *self._tokenizer.encode(question)]
        texts: list[str] = []
        for image_tokens in self._image_tokens(images):
            texts += [self._tokenizer.decode(tokens).strip() for tokens in self._continue(image_tokens, prompt)]
        return texts

    @torch.inference_mode()
    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        """Score the candidates; the end of the text is one of its tokens."""
        prompt = [self._start, *self._tokenizer.encode(question or "")]
        texts = [[self._tokens(prompt, text) for text in own] for own in candidates]
        found = []
        for scores, own in zip(self._scores(images, texts), texts, strict=True):
            sums = [score[len(prompt) - 1 :].sum().item() for score in scores]
            counts = [len(tokens) - len(prompt) for tokens in own]
            found.append(Likelihoods(np.array(sums, np.float32), np.array(counts, np.int32)))
        return found

    @torch.inference_mode()
    def yes_probabilities(
        self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]
    ) -> list[Float32[np.ndarray, " n"]]:
        """Compare "yes" with "no" as what follows the question."""
        answers = [self._tokenizer.encode(word) for word in (YES, NO)]
        texts = [
            [self._tokens([self._start], text)[:-1] + answer for text in asked for answer in answers]
            for asked in questions
        ]
        found = []
        for scores in self._scores(images, texts):
            sums = [score[-len(answers[at % 2]) :].sum() for at, score in enumerate(scores)]
            pairs = torch.stack(sums).view(-1, 2) if sums else torch.zeros(0, 2)
            found.append(pairs.softmax(1)[:, 0].numpy().astype(np.float32))
        return found

    def provenance(self) -> dict[str, Any]:
        style = self._style
        architecture = json.dumps(self._architecture, sort_keys=True)
        probe = json.dumps(self._tokenizer.encode(f"a person riding a horse, {YES} or {NO}?"))
        return {
            "name": "open_clip_coca",
            "weights_sha256": self._sha256,
            "architecture_sha256": hashlib.sha256(architecture.encode()).hexdigest(),
            "tokens_sha256": hashlib.sha256(probe.encode()).hexdigest(),
            "mean": self._mean.flatten().tolist(),
            "std": self._std.flatten().tolist(),
            "size_px": style.size_px,
            "fill_rgb": list(style.fill_rgb),
            "interpolation": style.interpolation,
            "image_padding": "centred square",
            "decoding": {"greedy": True, "max_new_tokens": self._config.max_new_tokens, "context": self._context},
            "candidate_end": [self._end],
            "answers": [YES, NO],
            "precision": self._config.precision,
            "batch_size": self._config.batch_size,
            "versions": library_versions(("open_clip_torch", "torch")),
        }

    def _tokens(self, prompt: list[int], text: str) -> list[int]:
        tokens = [*prompt, *self._tokenizer.encode(text), self._end]
        if len(tokens) > self._context:
            raise UserError(
                "a candidate is longer than the model's context",
                where=f"vlms, model {self._config.model}, '{text[:80]}'",
                expected=f"at most {self._context} tokens",
                got=len(tokens),
                fix="shorten the phrase or the question",
            )
        return tokens

    def _image_tokens(self, images: Sequence[np.ndarray]) -> list[Float[Tensor, "B L W"]]:
        """Yield the tokens that the decoder looks at, a batch of images at a time."""
        found, size = [], self._style.size_px
        for start in range(0, len(images), self._config.batch_size):
            crops = []
            for image in images[start : start + self._config.batch_size]:
                pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
                crops.append(cut_crop(pixels, whole_image_window(image.shape[:2]), size, self._style))
            views = torch.stack(crops).to(self._device).float().div_(255).sub_(self._mean).div_(self._std)
            with self._autocast():
                found.append(image_states(self._model.visual, views)[1])
        return found

    def _scores(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[list[int]]]) -> list[list[Tensor]]:
        """Return log p of every token of each text but its first, float32 on the CPU."""
        rows = [row for batch in self._image_tokens(images) for row in batch]
        found = []
        for image_tokens, own in zip(rows, texts, strict=True):
            scores: list[Tensor] = []
            for start in range(0, len(own), self._config.batch_size):
                some = own[start : start + self._config.batch_size]
                logits = self._packed_logits(image_tokens, [self._text_states(tokens[:-1]) for tokens in some])
                targets = torch.tensor([token for tokens in some for token in tokens[1:]], device=self._device)
                each = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].cpu()
                scores += each.split([len(tokens) - 1 for tokens in some])
            found.append(scores)
        return found

    def _packed_logits(self, image_tokens: Float[Tensor, "L W"], states: Sequence[Tensor]) -> Float[Tensor, "T V"]:
        """Return the logits after each token of several texts of one image, text by text."""
        lengths = [len(state) for state in states]
        total = sum(lengths)
        mask = torch.full((total, total), -torch.inf, device=self._device)
        for end, length in zip(accumulate(lengths), lengths, strict=True):
            mask[end - length : end, end - length : end] = self._model.text_decoder.attn_mask[:length, :length]
        decoder, image = self._model.text_decoder, image_tokens[None]
        with self._autocast():
            x = torch.cat(list(states))[None]
            for own, cross in zip(decoder.resblocks, decoder.cross_attn, strict=True):
                x = cross(own(x, attn_mask=mask), k_x=image, v_x=image)
            return (decoder.ln_final(x) @ decoder.text_projection)[0].float()

    def _text_states(self, tokens: list[int]) -> Float[Tensor, "t W"]:
        """Return the text tower's states of one text, which are the same for every image."""
        key = tuple(tokens)
        if key not in self._states:
            if len(self._states) >= MAX_KEPT_TEXTS:
                self._states.clear()
            self._states[key] = self._tower_states(torch.tensor([tokens], device=self._device))[0]
        return self._states[key]

    def _tower_states(self, tokens: Tensor) -> Float[Tensor, "R t W"]:
        tower, length = self._model.text, tokens.shape[1]
        if tower.cls_emb is None:
            # A tower without class token takes whole contexts only; a causal one does not see the padding.
            tokens = torch.nn.functional.pad(tokens, (0, tower.context_length - length), value=tower.pad_id)
        with self._autocast():
            return tower(tokens)[1][:, :length]

    def _continue(self, image_tokens: Float[Tensor, "B L W"], prompt: list[int]) -> list[list[int]]:
        """Return the likeliest tokens after the prompt, one by one, without the end."""
        tokens = torch.tensor([prompt], device=self._device).expand(len(image_tokens), -1)
        ended = torch.zeros(len(image_tokens), dtype=torch.bool, device=self._device)
        longest = min(len(prompt) + self._config.max_new_tokens, self._context)
        while tokens.shape[1] < longest and not ended.all():
            with self._autocast():
                logits = self._model.text_decoder(image_tokens, self._tower_states(tokens))[:, -1].float()
            best = torch.where(ended, self._end, logits.argmax(-1))
            tokens, ended = torch.cat([tokens, best[:, None]], dim=1), ended | (best == self._end)
        written = tokens[:, len(prompt) :].tolist()
        return [row[: row.index(self._end)] if self._end in row else row for row in written]

    def _autocast(self) -> torch.autocast:
        return mixed(self._config.precision, self._device)


def _load(config: VlmConfig) -> tuple[LoadedModel, SimpleTokenizer]:
    """Load model and tokenizer, and refuse what is no CoCa that can be asked here."""
    where = f"vlms, model {config.model}"
    try:
        loaded = load_model(TeacherConfig(model=config.model, pretrained=config.pretrained))
    except UserError as error:
        said = error.what.replace("the teacher", "the CoCa"), str(error.where).replace("teacher", "vlms.NAME")
        raise UserError(said[0], where=said[1], expected=error.expected, got=error.got) from None
    model, tokenizer = loaded.model, loaded.tokenizer
    if not isinstance(model, CoCa):
        raise UserError("the model is no CoCa", where=where, expected="coca_ViT-B-32, say", got=type(model).__name__)
    if not isinstance(tokenizer, SimpleTokenizer) or getattr(model.text, "attn_mask", None) is None:
        raise UserError("the CoCa's text side is not CLIP's", where=where, expected="a causal tower with CLIP's tokens")
    if config.pretrained == RANDOM:
        # open_clip leaves this one as it finds the memory.
        projection = model.text_decoder.text_projection
        generator = torch.Generator().manual_seed(RANDOM_SEED)
        projection.data = torch.randn(projection.shape, generator=generator) * projection.shape[0] ** -0.5
    return loaded, tokenizer
