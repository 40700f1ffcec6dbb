"""Prompts and candidate texts for models of `transformers`, and their likelihoods after a shared prefix.

A candidate's tokens are those that the tokenizer adds to the end of the prompt when both are written as one text, with
a space between them unless the prompt ends in white space or in a special token. Where the two would melt into one
token, the candidate is tokenized alone.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from hoi.errors import UserError

Inputs = Mapping[str, Tensor]
"""What a processor makes of one image and one text: `input_ids` [1, tokens], pixels, masks."""


@dataclass(frozen=True)
class Prefix:
    """A model's state after an image and the beginning of a text: one row's keys and values, next token's logits."""

    cache: Any
    logits: Float32[Tensor, "1 V"]


def run_prefix(model: Any, inputs: Inputs) -> Prefix:
    result = model(**inputs, use_cache=True, **_last_logits(model, 1))
    return Prefix(result.past_key_values, result.logits[:, -1].float())


def continue_prefix(model: Any, prefix: Prefix, texts: Sequence[Sequence[int]]) -> Float[Tensor, "n L V"]:
    """Return the logits after each token of several texts; rows beyond a text's end mean nothing.

    Args:
        prefix: Of the last image that the model saw.
        texts: Token ids, at least one each.
    """
    device = prefix.logits.device
    # A copy, since the model writes into it; then every row of it is the prefix's one row.
    cache = copy.deepcopy(prefix.cache)
    cache.reorder_cache(torch.zeros(len(texts), dtype=torch.long, device=device))
    longest = max(map(len, texts))
    tokens = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts], device=device)
    return model(input_ids=tokens, past_key_values=cache, use_cache=True).logits


def likelihoods(
    model: Any, prefix: Prefix, texts: Sequence[Sequence[int]], batch_size: int
) -> list[Float32[Tensor, " tokens"]]:
    """Return the log-probability of each token of each text, `batch_size` texts at a time."""
    found = []
    for start in range(0, len(texts), batch_size):
        chunk = texts[start : start + batch_size]
        # What follows a text's last token is not asked for.
        begun = [text[:-1] or text for text in chunk]
        logits = None if max(map(len, chunk)) == 1 else continue_prefix(model, prefix, begun)
        for row, text in enumerate(chunk):
            rest = [] if logits is None else [logits[row, : len(text) - 1].float()]
            found.append(_log_probabilities(torch.cat([prefix.logits, *rest]), text))
    return found


def last_logits(
    model: Any, prefix: Prefix, texts: Sequence[Sequence[int]], batch_size: int
) -> list[Float32[Tensor, " V"]]:
    """Return the logits of what follows each text."""
    found = []
    for start in range(0, len(texts), batch_size):
        chunk = texts[start : start + batch_size]
        logits = continue_prefix(model, prefix, chunk)
        found += [logits[row, len(text) - 1].float() for row, text in enumerate(chunk)]
    return found


def plain_likelihoods(model: Any, inputs: Inputs, text: Sequence[int]) -> Float32[Tensor, " tokens"]:
    """Return the log-probability of each token of one text, by a whole pass over prefix and text."""
    result = model(**_extended(model, inputs, text), use_cache=False, **_last_logits(model, len(text) + 1))
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
    same = (place for place in range(shortest) if len({text[place] for text in texts}) > 1)
    return min(next(same, shortest), shortest - 1)


def _log_probabilities(logits: Float32[Tensor, "tokens V"], text: Sequence[int]) -> Float32[Tensor, " tokens"]:
    chosen = torch.tensor(text, device=logits.device)
    return logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]


def _extended(model: Any, inputs: Inputs, text: Sequence[int]) -> dict[str, Any]:
    """Return the inputs of prefix and text together: masks and token types grow as in the model's own `generate`."""
    grown = {name: value for name, value in inputs.items() if name != "input_ids"}
    for _ in text:
        grown = model._update_model_kwargs_for_generation({}, grown, is_encoder_decoder=False)
    ids = inputs["input_ids"]
    return {**grown, "input_ids": torch.cat([ids, torch.tensor([text], dtype=ids.dtype, device=ids.device)], 1)}


def _last_logits(model: Any, number: int) -> dict[str, int]:
    """Ask for the last logits only, if the model allows it, instead of those of every token of the image."""
    return {"logits_to_keep": number} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


NOT_FOR_MODELS = ("labels",)
"""What some processors give for training alone."""
SPELLINGS = ("{}", " {}")
"""How an answer may begin."""


class Prompter:
    """Questions and texts in the form that one model was trained on.

    Args:
        processor: Of `transformers`, with image processor and tokenizer.
        where: What messages call the model.
    """

    def __init__(self, processor: Any, where: str) -> None:
        self._processor, self._where = processor, where
        self._tokenizer = processor.tokenizer
        template = getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        self._template: str | None = template.get("default") if isinstance(template, dict) else template
        self._image_token: str = getattr(processor, "image_token", None) or ""

    def text(self, question: str) -> str:
        """Return the prompt around a question: the chat template's, or image and question if the model has none.

        A question that names the model's image token is a whole prompt already.

        Raises:
            UserError: the chat template fails, or has no place for an image.
        """
        if self._image_token and self._image_token in question:
            return question
        if self._template is None:
            return self._image_token + question
        asked = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        try:
            text: str = self._processor.apply_chat_template(
                [{"role": "user", "content": asked}],
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except (TemplateError, TypeError) as error:
            raise UserError("the chat template does not work", where=self._where, got=str(error)[:200]) from None
        if self._image_token not in text:
            raise UserError(
                "the chat template has no place for an image",
                where=self._where,
                expected=f"{self._image_token} in it",
                got=text[:120],
                fix=f"write the whole prompt, {self._image_token} included, as the question",
            )
        return text

    def inputs(self, image: np.ndarray, question: str) -> dict[str, Tensor]:
        """Return what the model reads of an image, uint8 [H, W, 3], and a question, as one row."""
        text, begin = self.text(question), self._tokenizer.bos_token
        # A template that writes the beginning of the text itself must not get a second one.
        special = {"add_special_tokens": False} if begin and text.startswith(begin) else {}
        # As a Pillow image no axis can be mistaken for the colours.
        try:
            given = self._processor(images=[Image.fromarray(image)], text=[text], return_tensors="pt", **special)
        except ValueError as error:
            height, width = image.shape[:2]
            raise UserError(
                "the model's processor refuses an image and its question",
                where=self._where,
                got=f"{width} x {height} px, '{text[:80]}': {error}",
                fix="check the question, and whether the image is extremely narrow",
            ) from None
        return {name: value for name, value in given.items() if name not in NOT_FOR_MODELS}

    def tokens(self, prompt: Tensor, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of candidate texts after a prompt, int64 [1, tokens]; a UserError if there are none."""
        ids = prompt[0].tolist()
        last = max((place for place, token in enumerate(ids) if token in self._special), default=-1)
        end = ids[last + 1 :]
        written = self._tokenizer.decode(end)
        gap = "" if not end or written[-1:].isspace() else " "
        # The end of the prompt as the tokeniser would write it again; or else its last character, which stands for it.
        before = written if self._encode(written) == end else written[-1:]
        found = [self._after(before, gap + text) for text in texts]
        if not all(found):
            raise UserError("a candidate is empty", where=self._where, expected="at least one token of text")
        return found

    def written(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def answers(self, word: str) -> list[int]:
        """Return the tokens that are a word in any case, with or without a space before it.

        Raises:
            UserError: it is never a single token, so that the first token of an answer does not tell.
        """
        forms = (word.lower(), word.capitalize(), word.upper())
        found = {tuple(self._encode(spelling.format(form))) for form in forms for spelling in SPELLINGS}
        single = sorted(tokens[0] for tokens in found if len(tokens) == 1)
        if not single:
            raise UserError(
                f"the tokeniser has no token for '{word}'", where=self._where, fix="score by sum or mean instead"
            )
        return single

    def provenance(self) -> dict[str, Any]:
        settings = json.dumps(self._processor.image_processor.to_dict(), sort_keys=True, default=str)
        return {
            "chat_template_sha256": None if self._template is None else _sha256(self._template),
            "image_processor_sha256": _sha256(settings),
            "tokens_sha256": _sha256(repr([self._encode(text) for text in ("Yes no", "riding a horse", "\n ?")])),
        }

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.added_tokens_decoder
        return frozenset(self._tokenizer.all_special_ids) | {token for token, text in added.items() if text.special}

    def _after(self, before: str, text: str) -> list[int]:
        """Return the tokens that a text adds to another, or its own if the two melt together."""
        start, whole = self._encode(before), self._encode(before + text)
        return whole[len(start) :] if whole[: len(start)] == start else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def first_token_share(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> float:
    """Return p(yes) / (p(yes) + p(no)) from the logits [V] of an answer's first token."""
    both = torch.stack([logits[list(tokens)].logsumexp(0) for tokens in (yes, no)])
    return both.softmax(0)[0].item()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
