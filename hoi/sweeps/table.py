"""The table of a sweep: as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hoi.evaluation.rows import (
    COLUMNS,
    MEANS,
    Comparison,
    ResultRow,
    align,
    compare,
    format_zero_shot,
    means_over_seeds,
    with_spread,
    zero_shot_of,
)
from hoi.files import write_atomically, write_json
from hoi.provenance import commit, library_versions
from hoi.sweeps.plan import Sweep
from hoi.training.runs import seconds_of

LIBRARIES = ("torch", "numpy", "safetensors", "h5py", "distributed")
RowSeed = tuple[str, int]


@dataclass(frozen=True)
class SweepTable:
    """Results of a sweep."""

    sweep: Sweep
    folder: Path  # where the tables go
    fingerprint: str  # of the cache
    baselines: list[ResultRow]  # rows that need no training
    graded: dict[RowSeed, ResultRow]
    failed: dict[RowSeed, str]  # reasons by name and seed
    runs: dict[RowSeed, Path]  # folders of the training runs; rows that are only scored differently share one
    num_trained: int  # runs that were not finished before
    zero_shot: dict[str, np.ndarray] = field(default_factory=dict)  # split whose means are shown → ids that it hides

    @property
    def rows(self) -> list[ResultRow]:
        """Baselines, then students in the sweep's order."""
        return [*self.baselines, *self.graded.values()]

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Every other row compared with the one that the sweep names, if that one was evaluated."""
        names = dict.fromkeys(row.name for row in self.rows)
        against = self.sweep.against
        return {name: compare(self.rows, name, against) for name in names if name != against and against in names}

    def write(self) -> None:
        """Write table.csv, table.md and, last, table.json."""
        write_atomically(self.folder / "table.csv", self.to_csv().encode())
        write_atomically(self.folder / "table.md", self.to_markdown().encode())
        write_json(self.folder / "table.json", self.to_dict())

    def failures(self) -> list[str]:
        return [f"failed: {name} seed {seed}: {text}" for (name, seed), text in self.failed.items()]

    def plain_failures(self) -> list[dict[str, Any]]:
        return [{"name": name, "seed": seed, "reason": text} for (name, seed), text in self.failed.items()]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data; figures in percent."""
        means = {record["name"]: record for record in means_over_seeds(self.rows)}
        students = []
        for row in self.sweep.rows:
            seeds = [seed for name, seed in self.runs if name == row.name]
            students.append(
                {
                    "name": row.name,
                    "from": row.start,
                    "changes": row.changes,
                    "student": row.student.model_dump(mode="json"),
                    "train": row.train.model_dump(mode="json"),
                    **self._figures(row.name, means),
                    "runs": [self._run(row.name, seed) for seed in seeds],
                }
            )
        baselines = [
            {"name": row.name, "knobs": row.settings, **self._figures(row.name, means)} for row in self.baselines
        ]
        return {
            "name": self.sweep.name,
            "against": self.sweep.against,
            "split": self.sweep.config.evaluation.split,
            "baselines": baselines,
            "rows": students,
            "zero_shot": [
                {"name": row.name, "seed": row.seed, **zero_shot_of(row, self.zero_shot)}
                for row in (self.rows if self.zero_shot else [])
            ],
            "failed": self.plain_failures(),
            "config": self.sweep.config.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
            "commit": commit(),
            "versions": library_versions(LIBRARIES),
        }

    def to_csv(self) -> str:
        """Return one line per row: mean and standard deviation over its seeds, and its difference to the named row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        of_means = [f"{name}_{part}" for name in MEANS for part in ("mean", "sd")]
        writer.writerow(["name", "num_seeds", *of_means, "against", "difference", "low", "high", "changes", "failed"])
        for name, record, found in self._lines():
            cells = [(record.get(mean) or {}).get(part) for mean in MEANS for part in ("mean", "sd")]
            interval = [found.than, *(f"{value:.4f}" for value in _percent(found))] if found else [""] * 4
            row = next((row for row in self.sweep.rows if row.name == name), None)
            start = [f"from {row.start}"] if row and row.start else []
            changes = "; ".join([*start, *(f"{key}={value}" for key, value in (row.changes if row else {}).items())])
            reasons = "; ".join(f"seed {seed}: {text}" for (of, seed), text in self.failed.items() if of == name)
            writer.writerow([name, record.get("num_seeds"), *cells, *interval, changes, reasons])
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the printed columns as a Markdown table below a title."""
        head = ["", "seeds", *COLUMNS.values(), f"− {self.sweep.against}, 95 % interval"]
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *self._cells()]
        table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        unseen = "".join(f"\n    {line}" for line in self._unseen())
        failures = "".join(f"\n{line}\n" for line in self.failures())
        return f"{self._title()}\n\n{table}\n{unseen and unseen + chr(10)}{failures}"

    def __str__(self) -> str:
        head = ["", "seeds", *COLUMNS.values(), f"− {self.sweep.against}"]
        num_runs = len(set(self.runs.values()))
        runs = f"{num_runs} runs for {len(self.runs)} rows and seeds, {self.num_trained} of them trained now"
        wrote = [f"wrote {self.folder / f'table.{kind}'}" for kind in ("csv", "md", "json")]
        unseen = ["", *self._unseen(), ""] if self.zero_shot else []
        table = align(head, list(self._cells()))
        return "\n".join([self._title(), table, *unseen, runs, *self.failures(), *wrote])

    def _unseen(self) -> list[str]:
        return format_zero_shot(self.rows, self.zero_shot).splitlines() if self.zero_shot else []

    def _title(self) -> str:
        config = self.sweep.config
        return (
            f"{self.sweep.name}: {config.name}, split {config.evaluation.split}, mean average precision in percent, "
            "± sd over seeds"
        )

    def _lines(self) -> Iterator[tuple[str, dict[str, Any], Comparison | None]]:
        """Yield every row's name, means and comparison, rows without figures included."""
        means = {record["name"]: record for record in means_over_seeds(self.rows)}
        for name in [*dict.fromkeys(row.name for row in self.baselines), *(row.name for row in self.sweep.rows)]:
            yield name, means.get(name, {}), self.comparisons.get(name)

    def _cells(self) -> Iterator[list[str]]:
        for name, record, found in self._lines():
            num_seeds = record.get("num_seeds")
            cells = [with_spread(record.get(mean), num_seeds).rstrip() for mean in COLUMNS]
            seeds = "–" if num_seeds is None else str(num_seeds)
            yield [name, seeds, *cells, "{:+.2f} ({:+.2f} to {:+.2f})".format(*_percent(found)) if found else ""]

    def _figures(self, name: str, means: dict[str, dict[str, Any]]) -> dict[str, Any]:
        record = means.get(name, {})
        compared = self.comparisons.get(name)
        return {
            "num_seeds": record.get("num_seeds"),
            "means": {mean: record.get(mean) for mean in MEANS},
            "difference": None if compared is None else compared.to_dict(),
        }

    def _run(self, name: str, seed: int) -> dict[str, Any]:
        graded = self.graded.get((name, seed))
        return {
            "seed": seed,
            "folder": str(self.runs[name, seed]),
            "seconds": seconds_of(self.runs[name, seed]),
            **({} if graded is None else {"means": graded.means, "knobs": graded.settings}),
        }


def _percent(found: Comparison) -> list[float]:
    return [100 * value for value in (found.difference.observed, found.difference.low, found.difference.high)]
