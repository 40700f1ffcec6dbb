"""The predictions of a file, the sample of them that a person marks, and the marks on disk.

High ranks decide more of average precision than low ones, and every phrase needs marks of its own. So a phrase gets
marks by the square root of its number of triplets, at least two; its ranking is cut at (b/B)² of its length into B
strata with equally many marks each, so the upper ranks are sampled far more densely. Within a stratum all triplets are
equally likely (simple random sampling without replacement), so the probability of each is `num_marks / size` of its
stratum. Only the order of the scores is read, never their values.

Shapes: N triplets, H strata, K phrases.

Source: power allocation between domains, Bankier, "Power allocations", The American Statistician 1988, with q = 1/2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from msgspec import Struct

from hoi.checking.estimates import MIN_MARKS, estimate, rank_share
from hoi.errors import UserError
from hoi.files import convert
from hoi.json_lines import Records, read_json_lines
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, Vocabulary

Verdict = Literal["right", "wrong", "skip"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
FORMAT, VERSION = "hoi-distill marks", 1
MAX_STRATA = 5
MARKS_OF_A_BIG_PHRASE = 4
"""Where there are too many phrases for two marks each, the largest get at least so many and the others share."""


@dataclass(frozen=True)
class Candidates:
    """The N predictions of a file, in its order, without those of no interaction.

    Args:
        boxes_h, boxes_o: float64 [N, 4], pixel edges xyxy.
        interactions: The K pairs of verb and object in the file.
        phrase: int64 [N], rows of `interactions`.
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
            f"{verb} {'' if obj == NO_OBJECT else obj}".strip().replace("_", " ") for verb, obj in self.interactions
        ]


def read_candidates(path: Path, vocabulary: Vocabulary | None = None, *, inclusive: bool = False) -> Candidates:
    """Read a file of predictions, JSON lines as `hoi score` reads them.

    Those of no interaction are left out: nobody can judge one without all other phrases in mind.

    Args:
        vocabulary: Names the `interaction` of lines without `verb` and `object`; None where all have them.
        inclusive: Whether box corners are pixels that belong to the box, as in HICO-DET's predictions.

    Raises UserError: no such file, no prediction in it, or a wrong one, named by its line.
    """
    records = read_json_lines(path)
    pairs = _interactions(records, vocabulary)
    kept = [row for row, (verb, _) in enumerate(pairs) if verb != NO_INTERACTION]
    if not kept:
        raise UserError("there is no prediction to check", where=path, expected="at least one line")
    pairs = [pairs[row] for row in kept]
    records = records.select(kept)
    interactions = sorted(set(pairs))
    row_of = {pair: k for k, pair in enumerate(interactions)}
    edge = np.array([0, 0, 1, 1]) * inclusive
    return Candidates(
        records.texts("file_name"),
        records.boxes("human_xyxy") + edge,
        records.boxes("object_xyxy") + edge,
        interactions,
        np.array([row_of[pair] for pair in pairs], np.int64),
        records.numbers("score"),
    )


def _interactions(records: Records, vocabulary: Vocabulary | None) -> list[tuple[str, str]]:
    unnamed = next((i for i, row in enumerate(records.rows) if "verb" not in row or "object" not in row), None)
    if unnamed is None:
        return list(zip(records.texts("verb"), records.texts("object"), strict=True))
    if vocabulary is None:
        raise UserError(
            "a prediction does not name its verb and object",
            where=records.where(unnamed),
            expected="verb and object",
            got=", ".join(map(str, records.rows[unnamed])) or "no key at all",
            fix="give --config with the pipeline file whose vocabulary its interaction is a row of",
        )
    expected = f"a whole number of 0..{len(vocabulary) - 1}"
    rows: list[int] = records.of_type("interaction", (int,), expected)
    wrong = next((i for i, k in enumerate(rows) if not 0 <= k < len(vocabulary)), None)
    if wrong is not None:
        records.refuse_row(wrong, "interaction", "is out of range", expected)
    return [vocabulary.interactions[k] for k in rows]


@dataclass(frozen=True)
class Sample:
    """Which triplets are to be marked.

    Args:
        stratum: int64 [N], of each triplet; the strata of a phrase follow each other by rank.
        group: int64 [H], the phrase of a stratum, or K for those of the phrases that share one.
        num_marks: int64 [H], triplets drawn from a stratum.
        asked: The drawn rows, int64, in the order of asking: the first of every stratum, then the second.
    """

    stratum: np.ndarray
    group: np.ndarray
    num_marks: np.ndarray
    asked: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """Of each triplet to be drawn, float64 [N]."""
        return (self.num_marks / np.bincount(self.stratum, minlength=len(self.group)))[self.stratum]


def draw_sample(phrase: np.ndarray, score: np.ndarray, num_phrases: int, num_marks: int, seed: int) -> Sample:
    """Draw the triplets to be marked, all N where there are fewer; the same for the same arguments.

    Args:
        phrase: int64 [N], 0..K-1.
        score: [N], of which only the order counts; ties stay in the order of the rows.
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
    rng = np.random.default_rng(seed)
    rounds = [
        (turn, rng.random(), int(row))
        for h, count in enumerate(counts)
        for turn, row in enumerate(rng.choice(np.flatnonzero(stratum == h), count, replace=False))
    ]
    asked = np.array([row for _, _, row in sorted(rounds)], np.int64)
    return Sample(stratum, np.array(group, np.int64), np.array(counts, np.int64), asked)


def _groups(sizes: np.ndarray, num_marks: int) -> np.ndarray:
    # Each phrase's group, int64 [K]: its own row, or K for the small phrases that share one.
    groups = np.arange(len(sizes))
    if MIN_MARKS * np.count_nonzero(sizes) > num_marks:
        largest = np.argsort(-sizes, kind="stable")[: max(1, num_marks // MARKS_OF_A_BIG_PHRASE) - 1]
        groups[~np.isin(groups, largest)] = len(sizes)
    return groups


def _allocate(sizes: np.ndarray, num_marks: int) -> np.ndarray:
    # By the square root of the groups' sizes: at least two each, at most the size.
    marks = np.minimum(sizes, MIN_MARKS)
    for _ in range(max(0, min(num_marks, int(sizes.sum())) - int(marks.sum()))):
        wanting = np.where(marks < sizes, np.sqrt(sizes) / (marks + 1), -1.0)
        marks[int(wanting.argmax())] += 1
    return marks


def _cut(rows: np.ndarray, num_marks: int) -> list[tuple[np.ndarray, int]]:
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


@dataclass(frozen=True)
class SessionKey:
    """What was asked, so that marks are never read as answers to something else."""

    predictions_sha256: str
    num_marks: int
    seed: int


class _Mark(Struct):
    row: int
    verdict: Verdict


class _Marks(Struct):
    asked: SessionKey
    marks: list[_Mark]


class Session:
    """One person's marks on a sample of predictions; `save` writes them, whole or not at all, after every one."""

    def __init__(self, candidates: Candidates, key: SessionKey, save: Callable[[Any], None]) -> None:
        self.candidates, self._key, self._save = candidates, key, save
        num_phrases = len(candidates.interactions)
        self.sample: Sample = draw_sample(candidates.phrase, candidates.score, num_phrases, key.num_marks, key.seed)
        self.marks: dict[int, Verdict] = {}

    def resume(self, plain: Any, where: Path) -> None:
        """Take up the marks of a file that `save` wrote, or refuse those on other predictions or another draw."""
        rows = set(self.sample.asked.tolist())
        try:
            if (plain["format"], plain["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{plain['format']} {plain['version']}")
            given = convert(plain, _Marks)
            key, marks = given.asked, [(mark.row, mark.verdict) for mark in given.marks]
            if key == self._key and any(row not in rows for row, _ in marks):
                raise ValueError("a mark on a triplet that is not in the sample")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "this is no file of marks",
                where=where,
                expected=f"{FORMAT}, version {VERSION}",
                got=error,
                fix="give another --out",
            ) from None
        if key != self._key:
            names = [name for name in vars(key) if getattr(key, name) != getattr(self._key, name)]
            raise UserError(
                "the marks in this folder are on other predictions or another draw",
                where=where,
                expected=f"the same {' and '.join(names)}",
                fix="give another --out, or the predictions, --number and --seed that they were made with",
            )
        self.marks = dict(marks)

    @property
    def next_row(self) -> int | None:
        """The next triplet to mark; None when all are marked."""
        return next((row for row in self.sample.asked.tolist() if row not in self.marks), None)

    def mark(self, row: int, verdict: Verdict) -> None:
        """Keep a verdict, on disk first; it replaces an earlier one on the same triplet.

        Raises ValueError: the triplet is not in the sample.
        """
        if row not in self.sample.asked:
            raise ValueError(f"triplet {row} is not in the sample")
        others = {other: given for other, given in self.marks.items() if other != row}
        self._keep({**others, row: verdict})

    def undo(self) -> None:
        """Take back the last mark, if there is one."""
        self._keep(dict(list(self.marks.items())[:-1]))

    def _keep(self, marks: dict[int, Verdict]) -> None:
        plain = [{"row": row, "verdict": verdict} for row, verdict in marks.items()]
        self._save({"format": FORMAT, "version": VERSION, "asked": vars(self._key), "marks": plain})
        self.marks = marks

    def table(self) -> list[dict[str, Any]]:
        """Estimate precision and AP: rows for all together, the mean over phrases, then each marked phrase, by size."""
        marked, right = np.zeros((2, len(self.candidates)), bool)
        for row, verdict in self.marks.items():
            marked[row], right[row] = verdict != "skip", verdict == "right"
        rows, names = self.candidates, self.candidates.phrases
        results = estimate(rows.phrase, rows.score, self.sample.stratum, marked, right, len(names))
        by_size = sorted(zip(names, results.phrases, strict=True), key=lambda pair: -pair[1].num_triplets)
        mean = None if results.mean_ap is None else asdict(results.mean_ap)
        return [
            {"name": "all", **asdict(results.together)},
            {"name": "mean over phrases", "precision": None, "ap": mean},
            *({"name": name, **asdict(result)} for name, result in by_size if result.num_marked),
        ]

    def annotations(self) -> bytes:
        """Return the triplets marked as right, as annotation lines of a folder dataset, which `hoi score` reads."""
        return _lines(self._line(row) for row, verdict in self.marks.items() if verdict == "right")

    def checked(self) -> bytes:
        """Return the triplets marked right or wrong, as prediction lines with verdict and sampling probability."""
        probability, score = self.sample.probability, self.candidates.score
        return _lines(
            {**self._line(row), "score": float(score[row]), "verdict": verdict, "probability": float(probability[row])}
            for row, verdict in self.marks.items()
            if verdict != "skip"
        )

    def _line(self, row: int) -> dict[str, Any]:
        candidates = self.candidates
        verb, object_name = candidates.interactions[candidates.phrase[row]]
        return {
            "file_name": candidates.image_ids[row],
            "human_xyxy": candidates.boxes_h[row].tolist(),
            "object_xyxy": candidates.boxes_o[row].tolist(),
            "verb": verb,
            "object": object_name,
        }


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
