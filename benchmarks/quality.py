"""Compare label-free estimates with average precision, where there are labels.

    hoi quality --branches --sample 100 OVERRIDES     then
    python -m benchmarks.quality OUTPUT

reads OUTPUT's quality.json, results.json and per_class.json, and prints Spearman's correlations: of each measure with
mAP over methods, and of the best score with AP over the phrases of each method.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from hoi.files import read_json
from hoi.quality.measures import spearman

MEASURES = ("flip",)
TEACHER = "direct_clip"


def main(folder: Path) -> str:
    """Return the two tables of a folder of results."""
    quality, results = read_json(folder / "quality.json"), read_json(folder / "results.json")
    ap = {row["name"]: row["full"] for row in results if row["seed"] in (None, 0)}
    by_phrase = {row["interaction"]: {each["name"]: each["percent"] for each in row["ap"]} for row in _classes(folder)}
    scorers = {_row(name): found for name, found in quality["scorers"].items() if _row(name) in ap}
    lines = ["method               mAP    " + "  ".join(f"{name:>7}" for name in MEASURES)]
    for name, found in sorted(scorers.items(), key=lambda pair: -ap[pair[0]]):
        values = [found["measures"].get(key, {}).get("rank") for key in MEASURES]
        lines.append(f"{name:<20} {ap[name]:5.2f}  " + "  ".join(_number(value) for value in values))
    lines += ["", "correlation over methods with mAP"]
    for key in MEASURES:
        rows = [
            (ap[name], found["measures"][key]["rank"]) for name, found in scorers.items() if key in found["measures"]
        ]
        lines.append(f"  {key:<10} {_number(spearman(*map(np.array, zip(*rows, strict=True))))} over {len(rows)}")
    lines += ["", "correlation of the best score with AP, over phrases"]
    for name, found in scorers.items():
        rows = [
            (by_phrase[phrase][name], of["best_score"])
            for phrase, of in zip(quality["phrases"], found["phrases"], strict=True)
            if name in by_phrase.get(phrase, {})
        ]
        value = spearman(*map(np.array, zip(*rows, strict=True))) if rows else None
        lines.append(f"  {name:<32} {_number(value)}")
    return "\n".join(lines)


def _classes(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_json(folder / "per_class.json") if row["num_positives"] > 0]


def _row(name: str) -> str:
    """Return the row of the result table of a scorer of quality.json."""
    return name.removeprefix("student/")


def _number(value: float | None) -> str:
    return "      –" if value is None else f"{value:7.2f}"


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
