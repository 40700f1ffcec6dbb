"""One pass over an image and its question, and any number of texts that go on from there.

A decoder's state after a prefix is its cache of keys and values. It is copied for every text; texts are padded on the
right, where causal attention keeps padding from being seen, so that positions are those of a text alone and no mask is
needed. Models keep what they know of an image's place in the prefix (M-RoPE's offset) until the next prefix is run, so
texts have to follow their own prefix. `plain_*` are the same without any of this: one whole pass per text.

Letters: n texts, L tokens of the longest of them, V words of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

Inputs = Mapping[str, Tensor]
"""What a processor makes of one image and one text: `input_ids` [1, tokens], pixels, masks."""


@dataclass(frozen=True)
class Prefix:
    """A model's state after an image and the beginning of a text.

    Args:
        cache: Keys and values of one row, as the model returned them.
        logits: Of the next token, [1, V].
    """

    cache: Any
    logits: Float32[Tensor, "1 V"]


def run_prefix(model: Any, inputs: Inputs) -> Prefix:
    """Image and text to the state after them."""
    result = model(**inputs, use_cache=True, **_last_logits(model, 1))
    return Prefix(result.past_key_values, result.logits[:, -1].float())


def continue_prefix(model: Any, prefix: Prefix, texts: Sequence[Sequence[int]]) -> Float[Tensor, "n L V"]:
    """Texts to the logits after each of their tokens; rows beyond a text's end mean nothing.

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
    """Texts to the log-probability of each of their tokens, `batch_size` texts at a time."""
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
    """Texts to the logits of what follows each of them."""
    found = []
    for start in range(0, len(texts), batch_size):
        chunk = texts[start : start + batch_size]
        logits = continue_prefix(model, prefix, chunk)
        found += [logits[row, len(text) - 1].float() for row, text in enumerate(chunk)]
    return found


def plain_likelihoods(model: Any, inputs: Inputs, text: Sequence[int]) -> Float32[Tensor, " tokens"]:
    """The log-probability of each token of one text after the prefix, by a whole pass over both."""
    result = model(**_extended(model, inputs, text), use_cache=False, **_last_logits(model, len(text) + 1))
    return _log_probabilities(result.logits[0, -len(text) - 1 : -1].float(), text)


def cut(inputs: Inputs, length: int) -> dict[str, Tensor]:
    """A prefix to its first tokens; pixels stay."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if value.shape[:2] == shape and not name.startswith("pixel") else value
        for name, value in inputs.items()
    }


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with, and at least one less than the shortest of them has."""
    shortest = min(map(len, texts))
    same = (place for place in range(shortest) if len({text[place] for text in texts}) > 1)
    return min(next(same, shortest), shortest - 1)


def _log_probabilities(logits: Float32[Tensor, "tokens V"], text: Sequence[int]) -> Float32[Tensor, " tokens"]:
    chosen = torch.tensor(text, device=logits.device)
    return logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]


def _extended(model: Any, inputs: Inputs, text: Sequence[int]) -> dict[str, Any]:
    """The inputs of prefix and text together: masks and token types grow as they do in the model's own `generate`."""
    grown = {name: value for name, value in inputs.items() if name != "input_ids"}
    for _ in text:
        grown = model._update_model_kwargs_for_generation({}, grown, is_encoder_decoder=False)
    ids = inputs["input_ids"]
    return {**grown, "input_ids": torch.cat([ids, torch.tensor([text], dtype=ids.dtype, device=ids.device)], 1)}


def _last_logits(model: Any, number: int) -> dict[str, int]:
    """Keeps a model from computing logits for every token of the image, where it can be kept from it."""
    return {"logits_to_keep": number} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
