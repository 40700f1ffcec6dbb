"""Any image-text-to-text model of `transformers` as a `VisionLanguageModel`.

Shapes: n candidates or questions of one image, V words of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from hoi.config import VlmConfig
from hoi.errors import UserError
from hoi.provenance import library_versions
from hoi.vlm import Likelihoods
from hoi.vlm.prompting import (
    Prompter,
    common_length,
    cut,
    first_token_share,
    last_logits,
    likelihoods,
    plain_likelihoods,
    run_prefix,
)
from hoi.vlm.transformers_loading import load_model, memory_explained, quiet
from hoi.weights import RANDOM, weights_sha256

TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
"""How far a shared prefix may move a token's log-probability on average; [choice], wide in low precisions because
logits of 16 to 32 are rounded to 0.125 in bf16 and 0.016 in fp16."""
PROBES = ("riding a horse", "a person who is holding an umbrella in the rain", "no")
PROBE_PX = 160


class TransformersModel:
    """Reads images one after another, and the candidates of an image together.

    Raises:
        UserError: it cannot be loaded (`load_model`), or does not look at images.
    """

    def __init__(self, config: VlmConfig, device: str) -> None:
        loaded = load_model(config)
        self._config, self._device, self._kind = config, torch.device(device), loaded.kind
        self._sha256 = weights_sha256(loaded.model)
        with memory_explained(config.model):
            self.model = loaded.model.to(self._device)
        self._prompter = Prompter(loaded.processor, f"vlms, model {config.model}")
        tokenizer = loaded.processor.tokenizer
        ends = self.model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
        # A chat model has several: the end of its turn, which the tokeniser names, and the end of all text.
        self._end = [end for end in self._ends if end == tokenizer.eos_token_id] or self._ends[:1]
        self._padding = next((t for t in (tokenizer.pad_token_id, *self._ends) if t is not None), 0)
        self._shares_image, self._shares_question = self._probe()

    def captions(self, images: Sequence[np.ndarray]) -> list[str]:
        return self.answers(images, self._config.caption_question)

    @torch.inference_mode()
    def answers(self, images: Sequence[np.ndarray], question: str) -> list[str]:
        from transformers import GenerationConfig

        # Models come with sampling and penalties of their own; what is unset here would be taken from them.
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=self._config.max_new_tokens,
            max_length=None,
            eos_token_id=self._ends or None,
            pad_token_id=self._padding,
        )
        texts = []
        for image in images:
            inputs = self.inputs(image, question)
            with memory_explained(self._config.model), quiet():
                written = self.model.generate(**inputs, generation_config=greedy)
            new = written[0, inputs["input_ids"].shape[1] :]
            texts.append(self._prompter.written(new.tolist()))
        return texts

    @torch.inference_mode()
    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        """Score the candidates, each with the model's end of turn; no question means the caption's."""
        asked = self._config.caption_question if question is None else question
        found = []
        for image, texts in zip(images, candidates, strict=True):
            if not texts:
                found.append(Likelihoods(np.zeros(0, np.float32), np.zeros(0, np.int32)))
                continue
            inputs = self.inputs(image, asked)
            tokens = self.tokens(inputs, texts)
            each = self._score(inputs, tokens, self._shares_image)
            sums = torch.stack([row.sum() for row in each]).cpu().numpy()
            found.append(Likelihoods(sums, np.array([len(row) for row in tokens], np.int32)))
        return found

    @torch.inference_mode()
    def yes_probabilities(
        self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]
    ) -> list[Float32[np.ndarray, " n"]]:
        """Compare yes and no, as `Prompter.answers` spells them, as first token of the answer."""
        yes, no = self._prompter.answers("yes"), self._prompter.answers("no")
        found = []
        for image, asked in zip(images, questions, strict=True):
            logits = self._first_logits([self.inputs(image, question) for question in asked], self._shares_question)
            found.append(np.array([first_token_share(row, yes, no) for row in logits], np.float32))
        return found

    def provenance(self) -> dict[str, Any]:
        return {
            "name": "transformers",
            "architecture": self._kind,
            "architecture_sha256": self._architecture_sha256(),
            "weights_sha256": self._sha256,
            **self._prompter.provenance(),
            "caption_question_sha256": hashlib.sha256(self._config.caption_question.encode()).hexdigest(),
            "decoding": {"greedy": True, "max_new_tokens": self._config.max_new_tokens, "ends": self._ends},
            "candidate_end": self._end,
            "precision": self._config.precision,
            "batch_size": self._config.batch_size,
            "shared_prefix": {"candidates": self._shares_image, "questions": self._shares_question},
            "versions": library_versions(("transformers", "tokenizers", "torch")),
        }

    def _architecture_sha256(self) -> str:
        settings = self.model.config.to_dict()
        # Where it lies, what wrote it and in which type it was stored change nothing.
        for name in ("_name_or_path", "transformers_version", "dtype"):
            settings.pop(name, None)
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def inputs(self, image: np.ndarray, question: str) -> dict[str, Tensor]:
        """Return the inputs of `model` for an image, uint8 [H, W, 3], and a question, as one row on its device."""
        given = self._prompter.inputs(image, question)
        return {
            name: value.to(self._device, self.model.dtype if value.is_floating_point() else None)
            for name, value in given.items()
        }

    def tokens(self, inputs: dict[str, Tensor], texts: Sequence[str]) -> list[list[int]]:
        """Return candidates' tokens after `inputs`, with the end of the model's turn."""
        return [[*tokens, *self._end] for tokens in self._prompter.tokens(inputs["input_ids"], texts)]

    def _score(self, inputs: dict[str, Tensor], texts: Sequence[Sequence[int]], shared: bool) -> list[Tensor]:
        with memory_explained(self._config.model):
            if not shared:
                return [plain_likelihoods(self.model, inputs, text) for text in texts]
            return likelihoods(self.model, run_prefix(self.model, inputs), texts, self._config.batch_size)

    def _first_logits(self, prompts: Sequence[dict[str, Tensor]], shared: bool) -> list[Tensor]:
        """Return the logits of what follows each prompt; their common beginning is read once if `shared`."""
        texts = [prompt["input_ids"][0].tolist() for prompt in prompts]
        length = common_length(texts) if shared and len(texts) > 1 else 0
        with memory_explained(self._config.model):
            if length == 0 or not self._holds_image(texts[0], length):
                return [run_prefix(self.model, prompt).logits[0] for prompt in prompts]
            prefix = run_prefix(self.model, cut(prompts[0], length))
            return last_logits(self.model, prefix, [text[length:] for text in texts], self._config.batch_size)

    def _holds_image(self, text: Sequence[int], length: int) -> bool:
        settings = self.model.config
        image = getattr(settings, "image_token_id", None) or getattr(settings, "image_token_index", None)
        return image in text[:length] and image not in text[length:]

    @torch.inference_mode()
    def _probe(self) -> tuple[bool, bool]:
        """Return whether candidates may share image and question, and whether questions may share the image.

        Not every architecture can: its cache may be of another kind, or the tokens of a prompt all see each other, so
        that an image read before its question is another one. If sharing changes the scores of a drawn picture's
        texts, each text has a pass of its own.

        Raises:
            UserError: numbers overflow; or two pictures get the same, so that the image does not reach the model.
        """
        ramp = np.linspace(0, 255, PROBE_PX, dtype=np.uint8)
        picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1)
        inputs = self.inputs(picture, PROBES[0])
        texts = self.tokens(inputs, PROBES)
        plain = torch.cat(self._score(inputs, texts, shared=False))
        if not plain.isfinite().all():
            raise UserError(
                f"the model overflows in {self._config.precision}",
                where=f"vlms, model {self._config.model}",
                fix="set its precision to bf16 or fp32",
            )
        # Some architectures begin with a projection of zero, so random weights may well be blind.
        if self._config.pretrained != RANDOM:
            other = self._score(self.inputs(255 - picture, PROBES[0]), texts, shared=False)
            if torch.equal(plain, torch.cat(other)):
                raise UserError(
                    "the model says the same of two different pictures",
                    where=f"vlms, model {self._config.model}",
                    expected="an image that reaches the model",
                    fix="check its processor and chat template",
                )
        prompts = [self.inputs(picture, question) for question in PROBES]
        alone, together = (partial(self._first_probabilities, prompts, shared) for shared in (False, True))
        return (
            self._agrees(lambda: torch.cat(self._score(inputs, texts, shared=True)), plain),
            self._agrees(together, alone()),
        )

    def _first_probabilities(self, prompts: Sequence[dict[str, Tensor]], shared: bool) -> Tensor:
        return torch.stack(self._first_logits(prompts, shared)).log_softmax(-1)

    def _agrees(self, shared: Callable[[], Tensor], plain: Tensor) -> bool:
        try:
            return bool((shared() - plain).abs().mean() < TOLERANCE[self._config.precision])
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            # A cache that cannot be copied, or does not grow by several tokens at once.
            return False
