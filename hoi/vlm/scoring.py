"""Confidences in [0, 1] from what a vision language model says of an image's candidates.

Three ways: likelihoods of the candidates' phrases, normalised over those of one object; probabilities of yes; phrases
found in free text ("a man riding a horse and holding it" says ride horse and hold horse). An interaction that was not
asked is 0 and masked out.

Source: the summed likelihood of each candidate phrase, one question per detected object class, is DA-HOI's (ICLR 2026).
The mean over tokens, the other groups, the prior and the product for `no_interaction` are ours, for comparison.

Shapes: K interactions, O object classes, n candidates of one image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from hoi.prompts import spaced, verb_ing
from hoi.vlm import Likelihoods
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, PERSON, Vocabulary

NoInteraction = Literal["skip", "asked", "product"]
Rows = Int64[np.ndarray, " n"]  # the candidates' interactions

PERSON_WORDS = (
    *("person", "people", "persons", "man", "men", "woman", "women", "kid", "kids", "child", "children"),
    *("boy", "boys", "girl", "girls", "lady", "ladies", "guy", "guys", "someone", "somebody", "rider", "player"),
)
"""Who begins a new clause."""
PRONOUNS = ("it", "them")


@dataclass(frozen=True)
class Confidences:
    """Scores in [0, 1] of one image, or of one pair's crop, exactly 0 where not asked."""

    scores: Float32[np.ndarray, " K"]
    asked: Bool[np.ndarray, " K"]

    def __post_init__(self) -> None:
        if (self.scores[~self.asked] != 0).any() or not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError("Confidences: a score is outside [0, 1], or not 0 where nothing was asked")


def candidate_rows(vocabulary: Vocabulary, present: Bool[np.ndarray, " O"], with_no_interaction: bool = False) -> Rows:
    """Return the interactions, ascending, that are asked of the object classes detected in an image or pair."""
    asked = vocabulary.object_mask[present].any(axis=0)
    return np.flatnonzero(asked if with_no_interaction else asked & ~vocabulary.is_no_interaction)


def confidences_by_likelihood(
    likelihoods: Likelihoods,
    rows: Rows,
    vocabulary: Vocabulary,
    *,
    length: Literal["sum", "mean"],
    temperature: float = 1.0,
    group: Literal["object", "all", "none"] = "object",
    blank: Likelihoods | None = None,
    prior_weight: float = 0.0,
    no_interaction: NoInteraction = "skip",
) -> Confidences:
    """Return confidences by the likelihoods of the candidates' phrases.

    With x the log-probability, summed or as the mean over tokens, less `prior_weight` times the same of a blank image:
    `object` gives softmax(x / temperature) over the candidates of one object; `all` the same over all candidates of the
    image; `none` gives exp(x / temperature), the likelihood itself, which is small for long texts.
    """

    def log_probability(of: Likelihoods) -> np.ndarray:
        total = of.log_likelihood.astype(np.float64)
        return total if length == "sum" else total / np.maximum(of.num_tokens, 1)

    x = log_probability(likelihoods)
    if prior_weight:
        if blank is None:
            raise ValueError("a prior weight needs the likelihoods of a blank image")
        x = x - prior_weight * log_probability(blank)
    x = x / temperature
    if group == "none":
        # A log-probability may round to above 0, and a prior may take off more than there is.
        scores = np.exp(np.minimum(x, 0.0))
    else:
        groups, scores = vocabulary.object_of[rows] if group == "object" else np.zeros(len(rows)), np.zeros(len(rows))
        for each in np.unique(groups):
            members = groups == each
            weights = np.exp(x[members] - x[members].max())
            scores[members] = weights / weights.sum()
    return confidences_by_yes(scores, rows, vocabulary, no_interaction=no_interaction)


def confidences_by_text(
    text: str, rows: Rows, vocabulary: Vocabulary, lexicon: Lexicon, *, no_interaction: NoInteraction = "skip"
) -> Confidences:
    """Return 1 for the candidates that a caption or an answer says, 0 for others."""
    said = said_interactions(text, lexicon)
    scores = np.array([vocabulary.interactions[row] in said for row in rows], np.float64)
    return confidences_by_yes(scores, rows, vocabulary, no_interaction=no_interaction)


def confidences_by_yes(
    shares: Float[np.ndarray, " n"], rows: Rows, vocabulary: Vocabulary, *, no_interaction: NoInteraction = "skip"
) -> Confidences:
    """Return the shares of yes of the candidates, p(yes) / (p(yes) + p(no)) say, as confidences.

    Only candidates have a score, but with `product` also each `no_interaction` that is none: the product of (1 - score)
    over the asked verbs of its object, if there are any.
    """
    scores, asked = np.zeros(len(vocabulary), np.float64), np.zeros(len(vocabulary), bool)
    scores[rows], asked[rows] = np.clip(np.asarray(shares, np.float64), 0.0, 1.0), True
    if no_interaction == "product":
        verbs = asked & ~vocabulary.is_no_interaction
        for row in np.flatnonzero(vocabulary.is_no_interaction & ~asked):
            others = verbs & (vocabulary.object_of == vocabulary.object_of[row])
            if others.any():
                scores[row], asked[row] = np.prod(1 - scores[others]), True
    return Confidences(scores.astype(np.float32), asked)


@dataclass(frozen=True)
class Lexicon:
    """Names by their words, which are lower-case with single spaces between them."""

    verbs: Mapping[str, str]
    objects: Mapping[str, str]  # a person is none
    phrases: Mapping[str, tuple[tuple[str, str], ...]]  # interactions that a whole phrase says, wherever it is


def vocabulary_lexicon(vocabulary: Vocabulary, synonyms: Mapping[str, Iterable[str]] | None = None) -> Lexicon:
    """Return the words that name a vocabulary's verbs and objects.

    Verbs are found as "ride", "rides" and "riding", objects in singular and plural, people by everyday words; phrases
    and synonyms, of the vocabulary or by name of a verb or object, as they are. `no_interaction` is never said.
    """
    verbs: dict[str, str] = {}
    objects: dict[str, str] = {}
    for verb in vocabulary.verbs:
        if verb != NO_INTERACTION:
            first, *rest = spaced(verb.lower()).split(" ")
            forms = (first, _with_s(first, "s|x|z|ch|sh|o"), verb_ing(first))
            verbs |= {" ".join([form, *rest]): verb for form in forms}
    for name in vocabulary.objects:
        if name not in (PERSON, NO_OBJECT):
            noun = spaced(name.lower())
            objects |= {noun: name, _with_s(noun, "s|x|z|ch|sh"): name}
    for name, words in (synonyms or {}).items():
        known = verbs if name in vocabulary.verbs else objects if name in vocabulary.objects else {}
        known |= {word.lower(): name for word in words}
    phrases: dict[str, tuple[tuple[str, str], ...]] = {}
    synonyms_of = vocabulary.synonyms or ((),) * len(vocabulary)
    for pair, phrase, others in zip(vocabulary.interactions, vocabulary.phrases, synonyms_of, strict=True):
        for text in (*((phrase,) if phrase else ()), *others):
            words = " ".join(_words(text))
            phrases[words] = (*phrases.get(words, ()), pair)
    return Lexicon(verbs, objects, phrases)


def said_interactions(text: str, lexicon: Lexicon) -> frozenset[tuple[str, str]]:
    """Return the (verb, object) pairs that a text says, in the vocabulary or not.

    A verb belongs to the next object of its clause, with no other person in between; failing that ("holding the
    reins"), or if "it" follows, to the object before it. Negation and passives are not understood.
    """
    words = _words(text)
    joined = f" {' '.join(words)} "
    said = {pair for phrase, pairs in lexicon.phrases.items() if f" {phrase} " in joined for pair in pairs}
    waiting: list[str] = []
    last: str | None = None
    for kind, name in (*_mentions(words, lexicon), ("end", "")):
        if kind == "verb":
            waiting.append(name)
            continue
        target = name if kind == "object" else last
        if target is not None:
            said.update((verb, target) for verb in waiting)
        waiting = []
        last = target if kind in ("object", "pronoun") else None
    return frozenset(said)


def named_objects(text: str, lexicon: Lexicon) -> tuple[str, ...]:
    """Return the objects that a text names, in order, each once."""
    return tuple(dict.fromkeys(name for kind, name in _mentions(_words(text), lexicon) if kind == "object"))


def _mentions(words: list[str], lexicon: Lexicon) -> list[tuple[str, str]]:
    """Return (kind, name) of what the words mention, in order; of two that begin at one word, the longer."""
    tables: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("verb", lexicon.verbs),
        ("object", lexicon.objects),
        ("person", dict.fromkeys(PERSON_WORDS, PERSON)),
        ("pronoun", dict.fromkeys(PRONOUNS, "")),
        ("end", {".": ""}),
    )
    longest = max((key.count(" ") + 1 for _, table in tables for key in table), default=1)
    mentions, start = [], 0
    while start < len(words):
        for size in range(min(longest, len(words) - start), 0, -1):
            run = " ".join(words[start : start + size])
            named = [(kind, table[run]) for kind, table in tables if run in table]
            if named:
                mentions.append(named[0])
                break
        start += size if named else 1
    return mentions


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9'-]+|\.", re.sub(r"[.;!?\n]+", " . ", text.lower().replace("_", " ")))


def _with_s(word: str, before_es: str) -> str:
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(f"({before_es})$", word) else "s")
