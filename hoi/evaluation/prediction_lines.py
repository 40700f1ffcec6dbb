"""Our own triplets as the JSON lines that `stages.score` reads: what `docs/predictions.md` asks of anybody."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence

import numpy as np

from hoi.records import Triplets


def prediction_lines(triplets: Triplets, file_names: Sequence[str], *, inclusive: bool) -> bytes:
    """Triplets to gzipped JSON lines, by image, then in their own order; equal triplets give equal bytes.

    Args:
        triplets: Pixel-edge boxes.
        file_names: Of the split's images.
        inclusive: Whether corners are to be pixels that belong to the box, as HICO-DET's predictions have them.
    """
    order = np.argsort(triplets.image, kind="stable")
    shift = np.array([0, 0, 1, 1]) * inclusive
    columns = (
        triplets.image[order].tolist(),
        (triplets.boxes_h[order].astype(np.float64) - shift).tolist(),
        (triplets.boxes_o[order].astype(np.float64) - shift).tolist(),
        triplets.interaction[order].tolist(),
        triplets.score[order].tolist(),
    )
    keys = ("file_name", "human_xyxy", "object_xyxy", "interaction", "score")
    lines = [
        json.dumps(dict(zip(keys, (file_names[image], *values), strict=True)), ensure_ascii=False)
        for image, *values in zip(*columns, strict=True)
    ]
    return gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0)
