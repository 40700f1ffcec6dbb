"""Yes-no questions that a caption answers, made from the captions' own words and nothing else.

"a man riding a horse" answers "is a person riding a horse?" with yes. Captions leave things out: whatever verb of the
same object one does not say counts as no. Over scenes of another seed a quarter of what a whole image shows is answered
with no that way, 6 % of all noes; what a model learns is how likely a caption is to say it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hoi.prompts import a_object, verb_ing
from hoi.vllm.phrases import Lexicon, named_objects, said_interactions, vocabulary_lexicon
from hoi.vocabulary import Vocabulary
from hoi.world.captions import DOING, GRIPS, NOUNS
from hoi.world.vocabulary import INTERACTIONS, NO_INTERACTION, OBJECTS, VERBS

QUESTION = "is a person {verb_ing} {a_object}?"
YES, NO = "yes", "no"


@dataclass(frozen=True)
class CaptionQuestions:
    """What may be asked of the image of one caption; rows of `QuestionTable.texts`.

    Args:
        yes: Questions that the caption says.
        no: Questions on an object that it names, with a verb that other captions say of this object.
    """

    yes: tuple[int, ...]
    no: tuple[int, ...]


@dataclass(frozen=True)
class QuestionTable:
    """All questions that a collection of captions gives rise to, and those of each caption."""

    texts: tuple[str, ...]
    of_caption: tuple[CaptionQuestions, ...]


def world_lexicon() -> Lexicon:
    """The words of the world's captions for its verbs and objects."""
    synonyms = {verb: list(words) for verb, words in DOING.items() if verb != NO_INTERACTION}
    synonyms["hold"] += [words for grips in GRIPS.values() for words in grips]
    for name, nouns in NOUNS.items():
        synonyms[name] = list(nouns)
    return vocabulary_lexicon(Vocabulary(OBJECTS, VERBS, INTERACTIONS), synonyms)


def caption_questions(captions: Sequence[str]) -> QuestionTable:
    """Captions to the questions that each answers with yes or with no."""
    lexicon = world_lexicon()
    said = [said_interactions(text, lexicon) for text in captions]
    verbs_of: dict[str, set[str]] = defaultdict(set)
    for pairs in said:
        for verb, name in pairs:
            verbs_of[name].add(verb)
    asked = [(verb, name) for name in sorted(verbs_of) for verb in sorted(verbs_of[name])]
    row_of = {pair: row for row, pair in enumerate(asked)}
    of_caption = []
    for text, pairs in zip(captions, said, strict=True):
        on_objects = {(verb, name) for name in named_objects(text, lexicon) for verb in verbs_of[name]}
        yes, no = sorted(row_of[pair] for pair in pairs), sorted(row_of[pair] for pair in on_objects - pairs)
        of_caption.append(CaptionQuestions(tuple(yes), tuple(no)))
    texts = tuple(QUESTION.format(verb_ing=verb_ing(verb), a_object=a_object(name)) for verb, name in asked)
    return QuestionTable(texts, tuple(of_caption))
