"""Marks as they are given: the next triplet to ask, the verdicts so far, and their place on disk after each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from hoi.checking.estimates import Result, Results, estimate
from hoi.checking.sample import Candidates, Sample, draw_sample
from hoi.errors import UserError

Verdict = Literal["right", "wrong", "skip"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
FORMAT, VERSION = "hoi-distill marks", 1


@dataclass(frozen=True)
class Asked:
    """What was asked, so that marks are never read as answers to something else.

    Args:
        predictions_sha256: Of the file of predictions.
        num_marks: How many were to be asked.
        seed: Of the draw.
    """

    predictions_sha256: str
    num_marks: int
    seed: int


class Session:
    """One person's marks on a sample of predictions.

    Args:
        candidates: The predictions.
        asked: What is asked of them.
        save: Writes the marks, whole or not at all; called after every one.
    """

    def __init__(self, candidates: Candidates, asked: Asked, save: Callable[[Any], None]) -> None:
        self.candidates, self._asked, self._save = candidates, asked, save
        num_phrases = len(candidates.interactions)
        self.sample: Sample = draw_sample(candidates.phrase, candidates.score, num_phrases, asked.num_marks, asked.seed)
        self.marks: dict[int, Verdict] = {}

    def resume(self, plain: Any, where: Path) -> None:
        """Takes up the marks of a file that `save` wrote.

        Raises:
            UserError: it is none, or its marks are on other predictions or another draw.
        """
        rows = set(self.sample.asked.tolist())
        try:
            if (plain["format"], plain["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{plain['format']} {plain['version']}")
            asked = Asked(**plain["asked"])
            marks = [(int(mark["row"]), mark["verdict"]) for mark in plain["marks"]]
            if asked == self._asked and any(row not in rows or verdict not in VERDICTS for row, verdict in marks):
                raise ValueError("a mark on what was not asked")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "this is no file of marks",
                where=where,
                expected=f"{FORMAT}, version {VERSION}",
                got=error,
                fix="give another --out",
            ) from None
        if asked != self._asked:
            names = [name for name in vars(asked) if getattr(asked, name) != getattr(self._asked, name)]
            raise UserError(
                "the marks in this folder are on other predictions or another draw",
                where=where,
                expected=f"the same {' and '.join(names)}",
                fix="give another --out, or the predictions, --number and --seed that they were made with",
            )
        self.marks = dict(marks)

    @property
    def next_row(self) -> int | None:
        """The next triplet to ask; None when all are marked."""
        return next((row for row in self.sample.asked.tolist() if row not in self.marks), None)

    def mark(self, row: int, verdict: Verdict) -> None:
        """Keeps a verdict, on disk first; one on the same triplet is replaced.

        Raises:
            ValueError: the triplet is not asked.
            UserError: the disk is full or cannot be written; the mark is not kept.
        """
        if row not in self.sample.asked:
            raise ValueError(f"triplet {row} is not asked")
        others = {other: given for other, given in self.marks.items() if other != row}
        self._keep({**others, row: verdict})

    def undo(self) -> None:
        """Takes the last mark back, if there is one."""
        self._keep(dict(list(self.marks.items())[:-1]))

    def _keep(self, marks: dict[int, Verdict]) -> None:
        plain = [{"row": row, "verdict": verdict} for row, verdict in marks.items()]
        self._save({"format": FORMAT, "version": VERSION, "asked": vars(self._asked), "marks": plain})
        self.marks = marks

    def results(self) -> Results:
        """What the marks say so far."""
        marked, right = np.zeros((2, len(self.candidates)), bool)
        for row, verdict in self.marks.items():
            marked[row], right[row] = verdict != "skip", verdict == "right"
        found = self.candidates
        return estimate(found.phrase, found.score, self.sample.stratum, marked, right, len(found.interactions))

    def annotations(self) -> bytes:
        """The triplets marked as right, as the annotation lines of a folder data set, which `hoi score` reads."""
        return _lines(self._line(row) for row, verdict in self.marks.items() if verdict == "right")

    def checked(self) -> bytes:
        """The triplets with a verdict, as prediction lines, each with its verdict and chance of having been asked."""
        chance, score = self.sample.probability, self.candidates.score
        return _lines(
            {**self._line(row), "score": float(score[row]), "verdict": verdict, "probability": float(chance[row])}
            for row, verdict in self.marks.items()
            if verdict != "skip"
        )

    def _line(self, row: int) -> dict[str, Any]:
        found = self.candidates
        verb, thing = found.interactions[found.phrase[row]]
        return {
            "file_name": found.image_ids[row],
            "human_xyxy": found.boxes_h[row].tolist(),
            "object_xyxy": found.boxes_o[row].tolist(),
            "verb": verb,
            "object": thing,
        }


def results_table(results: Results, phrases: list[str]) -> list[dict[str, Any]]:
    """Results as plain rows: all together, the mean over phrases, then each phrase that was asked, by its size."""

    def row(name: str, result: Result) -> dict[str, Any]:
        found = {key: getattr(result, key) for key in ("precision", "ap")}
        shares = {key: None if value is None else vars(value) for key, value in found.items()}
        counts = {key: getattr(result, key) for key in ("num_triplets", "num_marked", "num_right")}
        return {"name": name, **counts, **shares}

    order = sorted(range(len(phrases)), key=lambda k: -results.phrases[k].num_triplets)
    rows = [row(phrases[k], results.phrases[k]) for k in order if results.phrases[k].num_marked]
    mean = None if results.mean_ap is None else vars(results.mean_ap)
    return [row("all", results.together), {"name": "mean over phrases", "precision": None, "ap": mean}, *rows]


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
