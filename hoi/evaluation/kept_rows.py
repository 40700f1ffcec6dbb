"""Result rows to plain data and back, whole: what a process grades, another one compares."""

from __future__ import annotations

from typing import Any

import numpy as np

from hoi.evaluation.bootstrap import ResampledMap
from hoi.evaluation.hico import HicoResult
from hoi.evaluation.rows import ResultRow


def to_plain(row: ResultRow) -> dict[str, Any]:
    """A row to what JSON can hold; floats come back as they were."""
    result = row.result
    return {
        "name": row.name,
        "seed": row.seed,
        "means": row.means,
        "ap": result.ap.tolist(),
        "num_positives": result.num_positives.tolist(),
        "is_rare": result.is_rare.tolist(),
        "is_no_interaction": result.is_no_interaction.tolist(),
        "observed": row.resampled.observed,
        "resampled": row.resampled.resampled.tolist(),
        "knobs": row.knobs,
        "further": row.further,
    }


def from_plain(plain: dict[str, Any]) -> ResultRow:
    """What `to_plain` made, back."""
    result = HicoResult(
        np.array(plain["ap"]),
        np.array(plain["num_positives"], np.int64),
        np.array(plain["is_rare"], bool),
        np.array(plain["is_no_interaction"], bool),
    )
    resampled = ResampledMap(plain["observed"], np.array(plain["resampled"]))
    return ResultRow(plain["name"], plain["seed"], plain["means"], result, resampled, plain["knobs"], plain["further"])
