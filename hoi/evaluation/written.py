"""Read what stage three and sweeps wrote, each file checked against its description as it comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from msgspec import Struct, defstruct

from hoi.errors import UserError, command
from hoi.evaluation.rows import COLUMNS, MEANS
from hoi.files import Count, Finite, convert, read_json


class _Mean(Struct):
    mean: Finite
    sd: Finite


class _Interval(Struct):
    observed: Finite
    low: Finite
    high: Finite


class _Difference(_Interval):
    better: str
    than: str
    measure: str
    sd: Finite
    num_resamples: Count


class _Settings(TypedDict, total=False):
    # Of a row: what was tuned, and what is read again of a student's settings.
    score_exponent: Finite
    margin: Finite | str
    form: str
    temperature: Finite
    supervision: str
    num_tried: Count
    tuned_on: str | None
    zero_shot: str | None


class _LabelsRead(Struct):
    labels_read: dict[str, str | None]


_Means = defstruct(
    "_Means", [("name", str), ("num_seeds", Count | None), *((column, _Mean | None) for column in COLUMNS)]
)
_Result = defstruct(
    "_Result",
    [
        ("name", str),
        ("seed", int | None),
        *((mean, Finite | None) for mean in MEANS),
        ("num_positives", Count),
        ("knobs", _Settings),
        ("audit", _LabelsRead),
    ],
)


class _Summary(Struct):
    split: str
    num_images: Count
    num_pairs: Count
    means: list[_Means]  # type: ignore[valid-type]
    comparisons: list[_Difference]
    against_direct: list[_Difference]
    agreement: dict[str, dict[str, Finite]]
    config: dict[str, Any]
    zero_shot_dropped: dict[str, dict[str, Count]]
    fingerprint: str
    commit: str | None
    versions: dict[str, str]
    device: str


class _Ap(Struct):
    name: str
    seed: int | None
    percent: Finite


class _Class(Struct):
    interaction: str
    rare: bool
    num_positives: Count
    ap: list[_Ap]


class _Model(Struct):
    name: str
    weights: str
    trained_on: str


class _Audit(Struct):
    rare_list: str
    detector: _Model
    teacher: _Model
    warnings: list[str]


class _Gate(Struct):
    name: str
    level: str


class _Gates(Struct):
    gates: list[_Gate]
    labels_read: str | None


_Columns = defstruct("_Columns", [(column, _Mean | None) for column in COLUMNS])


class _SweepRow(Struct):
    name: str
    num_seeds: Count | None
    means: _Columns  # type: ignore[valid-type]
    difference: _Interval | None
    changes: dict[str, Any] = {}


class _Failed(Struct):
    name: str
    seed: int
    reason: str


class _Sweep(Struct):
    name: str
    against: str
    split: str
    fingerprint: str
    baselines: list[_SweepRow]
    rows: list[_SweepRow]
    failed: list[_Failed]


KINDS: Mapping[str, Any] = {
    "summary.json": _Summary,
    "results.json": list[_Result],  # type: ignore[valid-type]
    "per_class.json": list[_Class],
    "audit.json": _Audit,
    "sanity.json": _Gates,
    "table.json": _Sweep,
}
"""Name of a file → what is read of it."""


def read_written(path: Path, *, kind: str | None = None, required: bool = True) -> Any:
    """Return the plain content of a file, checked as `KINDS` says of its name, or of `kind`.

    None where it is neither there nor required.

    Raises:
        UserError: it is missing, or not what stage three or a sweep writes.
    """
    made_by = command("sweep" if "table.json" in (kind, path.name) else "eval")
    content = read_json(path, what="this result file", fix=made_by)
    if content is None and required:
        raise UserError("there are no results", where=path, expected="what stage three writes", fix=made_by)
    try:
        if content is not None:
            convert(content, KINDS[kind or path.name])
    except ValueError as error:
        raise UserError("this result file is damaged", where=path, got=error, fix=made_by) from None
    return content


def check_together(folder: Path, summary: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError if a row of a summary is none of the results, or of no student."""
    rows = {row["name"] for row in results}
    missing = next((mean["name"] for mean in summary["means"] if mean["name"] not in rows), None)
    if missing is not None:
        expected, fix = f"a row '{missing}', which summary.json has", command("eval")
        raise UserError("these results are not of one run", where=folder / "results.json", expected=expected, fix=fix)
