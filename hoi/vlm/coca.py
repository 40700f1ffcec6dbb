"""Any open_clip CoCa as a `VisionLanguageModel`: how likely it finds a caption, given an image.

A CoCa writes captions and takes no instructions: a question is text that a caption may begin with. The greedy loop is
ours, since open_clip's `generate` wants `transformers`.

Each image goes through its tower once, and each text through the text tower once for all images. The texts of an image
then lie in one row of the decoder, where a token sees its own text alone, so that the image's keys and values are made
once.

Shapes: B images, L image tokens, R texts, T tokens of all texts together, W width, V words of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
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
    """Return the contrastive embedding (any norm) and the tokens of normalised images, of any size for a ResNet."""
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
MAX_KEPT_TEXTS = 4096  # texts whose states are kept; a vocabulary's phrases are far fewer


class CocaModel:
    """A CoCa with a causal text tower and CLIP's tokenizer. Whole images are padded to a square."""

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
        self._autocast = partial(mixed, config.precision, self._device)

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        return self.answers(images, "")

    @torch.inference_mode()
    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        """Continue the question, which is the beginning of the caption."""
        prompt = [self._start, *self._tokenizer.encode(question)]
        batches = [self._continue(image_tokens, prompt) for image_tokens in self._image_tokens(images)]
        return [self._tokenizer.decode(tokens).strip() for batch in batches for tokens in batch]

    @torch.inference_mode()
    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        """Score the candidates; the end of the text is one of its tokens."""
        prompt = [self._start, *self._tokenizer.encode(question or "")]
        texts = [[self._tokens(prompt, text) for text in each] for each in candidates]
        result = []
        for log_p in self._log_probabilities(images, texts):
            of_candidates = [each[len(prompt) - 1 :] for each in log_p]
            sums = np.array([each.sum().item() for each in of_candidates], np.float32)
            result.append(Likelihoods(sums, np.array([len(each) for each in of_candidates], np.int32)))
        return result

    @torch.inference_mode()
    def yes_probabilities(
        self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]
    ) -> list[Float32[np.ndarray, " n"]]:
        """Compare "yes" with "no" as what follows the question."""
        answers = [self._tokenizer.encode(word) for word in (YES, NO)]
        texts = [
            [self._tokens([self._start], question)[:-1] + answer for question in each for answer in answers]
            for each in questions
        ]
        result = []
        for log_p in self._log_probabilities(images, texts):
            sums = [each[-len(answers[place % 2]) :].sum() for place, each in enumerate(log_p)]
            pairs = torch.stack(sums).view(-1, 2) if sums else torch.zeros(0, 2)
            result.append(pairs.softmax(1)[:, 0].numpy().astype(np.float32))
        return result

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
            where, fix = f"vlms, model {self._config.model}, '{text[:80]}'", "shorten the phrase or the question"
            problem, expected = "a candidate is longer than the model's context", f"at most {self._context} tokens"
            raise UserError(problem, where=where, expected=expected, got=len(tokens), fix=fix)
        return tokens

    def _image_tokens(self, images: Sequence[np.ndarray]) -> list[Float[Tensor, "B L W"]]:
        """Return the tokens that the decoder looks at, by batches of images."""
        batches = []
        for start in range(0, len(images), self._config.batch_size):
            crops = []
            for image in images[start : start + self._config.batch_size]:
                pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
                crops.append(cut_crop(pixels, whole_image_window(image.shape[:2]), self._style.size_px, self._style))
            views = torch.stack(crops).to(self._device).float().div_(255).sub_(self._mean).div_(self._std)
            with self._autocast():
                batches.append(image_states(self._model.visual, views)[1])
        return batches

    def _log_probabilities(
        self, images: Sequence[np.ndarray], texts: Sequence[Sequence[list[int]]]
    ) -> Iterator[list[Tensor]]:
        """Yield for each image log p of every token of each text but its first, float32 on the CPU."""
        rows = [row for batch in self._image_tokens(images) for row in batch]
        for image_tokens, of_image in zip(rows, texts, strict=True):
            log_p: list[Tensor] = []
            for start in range(0, len(of_image), self._config.batch_size):
                chunk = of_image[start : start + self._config.batch_size]
                logits = self._packed_logits(image_tokens, [self._text_states(tokens[:-1]) for tokens in chunk])
                targets = torch.tensor([token for tokens in chunk for token in tokens[1:]], device=self._device)
                packed = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].cpu()
                log_p += packed.split([len(tokens) - 1 for tokens in chunk])
            yield log_p

    def _packed_logits(self, image_tokens: Float[Tensor, "L W"], states: Sequence[Tensor]) -> Float[Tensor, "T V"]:
        """Return the logits after each token of several texts of one image, text by text."""
        decoder, image = self._model.text_decoder, image_tokens[None]
        total = sum(map(len, states))
        mask, start = torch.full((total, total), -torch.inf, device=self._device), 0
        for length in map(len, states):
            end = start + length
            mask[start:end, start:end] = decoder.attn_mask[:length, :length]
            start = end
        with self._autocast():
            x = torch.cat(list(states))[None]
            for self_attention, cross_attention in zip(decoder.resblocks, decoder.cross_attn, strict=True):
                x = cross_attention(self_attention(x, attn_mask=mask), k_x=image, v_x=image)
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
            tokens = functional.pad(tokens, (0, tower.context_length - length), value=tower.pad_id)
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


def _load(config: VlmConfig) -> tuple[LoadedModel, SimpleTokenizer]:
    """Load model and tokenizer, and refuse what is no CoCa that can be asked here."""
    where = f"vlms, model {config.model}"
    try:
        loaded = load_model(TeacherConfig(model=config.model, pretrained=config.pretrained))
    except UserError as error:
        problem = error.what.replace("the teacher", "the CoCa")
        key = str(error.where).replace("teacher", "vlms.NAME")
        raise UserError(problem, where=key, expected=error.expected, got=error.got) from None
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
