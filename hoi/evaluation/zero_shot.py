"""Zero-shot splits: labels without what a split hides, and results as unseen / seen means; docs/zero-shot.md.

Letters: K interactions, R annotated rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi.config import PipelineConfig
from hoi.datasets.hicodet_classes import unseen
from hoi.errors import UserError
from hoi.evaluation.hico import HicoResult
from hoi.evaluation.rows import ResultRow
from hoi.evaluation.table import rows_by_name
from hoi.records import HoiLabels


@dataclass(frozen=True)
class Dropped:
    """What `drop_unseen` took away.

    Args:
        num_pairs: Human-object pairs with an unseen interaction, dropped whole.
        num_unseen: Annotated rows of unseen interactions.
        num_seen: Annotated rows of seen interactions that stood on dropped pairs.
        num_images_emptied: Images that held a pair and hold none now.
        num_left: Annotated rows that are left.
    """

    num_pairs: int
    num_unseen: int
    num_seen: int
    num_images_emptied: int
    num_left: int

    def __str__(self) -> str:
        return (
            f"{self.num_pairs} pairs with an unseen interaction are dropped: {self.num_unseen} unseen and "
            f"{self.num_seen} seen labels; {self.num_left} labels are left, "
            f"{self.num_images_emptied} images are empty now"
        )


def drop_unseen(labels: HoiLabels, unseen_ids: np.ndarray) -> tuple[HoiLabels, Dropped]:
    """Training labels without the pairs that have an unseen interaction, and what was dropped.

    A pair is an image and its two boxes; all its labels go, the seen ones with the unseen ones, as a pair that is left
    with part of its labels would teach that the others do not hold.

    Args:
        labels: Of a training split.
        unseen_ids: int64, the interactions to hide.
    """
    is_unseen = np.isin(labels.interaction, unseen_ids)
    rows = np.column_stack([labels.image, labels.boxes_h, labels.boxes_o]).astype(np.float64)
    _, pair = np.unique(rows, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    hidden = np.zeros(len(rows), bool)
    hidden[pair[is_unseen]] = True
    goes = hidden[pair]
    kept = HoiLabels(labels.image[~goes], labels.boxes_h[~goes], labels.boxes_o[~goes], labels.interaction[~goes])
    report = Dropped(
        num_pairs=int(hidden.sum()),
        num_unseen=int(is_unseen.sum()),
        num_seen=int((goes & ~is_unseen).sum()),
        num_images_emptied=len(np.unique(labels.image)) - len(np.unique(kept.image)),
        num_left=len(kept),
    )
    return kept, report


def zero_shot_means(result: HicoResult, split_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A result on HICO-DET to unseen, seen and full means of each zero-shot split, as fractions.

    Raises:
        UserError: there is no such split.
    """
    means: dict[str, dict[str, Any]] = {}
    for name in split_names:
        is_unseen = np.isin(np.arange(len(result.ap)), unseen(name))
        of_unseen, of_seen = result.unseen_seen(is_unseen)
        means[name] = {
            "unseen": of_unseen,
            "seen": of_seen,
            "full": result.full,
            "num_unseen": int((is_unseen & (result.num_positives > 0)).sum()),
            "num_unseen_instances": int(result.num_positives[is_unseen].sum()),
        }
    return means


def in_percent(means: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of `zero_shot_means` in percent, as in results.json; counts stay."""
    return {
        name: {
            key: round(100 * value, 4) if key in ("unseen", "seen", "full") and value is not None else value
            for key, value in found.items()
        }
        for name, found in means.items()
    }


def check_zero_shot(config: PipelineConfig) -> None:
    """Nothing, where every split of `evaluation.zero_shot` is known and the data set has them.

    Raises:
        UserError: otherwise.
    """
    names = config.evaluation.zero_shot
    if names and config.dataset.name != "hicodet":
        raise UserError(
            "zero-shot splits are HICO-DET's",
            where="evaluation.zero_shot",
            expected=f"[] for the data set {config.dataset.name}",
            got=names,
        )
    for name in names:
        unseen(name)


def format_zero_shot(rows: Sequence[ResultRow], split_names: Sequence[str]) -> str:
    """Rows to one line a method and zero-shot split: means over its seeds, in percent."""
    lines = [f"{'':24}{'zero-shot split':18}{'unseen':>8}{'seen':>8}{'full':>8}"]
    for name, seeds in rows_by_name(rows).items():
        found = [zero_shot_means(row.result, split_names) for row in seeds]
        for split in split_names:
            cells = []
            for mean in ("unseen", "seen", "full"):
                values = [means[split][mean] for means in found if means[split][mean] is not None]
                cells.append(f"{100 * np.mean(values):.2f}" if values else "–")
            lines.append(f"{name:24}{split:18}{cells[0]:>8}{cells[1]:>8}{cells[2]:>8}")
    return "\n".join(lines)
