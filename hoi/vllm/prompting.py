"""What a model of `transformers` is given to read: its chat template around image and question, and texts to score.

A candidate's tokens are those that the tokeniser adds to the end of the prompt when both are written as one text, with
a space between them unless the prompt ends in white space or in a special token. Where the two would melt into one
token, the candidate is tokenised alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from hoi.errors import UserError

NOT_FOR_MODELS = ("labels",)
"""What some processors give for training alone."""
SPELLINGS = ("{}", " {}")
"""How an answer may begin."""


class Prompter:
    """Questions and texts in the form that one model was trained on.

    Args:
        processor: Of `transformers`, with image processor and tokeniser.
        where: What messages call the model.
    """

    def __init__(self, processor: Any, where: str) -> None:
        self._processor, self._where = processor, where
        self._tokenizer = processor.tokenizer
        template = getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        self._template: str | None = template.get("default") if isinstance(template, dict) else template
        self._image_token: str = getattr(processor, "image_token", None) or ""

    def text(self, question: str) -> str:
        """A question to the prompt around it: the chat template's, or image and question where the model has none.

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
        """An image, uint8 [H, W, 3], and a question to what the model reads, as one row."""
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
        """Candidate texts to their tokens after a prompt.

        Args:
            prompt: Token ids, int64 [1, tokens], of image and question.

        Raises:
            UserError: a text has no token.
        """
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
        """Tokens that a model wrote to plain text."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def answers(self, word: str) -> list[int]:
        """A word to the tokens that are that word in any case and with or without a space before it.

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
        """Hashes of what decides the model's inputs."""
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
        """The tokens that a text adds to another, or its own where the two melt together."""
        start, whole = self._encode(before), self._encode(before + text)
        return whole[len(start) :] if whole[: len(start)] == start else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def first_token_share(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> float:
    """Logits [V] of an answer's first token to p(yes) / (p(yes) + p(no)); the other tokens cancel out."""
    both = torch.stack([logits[list(tokens)].logsumexp(0) for tokens in (yes, no)])
    return both.softmax(0)[0].item()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
