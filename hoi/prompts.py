"""Prompts of interactions: `ride horse` becomes "a photo of a person riding a horse"."""

from __future__ import annotations

import re
from string import Formatter

from hoi.errors import UserError
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, Vocabulary

FIELDS = {
    "prompts": ("verb_ing", "object", "a_object", "phrase"),
    "no_interaction_prompts": ("object", "a_object"),
}
"""Fields that templates of each key may use."""

_VOWELS = "aeiou"
_IRREGULAR = {"be": "being", "control": "controlling", "patrol": "patrolling", "panic": "panicking"}
# Verbs of several syllables that double their last letter.
_STRESSED_LAST = re.compile("admit|begin|commit|equip|forget|permit|prefer|refer|submit|unplug|unzip")
_PAIRS = {"glasses", "goggles", "pants", "pliers", "scissors", "shorts", "skis", "sunglasses", "trousers"}
_AN_DESPITE_CONSONANT = ("hour", "honest", "heir")
_A_DESPITE_VOWEL = ("uni", "use", "usb", "ute", "ufo", "eu", "one", "ukulele", "urin")


def spaced(name: str) -> str:
    """Return the words of a vocabulary name: "sports ball" for `sports_ball`."""
    return " ".join(name.replace("_", " ").split())


def verb_ing(verb: str) -> str:
    """Return the -ing form of a verb: "sitting on" for `sit_on` and `sitting_on`."""
    first, *rest = spaced(verb).split(" ")
    return " ".join([_ing(first), *rest])


def a_object(name: str) -> str:
    """Return the words of an object with an article: "an umbrella", "a sports ball", "a pair of skis"."""
    noun = spaced(name)
    if noun.split(" ")[-1].lower() in _PAIRS:
        return f"a pair of {noun}"
    start = noun.lower()
    vowel = start.startswith(_AN_DESPITE_CONSONANT) or (
        start.startswith(tuple(_VOWELS)) and not start.startswith(_A_DESPITE_VOWEL)
    )
    return f"{'an' if vowel else 'a'} {noun}"


def interaction_prompts(
    vocabulary: Vocabulary, templates: list[str], no_interaction_templates: list[str]
) -> tuple[tuple[str, ...], ...]:
    """Return the texts of every interaction: one per template, and again for each synonym.

    `no_interaction` has its own templates. A phrase of the vocabulary replaces `{phrase}`, or `{verb_ing} {a_object}`
    in a template without it. A verb without object has its -ing form as phrase.

    Raises UserError: a template uses an unknown field, or has no place for a phrase.
    """
    for key, group in (("prompts", templates), ("no_interaction_prompts", no_interaction_templates)):
        if not group:
            raise UserError("there is no prompt", where=f"teacher.{key}", expected="at least one template")
        for template in group:
            _check(template, key)
    texts = []
    synonyms = vocabulary.synonyms or ((),) * len(vocabulary)
    for (verb, object_name), phrase, others in zip(vocabulary.interactions, vocabulary.phrases, synonyms, strict=True):
        group = no_interaction_templates if verb == NO_INTERACTION and phrase is None else templates
        names = [_fill(template, verb, object_name, phrase) for template in group]
        synonym_texts = [_fill(template, verb, object_name, other) for other in others for template in templates]
        texts.append(tuple(names + synonym_texts))
    return tuple(texts)


def _fill(template: str, verb: str, object_name: str, phrase: str | None) -> str:
    if object_name == NO_OBJECT and phrase is None:
        phrase = verb_ing(verb)
    wording = f"{verb_ing(verb)} {a_object(object_name)}"
    if phrase is not None and "{phrase}" not in template:
        template, places = re.subn(r"\{verb_ing\} \{(a_)?object\}", "{phrase}", template)
        if not places:
            what, expected = f"the prompt has no place for the phrase '{phrase}'", "{phrase} or {verb_ing} {a_object}"
            raise UserError(what, where=f"teacher.prompts, '{template}'", expected=expected)
    values = {"verb_ing": verb_ing(verb), "object": spaced(object_name), "a_object": a_object(object_name)}
    return template.format(**values, phrase=wording if phrase is None else phrase)


def _check(template: str, key: str) -> None:
    where = f"teacher.{key}, '{template}'"
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError("a prompt is malformed", where=where, got=error) from None
    unknown = [name for name in fields if name not in FIELDS[key]]
    if unknown:
        expected, got = (", ".join(f"{{{name}}}" for name in names) for names in (FIELDS[key], unknown))
        raise UserError("a prompt asks for an unknown field", where=where, expected=expected, got=got)


def _ing(verb: str) -> str:
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if re.search(f"[{_VOWELS}y].*ing$", verb):
        return verb
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    # "qu" sounds like one consonant: "quit" is like "sit".
    sounds = verb.replace("qu", "qw")
    one_syllable = len(re.findall(f"[{_VOWELS}]+", sounds)) == 1
    closed = re.fullmatch(f"(?:.*[^{_VOWELS}])?[{_VOWELS}][^{_VOWELS}wxy]", sounds) is not None
    if closed and (one_syllable or _STRESSED_LAST.fullmatch(verb)):
        return verb + verb[-1] + "ing"
    return verb + "ing"
