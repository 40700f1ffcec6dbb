"""A file of predictions to the triplets that a person may be asked about.

Letters: N triplets, K phrases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi.errors import UserError, nearest
from hoi.evaluation.json_lines import Records, read_json_lines
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
    """A file of predictions, JSON lines as `stages.score` reads them, to candidates.

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
