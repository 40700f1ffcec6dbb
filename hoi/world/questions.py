"""Yes-no questions that a caption answers, made from the captions' own words and nothing else.

"a man riding a horse" answers "is a person riding a horse?" with yes. Captions leave things out: whatever verb of the
same object one does not say counts as no. Over scenes of another seed a quarter of what a whole image shows is answered
with no that way, 6 % of all noes; what a model learns is how likely a caption is to say it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hoi.prompts import a_object, verb_ing
from hoi.vlm.phrases import (
    Lexicon,
    named_objects,
    said_interactions,
    vocabulary_lexicon,
)
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


IGNORED = -100
"""Label of a token that is not to be predicted: padding, and the words of a question."""


class Texts:
    """Captions and questions as tokens, and which of them belong to which image."""

    def __init__(self, captions: list[str], tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.captions = sorted(set(captions))
        rows = {text: row for row, text in enumerate(self.captions)}
        self.caption_of = torch.tensor([rows[text] for text in captions])
        self.table: QuestionTable = caption_questions(self.captions)
        self.tokens = tokenizer(self.captions)
        self.end = int(self.tokens.max())
        self.labels = labels_of(self.tokens, torch.ones(len(self.tokens), dtype=torch.long), self.end)
        questions = list(self.table.texts)
        # The start, too, is no answer.
        lengths = (tokenizer(questions) == self.end).long().argmax(1)
        answers = {}
        for word in (YES, NO):
            tokens = tokenizer([f"{question} {word}" for question in questions])
            answers[word] = tokens, labels_of(tokens, lengths, self.end)
        self.answers = answers

    def questions(self, batch: Tensor, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of images to the tokens and labels of `number` questions each, every second one answered by yes if any.

        An image whose caption leaves nothing to ask gets any question of another, whose labels are all ignored.
        """
        tokens, labels = [], []
        for caption in self.caption_of[batch].tolist():
            own = self.table.of_caption[caption]
            for turn in range(number):
                rows, word = (own.yes, YES) if own.yes and turn % 2 == 0 else (own.no, NO)
                pick = int(torch.randint(0, 1 << 30, (), generator=generator))
                row = rows[pick % len(rows)] if rows else 0
                tokens.append(self.answers[word][0][row])
                label = self.answers[word][1][row]
                labels.append(label if rows else torch.full_like(label, IGNORED))
        return torch.stack(tokens), torch.stack(labels)


def labels_of(tokens: Tensor, first: Tensor, end: int) -> Tensor:
    """Tokens [R, T] to what is to be predicted of them: from column `first` [R] to the end of the text."""
    column = torch.arange(tokens.shape[1])
    last = (tokens == end).long().argmax(1)
    return tokens.masked_fill((column < first[:, None]) | (column > last[:, None]), IGNORED)
