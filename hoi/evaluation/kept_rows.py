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
        "resampled_means": {
            mean: {"observed": found.observed, "resampled": found.resampled.tolist()}
            for mean, found in row.resampled_means.items()
        },
    }


def from_plain(plain: dict[str, Any]) -> ResultRow:
    """What `to_plain` made, back."""
    result = HicoResult(
        np.array(plain["ap"]),
        np.array(plain["num_positives"], np.int64),
        np.array(plain["is_rare"], bool),
        np.array(plain["is_no_interaction"], bool),
    )
    means = {mean: _resampled(found) for mean, found in plain["resampled_means"].items()}
    own = {key: plain[key] for key in ("name", "seed", "means", "knobs", "further")}
    return ResultRow(**own, result=result, resampled=_resampled(plain), resampled_means=means)


def _resampled(plain: dict[str, Any]) -> ResampledMap:
    return ResampledMap(plain["observed"], np.array(plain["resampled"]))
