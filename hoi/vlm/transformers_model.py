"""Any image-text-to-text model of `transformers` as a `VisionLanguageModel`.

Texts of one image are scored after a prefix that is read once: image and question for candidates, the image for
questions. Where an architecture cannot share it, each text has a pass of its own.

Shapes: n candidates or questions of one image, L tokens, V words of the vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from hoi.config import VlmConfig
from hoi.errors import UserError
from hoi.provenance import library_versions
from hoi.vlm import Likelihoods
from hoi.vlm.transformers_loading import Prompter, load_model, memory_explained, quiet
from hoi.weights import RANDOM, weights_sha256

TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}
"""How far a shared prefix may move a token's log-probability on average; [choice], wide in low precisions because
logits of 16 to 32 are rounded to 0.125 in bf16 and 0.016 in fp16."""
PROBES = ("riding a horse", "a person who is holding an umbrella in the rain", "no")
PROBE_PX = 160

Inputs = Mapping[str, Tensor]
"""What a processor makes of one image and one text: `input_ids` [1, tokens], pixels, masks."""


class TransformersModel:
    """Reads images one after another, and the candidates of an image together.

    Raises UserError: it cannot be loaded (`load_model`), overflows, or says the same of two pictures.
    """

    def __init__(self, config: VlmConfig, device: str) -> None:
        model, processor = load_model(config)
        self._config, self._device, self._where = config, torch.device(device), f"vlms, model {config.model}"
        self._sha256 = weights_sha256(model)
        with memory_explained(config.model):
            self.model = model.to(self._device)
        self._prompter = Prompter(processor, self._where)
        tokenizer = processor.tokenizer
        ends = self.model.generation_config.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._ends: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
        # A chat model has several: the end of its turn, which the tokenizer names, and the end of all text.
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
            texts.append(self._prompter.written(written[0, inputs["input_ids"].shape[1] :].tolist()))
        return texts

    @torch.inference_mode()
    def log_likelihoods(
        self, images: Sequence[np.ndarray], candidates: Sequence[Sequence[str]], question: str | None = None
    ) -> list[Likelihoods]:
        """Score the candidates, each with the model's end of turn; no question means the caption's."""
        question = self._config.caption_question if question is None else question
        result = []
        for image, texts in zip(images, candidates, strict=True):
            if not texts:
                result.append(Likelihoods(np.zeros(0, np.float32), np.zeros(0, np.int32)))
                continue
            inputs = self.inputs(image, question)
            tokens = self.tokens(inputs, texts)
            sums = torch.stack([each.sum() for each in self._score(inputs, tokens, self._shares_image)])
            result.append(Likelihoods(sums.cpu().numpy(), np.array([len(each) for each in tokens], np.int32)))
        return result

    @torch.inference_mode()
    def yes_probabilities(
        self, images: Sequence[np.ndarray], questions: Sequence[Sequence[str]]
    ) -> list[Float32[np.ndarray, " n"]]:
        """Compare yes and no, in every spelling that is a single token, as first token of the answer."""
        yes, no = self._prompter.single_tokens("yes"), self._prompter.single_tokens("no")
        result = []
        for image, texts in zip(images, questions, strict=True):
            logits = self._first_logits([self.inputs(image, text) for text in texts], self._shares_question)
            result.append(np.array([first_token_share(each, yes, no) for each in logits], np.float32))
        return result

    def provenance(self) -> dict[str, Any]:
        architecture = self.model.config.to_dict()
        # Where it lies, what wrote it and in which type it was stored change nothing.
        for name in ("_name_or_path", "transformers_version", "dtype"):
            architecture.pop(name, None)
        written = json.dumps(architecture, sort_keys=True, default=str)
        return {
            "name": "transformers",
            "architecture": self.model.config.model_type,
            "architecture_sha256": hashlib.sha256(written.encode()).hexdigest(),
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

    def inputs(self, image: np.ndarray, question: str) -> dict[str, Tensor]:
        """Return the inputs of `model` for an image, uint8 [H, W, 3], and a question, as one row on its device."""
        return {
            name: value.to(self._device, self.model.dtype if value.is_floating_point() else None)
            for name, value in self._prompter.inputs(image, question).items()
        }

    def tokens(self, inputs: Inputs, texts: Sequence[str]) -> list[list[int]]:
        """Return candidates' tokens after `inputs`, with the end of the model's turn."""
        return [[*tokens, *self._end] for tokens in self._prompter.tokens(inputs["input_ids"], texts)]

    def _score(self, inputs: Inputs, texts: Sequence[Sequence[int]], shared: bool) -> list[Tensor]:
        """Return the log-probabilities of the tokens of each text after an image and a question."""
        with memory_explained(self._config.model):
            if not shared:
                return [plain_likelihoods(self.model, inputs, text) for text in texts]
            return likelihoods(self.model, run_prefix(self.model, inputs), texts, self._config.batch_size)

    def _first_logits(self, prompts: Sequence[Inputs], shared: bool) -> list[Tensor]:
        """Return the logits of what follows each prompt; their common beginning is read once if `shared`."""
        texts = [prompt["input_ids"][0].tolist() for prompt in prompts]
        length = common_length(texts) if shared and len(texts) > 1 else 0
        config = self.model.config
        image = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        with memory_explained(self._config.model):
            # All tokens of the image have to be in the common beginning.
            if length == 0 or image not in texts[0][:length] or image in texts[0][length:]:
                return [run_prefix(self.model, prompt).logits[0] for prompt in prompts]
            prefix, last = run_prefix(self.model, cut(prompts[0], length)), []
            for start in range(0, len(texts), self._config.batch_size):
                chunk = [text[length:] for text in texts[start : start + self._config.batch_size]]
                logits = continue_prefix(self.model, prefix, chunk)
                last += [logits[row, len(text) - 1].float() for row, text in enumerate(chunk)]
            return last

    @torch.inference_mode()
    def _probe(self) -> tuple[bool, bool]:
        """Return whether candidates may share image and question, and whether questions may share the image.

        Not every architecture can: its cache may be of another kind, or the tokens of a prompt all see each other, so
        that an image read before its question is another one. Decided by the scores of a drawn picture's texts.
        """
        ramp = np.linspace(0, 255, PROBE_PX, dtype=np.uint8)
        picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1)
        inputs = self.inputs(picture, PROBES[0])
        texts = self.tokens(inputs, PROBES)
        plain = torch.cat(self._score(inputs, texts, shared=False))
        if not plain.isfinite().all():
            problem = f"the model overflows in {self._config.precision}"
            raise UserError(problem, where=self._where, fix="set its precision to bf16 or fp32")
        # Some architectures begin with a projection of zero, so random weights may well be blind.
        if self._config.pretrained != RANDOM:
            other = self._score(self.inputs(255 - picture, PROBES[0]), texts, shared=False)
            if torch.equal(plain, torch.cat(other)):
                problem, fix = "the model says the same of two different pictures", "check its processor and template"
                raise UserError(problem, where=self._where, fix=fix)
        prompts = [self.inputs(picture, question) for question in PROBES]

        def of_questions(shared: bool) -> Tensor:
            return torch.stack(self._first_logits(prompts, shared)).log_softmax(-1)

        of_candidates = self._agrees(lambda: torch.cat(self._score(inputs, texts, shared=True)), plain)
        return of_candidates, self._agrees(lambda: of_questions(shared=True), of_questions(shared=False))

    def _agrees(self, shared: Callable[[], Tensor], plain: Tensor) -> bool:
        try:
            return bool((shared() - plain).abs().mean() < TOLERANCE[self._config.precision])
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            # A cache that cannot be copied, or does not grow by several tokens at once.
            return False


@dataclass(frozen=True)
class Prefix:
    """A model's state after an image and the beginning of a text: one row's keys and values, next token's logits."""

    cache: Any
    logits: Float32[Tensor, "1 V"]


def run_prefix(model: Any, inputs: Inputs) -> Prefix:
    result = model(**inputs, use_cache=True, **_last_logits(model, 1))
    return Prefix(result.past_key_values, result.logits[:, -1].float())


def continue_prefix(model: Any, prefix: Prefix, texts: Sequence[Sequence[int]]) -> Float[Tensor, "n L V"]:
    """Return the logits after each token of texts of at least one; `prefix` is of the last image that the model saw."""
    device = prefix.logits.device
    # A copy, since the model writes into it; then every row of it is the prefix's one row.
    cache = copy.deepcopy(prefix.cache)
    cache.reorder_cache(torch.zeros(len(texts), dtype=torch.long, device=device))
    longest = max(map(len, texts))
    tokens = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts], device=device)
    return model(input_ids=tokens, past_key_values=cache, use_cache=True).logits


def likelihoods(
    model: Any, prefix: Prefix, texts: Sequence[Sequence[int]], batch_size: int
) -> list[Float32[Tensor, " L"]]:
    """Return the log-probability of each token of each text, `batch_size` texts at a time."""
    result = []
    for start in range(0, len(texts), batch_size):
        chunk = texts[start : start + batch_size]
        # What follows a text's last token is not asked for.
        begun = [text[:-1] or text for text in chunk]
        logits = None if max(map(len, chunk)) == 1 else continue_prefix(model, prefix, begun)
        for row, text in enumerate(chunk):
            rest = [] if logits is None else [logits[row, : len(text) - 1].float()]
            result.append(_log_probabilities(torch.cat([prefix.logits, *rest]), text))
    return result


def plain_likelihoods(model: Any, inputs: Inputs, text: Sequence[int]) -> Float32[Tensor, " L"]:
    """Return the log-probability of each token of one text, by a whole pass over prefix and text."""
    extended: dict[str, Any] = {name: value for name, value in inputs.items() if name != "input_ids"}
    # Masks and token types grow as in the model's own `generate`.
    for _ in text:
        extended = model._update_model_kwargs_for_generation({}, extended, is_encoder_decoder=False)
    ids = inputs["input_ids"]
    extended["input_ids"] = torch.cat([ids, torch.tensor([text], dtype=ids.dtype, device=ids.device)], 1)
    result = model(**extended, use_cache=False, **_last_logits(model, len(text) + 1))
    return _log_probabilities(result.logits[0, -len(text) - 1 : -1].float(), text)


def cut(inputs: Inputs, length: int) -> dict[str, Tensor]:
    """Return the first tokens of a prefix, with all of its pixels."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if value.shape[:2] == shape and not name.startswith("pixel") else value
        for name, value in inputs.items()
    }


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with, at most one less than the shortest has."""
    shortest = min(map(len, texts))
    different = (place for place in range(shortest) if len({text[place] for text in texts}) > 1)
    return min(next(different, shortest), shortest - 1)


def first_token_share(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> float:
    """Return p(yes) / (p(yes) + p(no)) from the logits [V] of an answer's first token."""
    both = torch.stack([logits[list(tokens)].logsumexp(0) for tokens in (yes, no)])
    return both.softmax(0)[0].item()


def _log_probabilities(logits: Float32[Tensor, "L V"], text: Sequence[int]) -> Float32[Tensor, " L"]:
    chosen = torch.tensor(text, device=logits.device)
    return logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]


def _last_logits(model: Any, number: int) -> dict[str, int]:
    """Ask for the last logits only, if the model allows it, instead of those of every token of the image."""
    return {"logits_to_keep": number} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
