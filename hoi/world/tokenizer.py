"""A small BPE vocabulary from captions, in the gzip file that open_clip's SimpleTokenizer reads.

CLIP's own vocabulary of 49,408 tokens would be most of a tiny model's weights.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode

BPE_FILE = "bpe_merges.txt.gz"
"""Beside the model's weights; the name that `tokenizer_kwargs.bpe_path` gives."""
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
"""How SimpleTokenizer cuts lower-case English into words, its two special tokens aside."""
NUM_BASE_TOKENS = 2 * 256 + 2
"""Every byte, inside and at the end of a word, and the start and end of a text."""

Pair = tuple[str, str]


def learn_merges(captions: Iterable[str], max_merges: int) -> list[Pair]:
    """Captions to the most frequent symbol pairs, in order of merging; ties go by the alphabet.

    Args:
        captions: Text as the tokenizer gets it.
        max_merges: At most so many; fewer once every word is a single token.
    """
    encoder = bytes_to_unicode()
    counts: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        for word in re.findall(WORD_PATTERN, caption.lower()):
            letters = [encoder[byte] for byte in word.encode()]
            counts[(*letters[:-1], letters[-1] + "</w>")] += 1
    merges: list[Pair] = []
    while len(merges) < max_merges:
        pairs: Counter[Pair] = Counter()
        for symbols, count in counts.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for symbols, count in counts.items():
            merged[_merge(symbols, best)] += count
        counts = merged
    return merges


def _merge(symbols: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    result: list[str] = []
    at = 0
    while at < len(symbols):
        if symbols[at : at + 2] == pair:
            result.append(pair[0] + pair[1])
            at += 2
        else:
            result.append(symbols[at])
            at += 1
    return tuple(result)


def write_merges(merges: Iterable[Pair], path: Path) -> None:
    """Writes the merges file; equal merges give equal bytes."""
    # No newline at the end: SimpleTokenizer would read an empty merge out of it.
    text = "\n".join(["#version: hoi-distill world", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def open_tokenizer(path: Path, context_length: int) -> SimpleTokenizer:
    """The tokenizer of a merges file, the same that `open_clip.get_tokenizer` gives for a model that names it."""
    return SimpleTokenizer(bpe_path=str(path), context_length=context_length)
