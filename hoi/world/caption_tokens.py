"""Captions and the questions made of them, as tokens to read and tokens to predict.

Letters: B images, R texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hoi.world.questions import NO, YES, QuestionTable, caption_questions

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
