"""Result rows to the plain text that stage three prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hoi.evaluation.rows import MEANS, Comparison, ResultRow

COLUMNS = {"full": "full", "rare": "rare", "non_rare": "non-rare", "one_pair": "1 pair", "several_pairs": "2+ pairs"}
"""Printed means, by name and heading."""

NO_SPREAD = " " * len(" ± 0.00")


def rows_by_name(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Rows to the seeds of each method, in the order in which they first come."""
    grouped: dict[str, list[ResultRow]] = {}
    for row in rows:
        grouped.setdefault(row.name, []).append(row)
    return grouped


def mean_and_sd(rows: Sequence[ResultRow], mean: str) -> tuple[float, float] | None:
    """One of `MEANS` over the seeds of a method, in percent, and its standard deviation (n − 1; 0 of one seed)."""
    values = [row.means[mean] for row in rows]
    present = [value for value in values if value is not None]
    if not present:
        return None
    return float(np.mean(present)), float(np.std(present, ddof=1)) if len(present) > 1 else 0.0


def means_over_seeds(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Rows to one plain record a method: number of seeds, and mean and standard deviation of each of `MEANS`."""
    records = []
    for name, seeds in rows_by_name(rows).items():
        record: dict[str, Any] = {"name": name, "num_seeds": len(seeds) if seeds[0].seed is not None else None}
        for mean in MEANS:
            found = mean_and_sd(seeds, mean)
            record[mean] = None if found is None else {"mean": round(found[0], 4), "sd": round(found[1], 4)}
        records.append(record)
    return records


def best_of(rows: Sequence[ResultRow], names: Sequence[str]) -> str:
    """The name, out of those given, with the highest full mAP over its seeds."""
    grouped = rows_by_name(rows)
    quality = {name: mean_and_sd(grouped[name], "full") for name in names if name in grouped}
    return max(quality, key=lambda name: quality[name] or (0.0, 0.0))


def format_table(rows: Sequence[ResultRow]) -> str:
    """Rows to one line a method: mean ± standard deviation over its seeds, in percent, decimal points aligned."""
    lines = [["", "seeds", *(heading + NO_SPREAD for heading in COLUMNS.values())]]
    for name, seeds in rows_by_name(rows).items():
        num_seeds = "–" if seeds[0].seed is None else str(len(seeds))
        lines.append([name, num_seeds, *(_cell(seeds, column) for column in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(seeds: Sequence[ResultRow], column: str) -> str:
    found = mean_and_sd(seeds, column)
    if found is None:
        return "–" + NO_SPREAD
    mean, sd = found
    return f"{mean:.2f}" + (f" ± {sd:.2f}" if len(seeds) > 1 else NO_SPREAD)


def format_comparison(found: Comparison) -> str:
    """A comparison to one line."""
    d = found.difference
    where = "" if found.measure == "full" else f", {COLUMNS.get(found.measure, found.measure)}"
    return (
        f"{found.better} − {found.than}{where}: {100 * d.observed:+.2f} mAP, "
        f"95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f} (sd {100 * d.sd:.2f})"
    )


def format_agreement(agreement: Mapping[str, Mapping[str, float]]) -> str:
    """Agreement by student and branch to one line a branch."""
    lines = ["agreement with the teacher: how often both put the same interaction first"]
    width = max((len(f"{name}/{branch}") for name, found in agreement.items() for branch in found), default=0)
    for name, found in agreement.items():
        lines += [f"  {f'{name}/{branch}'.ljust(width)}  {100 * share:6.2f} %" for branch, share in found.items()]
    return "\n".join(lines)
