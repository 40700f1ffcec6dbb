"""Ranked predictions to the few that are shown to a person, drawn so that every one's chance of being asked is known.

A triplet of high rank decides more of average precision than one far below, and every phrase wants an answer of its
own. So a phrase gets marks by the square root of its number of triplets, at least two; its ranking is cut at (b/B)² of
its length into B strata, and every stratum gets equally many marks: the upper ranks are asked far more densely. Inside
a stratum all triplets are equally likely (simple random sampling without replacement), so the chance of each is
`num_marks / size` of its stratum, and only the order of the scores is read, never their values.

Letters: N triplets, H strata, K phrases.

Source: power allocation between domains, Bankier, "Power allocations", The American Statistician 1988, with q = 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi.errors import UserError, nearest
from hoi.json_lines import Records, read_json_lines
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, Vocabulary


@dataclass(frozen=True)
class Candidates:
    """The predictions of a file that say that something is done, in its order.

    Args:
        image_ids: N.
        boxes_h, boxes_o: float64 [N, 4], pixel-edge xyxy.
        interactions: K pairs of a verb and an object that the file speaks of.
        phrase: int64 [N], rows of `interactions`.
        score: float64 [N].
    """

    image_ids: list[str]
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    interactions: list[tuple[str, str]]
    phrase: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def phrases(self) -> list[str]:
        """K readable names."""
        return [
            " ".join((verb, *[thing] * (thing != NO_OBJECT))).replace("_", " ") for verb, thing in self.interactions
        ]


def read_candidates(path: Path, vocabulary: Vocabulary | None = None, *, inclusive: bool = False) -> Candidates:
    """A file of predictions, JSON lines as `hoi.evaluation.score` reads them, to candidates.

    Those of no interaction are left out: nobody can tell whether such a one is right without all other phrases in mind.

    Args:
        path: Gzipped or not.
        vocabulary: Says what `interaction` means in lines that do not name `verb` and `object`; None where all do.
        inclusive: Whether corners are pixels that belong to the box, as HICO-DET's predictions have them.

    Raises:
        UserError: no such file, no prediction in it, or a wrong one, named by its line.
    """
    records = read_json_lines(path)
    pairs = _named(records, vocabulary)
    kept = [row for row, (verb, _) in enumerate(pairs) if verb != NO_INTERACTION]
    if not kept:
        raise UserError("there is no prediction to check", where=path, expected="at least one line")
    pairs = [pairs[row] for row in kept]
    records = Records(path, [records.rows[row] for row in kept], [records.lines[row] for row in kept])
    interactions = sorted(set(pairs))
    row_of = {pair: k for k, pair in enumerate(interactions)}
    edge = np.array([0, 0, 1, 1]) * inclusive
    image_ids: list[str] = records.of_type("file_name", (str,), "text")
    return Candidates(
        image_ids,
        records.boxes("human_xyxy") + edge,
        records.boxes("object_xyxy") + edge,
        interactions,
        np.array([row_of[pair] for pair in pairs], np.int64),
        records.numbers("score", "a finite number"),
    )


def _named(records: Records, vocabulary: Vocabulary | None) -> list[tuple[str, str]]:
    if all("verb" in row and "object" in row for row in records.rows):
        return list(
            zip(records.of_type("verb", (str,), "text"), records.of_type("object", (str,), "text"), strict=True)
        )
    if vocabulary is None:
        row = next(i for i, row in enumerate(records.rows) if "verb" not in row or "object" not in row)
        raise UserError(
            "a prediction does not name its verb and object",
            where=records.where(row),
            expected="verb and object",
            got=", ".join(map(str, records.rows[row])) or "no key at all",
            fix="give --config with the pipeline file whose vocabulary its interaction is a row of",
        )
    expected = f"a whole number of 0..{len(vocabulary) - 1}"
    rows: list[int] = records.of_type("interaction", (int,), expected)
    wrong = next((i for i, k in enumerate(rows) if not 0 <= k < len(vocabulary)), None)
    if wrong is not None:
        records.refuse_row(wrong, "interaction", "is out of range", expected)
    return [vocabulary.interactions[k] for k in rows]


def check_names(candidates: Candidates, known: list[str], where: object) -> None:
    """Nothing, if all images of the predictions are known; otherwise a UserError that names the first other one."""
    names = set(known)
    foreign = next((name for name in candidates.image_ids if name not in names), None)
    if foreign is not None:
        raise UserError(
            "a prediction names an unknown image", where=where, expected=nearest(foreign, known), got=foreign
        )


MIN_MARKS = 2
"""Fewer in a stratum or of a phrase say nothing of a spread."""
MAX_STRATA = 5
MARKS_OF_A_BIG_PHRASE = 4
"""Where there are too many phrases for two marks each, the largest ones get at least so many and the others share."""


@dataclass(frozen=True)
class Sample:
    """Which triplets are asked.

    Args:
        stratum: int64 [N], each triplet's stratum, 0..H-1; strata of a phrase follow each other by rank.
        group: int64 [H], the phrase of a stratum, or K for the stratum of all phrases that have none of their own.
        num_marks: int64 [H], how many of a stratum are asked.
        asked: int64 [n], rows of the triplets in the order of asking: the first of every stratum, then the second.
    """

    stratum: np.ndarray
    group: np.ndarray
    num_marks: np.ndarray
    asked: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """float64 [N], each triplet's chance of being asked."""
        return (self.num_marks / np.bincount(self.stratum, minlength=len(self.group)))[self.stratum]


def draw_sample(phrase: np.ndarray, score: np.ndarray, num_phrases: int, num_marks: int, seed: int) -> Sample:
    """Triplets to those that are asked; the same for the same numbers.

    Args:
        phrase: int64 [N], 0..K-1.
        score: [N], of which only the order counts; equal ones stay in the order of the rows.
        num_phrases: K.
        num_marks: How many to ask; all N where there are fewer.
        seed: Of the draw.
    """
    sizes = np.bincount(phrase, minlength=num_phrases)
    group_of = _groups(sizes, num_marks)[phrase]
    marks = _allocate(np.bincount(group_of, minlength=num_phrases + 1), num_marks)
    stratum = np.zeros(len(phrase), np.int64)
    group: list[int] = []
    counts: list[int] = []
    # Within the group of small phrases triplets are ranked by their place in their own phrase.
    height = rank_share(phrase, score, num_phrases)
    for k in np.flatnonzero(marks):
        rows = np.flatnonzero(group_of == k)
        rows = rows[np.argsort(height[rows], kind="stable")]
        for part, count in _cut(rows, int(marks[k])):
            stratum[part] = len(group)
            group.append(int(k))
            counts.append(count)
    dice = np.random.default_rng(seed)
    rounds = [
        (turn, dice.random(), int(row))
        for h, count in enumerate(counts)
        for turn, row in enumerate(dice.choice(np.flatnonzero(stratum == h), count, replace=False))
    ]
    asked = np.array([row for _, _, row in sorted(rounds)], np.int64)
    return Sample(stratum, np.array(group, np.int64), np.array(counts, np.int64), asked)


def rank_share(phrase: np.ndarray, score: np.ndarray, num_phrases: int) -> np.ndarray:
    """Each triplet's place in the ranking of its phrase, float64 [N]: (rank - 1/2) / number, so 0 is the top."""
    order = np.lexsort((np.arange(len(score)), -score, phrase))
    sizes = np.bincount(phrase, minlength=num_phrases)
    starts = np.cumsum(sizes) - sizes
    share = np.zeros(len(score))
    share[order] = (np.arange(len(score)) - starts[phrase[order]] + 0.5) / sizes[phrase[order]]
    return share


def _groups(sizes: np.ndarray, num_marks: int) -> np.ndarray:
    """Phrases to groups, int64 [K]: each its own, or K for those that share one."""
    groups = np.arange(len(sizes))
    if MIN_MARKS * np.count_nonzero(sizes) > num_marks:
        largest = np.argsort(-sizes, kind="stable")[: max(1, num_marks // MARKS_OF_A_BIG_PHRASE) - 1]
        groups[~np.isin(groups, largest)] = len(sizes)
    return groups


def _allocate(sizes: np.ndarray, num_marks: int) -> np.ndarray:
    """Marks of each group, by the square root of its size: at least two, at most its size, `num_marks` in all."""
    marks = np.minimum(sizes, MIN_MARKS)
    for _ in range(max(0, min(num_marks, int(sizes.sum())) - int(marks.sum()))):
        wanting = np.where(marks < sizes, np.sqrt(sizes) / (marks + 1), -1.0)
        marks[int(wanting.argmax())] += 1
    return marks


def _cut(rows: np.ndarray, num_marks: int) -> list[tuple[np.ndarray, int]]:
    """Ranked rows to strata and their numbers of marks."""
    num = min(MAX_STRATA, max(1, num_marks // MIN_MARKS))
    edges = np.ceil(len(rows) * (np.arange(num + 1) / num) ** 2).astype(int)
    parts, left, begin = [], num_marks, 0
    for b in range(num):
        wanted = -(-left // (num - b))
        left -= wanted
        end = min(max(edges[b + 1], begin + wanted), len(rows) - left)
        parts.append((rows[begin:end], wanted))
        begin = end
    return parts
