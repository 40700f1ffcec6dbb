"""Free text to the interactions that it says: "a man riding a horse and holding it" is ride horse and hold horse.

A verb belongs to the next object of its clause, with no other person in between; failing that ("holding the reins"), or
where "it" follows, to the object before it. Nothing is understood beyond that: negation and passives are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hoi.prompts import spaced, verb_ing
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, PERSON, Vocabulary

PERSON_WORDS = (
    *("person", "people", "persons", "man", "men", "woman", "women", "kid", "kids", "child", "children"),
    *("boy", "boys", "girl", "girls", "lady", "ladies", "guy", "guys", "someone", "somebody", "rider", "player"),
)
PRONOUNS = ("it", "them")


@dataclass(frozen=True)
class Lexicon:
    """Which words stand for which name; words are lower-case, single spaces between them.

    Args:
        verbs: Words to the name of a verb.
        objects: Words to the name of an object other than a person.
        people: Words for a person, who begins a new clause.
        phrases: Whole phrases to the interactions that they say, wherever they stand.
    """

    verbs: Mapping[str, str]
    objects: Mapping[str, str]
    people: frozenset[str]
    phrases: Mapping[str, tuple[tuple[str, str], ...]]


def vocabulary_lexicon(vocabulary: Vocabulary, synonyms: Mapping[str, Iterable[str]] | None = None) -> Lexicon:
    """A vocabulary to the words that name its verbs and objects.

    Verbs are found as "ride", "rides" and "riding", objects in singular and plural, people by everyday words, and the
    vocabulary's own phrases and their synonyms as they are.

    Args:
        vocabulary: Its `no_interaction` is never said.
        synonyms: Further words by the name of a verb or object, all forms of them that are to be found.
    """
    more = synonyms or {}
    verbs = {form: verb for verb in vocabulary.verbs if verb != NO_INTERACTION for form in _verb_forms(verb)}
    objects = {
        form: name for name in vocabulary.objects if name not in (PERSON, NO_OBJECT) for form in _noun_forms(name)
    }
    for name, words in more.items():
        for word in words:
            if name in vocabulary.verbs:
                verbs[word.lower()] = name
            elif name in vocabulary.objects:
                objects[word.lower()] = name
    phrases: dict[str, tuple[tuple[str, str], ...]] = {}
    further = vocabulary.synonyms or ((),) * len(vocabulary)
    for pair, phrase, others in zip(vocabulary.interactions, vocabulary.phrases, further, strict=True):
        for text in (*((phrase,) if phrase else ()), *others):
            words = " ".join(_words(text))
            phrases[words] = (*phrases.get(words, ()), pair)
    return Lexicon(verbs, objects, frozenset(PERSON_WORDS), phrases)


def said_interactions(text: str, lexicon: Lexicon) -> frozenset[tuple[str, str]]:
    """Text to its (verb, object) pairs, which need not be in any vocabulary."""
    words = _words(text)
    said: set[tuple[str, str]] = set()
    joined = f" {' '.join(words)} "
    for phrase, pairs in lexicon.phrases.items():
        if f" {phrase} " in joined:
            said.update(pairs)
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
    """Text to the objects that it names, in order, each once."""
    return tuple(dict.fromkeys(name for kind, name in _mentions(_words(text), lexicon) if kind == "object"))


def _mentions(words: list[str], lexicon: Lexicon) -> list[tuple[str, str]]:
    """(kind, name) of what the words mention, in order; of two that begin at one word, the longer."""
    tables: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("verb", lexicon.verbs),
        ("object", lexicon.objects),
        ("person", dict.fromkeys(lexicon.people, PERSON)),
        ("pronoun", dict.fromkeys(PRONOUNS, "")),
        ("end", {".": ""}),
    )
    longest = max((key.count(" ") + 1 for _, table in tables for key in table), default=1)
    found, at = [], 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            run = " ".join(words[at : at + size])
            hit = next(((kind, table[run]) for kind, table in tables if run in table), None)
            if hit is not None:
                found.append(hit)
                at += size
                break
        else:
            at += 1
    return found


def _words(text: str) -> list[str]:
    """Lower-case words, and "." for every mark that ends a sentence; commas are dropped."""
    return re.findall(r"[a-z0-9'-]+|\.", re.sub(r"[.;!?\n]+", " . ", text.lower().replace("_", " ")))


def _verb_forms(verb: str) -> tuple[str, ...]:
    first, *rest = spaced(verb.lower()).split(" ")
    third = first + ("es" if re.search("(s|x|z|ch|sh|o)$", first) else "s")
    if re.search("[^aeiou]y$", first):
        third = first[:-1] + "ies"
    return tuple(" ".join([form, *rest]) for form in (first, third, verb_ing(first)))


def _noun_forms(name: str) -> tuple[str, ...]:
    noun = spaced(name.lower())
    plural = noun + ("es" if re.search("(s|x|z|ch|sh)$", noun) else "s")
    if re.search("[^aeiou]y$", noun):
        plural = noun[:-1] + "ies"
    return (noun, plural)
