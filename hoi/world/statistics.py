"""Prints the world's statistics beside HICO-DET's: `python -m hoi.world.statistics [--sheet FILE.png]`.

Source of the reference column: HICO-DET test2015 annotations, pairs merged at IoU >= 0.5 of both boxes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from math import isqrt
from pathlib import Path

import numpy as np

from hoi.world.layout import sample_scene
from hoi.world.rendering import annotate, render
from hoi.world.scene import SceneAnnotation
from hoi.world.vocabulary import INTERACTIONS, NO_INTERACTION, SIZE_PX, SPLITS

RARE = "rare interactions (< 10 pairs), %"
RARE_BELOW = 10
"""An interaction with fewer pairs in `train` is rare, as in HICO-DET."""

REFERENCE: dict[str, str] = {
    "pairs per image": "2.28",
    "images of 1 / 2 / 3 / 4 / 5+ pairs, %": "62 / 19 / 6 / 4 / 9",
    "interactions per pair": "1.53",
    "pairs of 1 / 2 / 3 / 4+ interactions, %": "66 / 21 / 10 / 3",
    "distinct interactions per image": "2.1",
    "humans in pairs per image": "1.87",
    "images of one such human, %": "70",
    "objects in pairs per image": "1.56",
    "images of one such object, %": "77",
    "human sqrt(relative area), quantiles": "0.07 / 0.14 / 0.31 / 0.51 / 0.71",
    "object sqrt(relative area), quantiles": "0.07 / 0.14 / 0.30 / 0.55 / 0.72",
    "pairs with overlapping boxes, %": "83",
    "no_interaction among labels, %": "13",
    RARE: "23",
    "fewest pairs of an interaction": "1",
}
"""Quantiles are the 10, 25, 50, 75 and 90th percentiles. HICO-DET's rare classes are counted on its training set."""


def _shares(counts: list[int], top: int) -> str:
    found = Counter(min(count, top) for count in counts)
    return " / ".join(str(round(100 * found[n] / len(counts))) for n in range(1, top + 1))


def _quantiles(boxes_xyxy: np.ndarray) -> str:
    sides = np.sqrt((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])) / SIZE_PX
    return " / ".join(f"{q:.2f}" for q in np.percentile(sides, (10, 25, 50, 75, 90)))


def measure(annotations: list[SceneAnnotation]) -> dict[str, str]:
    """Annotations become the printed column, under the keys of REFERENCE."""
    scenes = [a for a in annotations if a.pairs]
    pairs = [(a.boxes_xyxy[h], a.boxes_xyxy[o], rows) for a in scenes for h, o, rows in a.pairs]
    humans = [{h for h, _, _ in a.pairs} for a in scenes]
    objects = [{o for _, o, _ in a.pairs} for a in scenes]
    human_boxes = np.array([a.boxes_xyxy[row] for a, rows in zip(scenes, humans, strict=True) for row in rows])
    object_boxes = np.array([a.boxes_xyxy[row] for a, rows in zip(scenes, objects, strict=True) for row in rows])
    touching = [bool((np.maximum(h[:2], o[:2]) < np.minimum(h[2:], o[2:])).all()) for h, o, _ in pairs]
    labels = Counter(row for _, _, rows in pairs for row in rows)
    none = sum(count for row, count in labels.items() if INTERACTIONS[row][0] == NO_INTERACTION)
    rare = sum(labels[row] < RARE_BELOW for row in range(len(INTERACTIONS)))
    values = (
        f"{len(pairs) / len(scenes):.2f}",
        _shares([len(a.pairs) for a in scenes], 5),
        f"{sum(labels.values()) / len(pairs):.2f}",
        _shares([len(rows) for _, _, rows in pairs], 4),
        f"{np.mean([len({row for _, _, rows in a.pairs for row in rows}) for a in scenes]):.1f}",
        f"{np.mean([len(rows) for rows in humans]):.2f}",
        f"{round(100 * np.mean([len(rows) == 1 for rows in humans]))}",
        f"{np.mean([len(rows) for rows in objects]):.2f}",
        f"{round(100 * np.mean([len(rows) == 1 for rows in objects]))}",
        _quantiles(human_boxes),
        _quantiles(object_boxes),
        f"{round(100 * np.mean(touching))}",
        f"{round(100 * none / sum(labels.values()))}",
        f"{round(100 * rare / len(INTERACTIONS))}",
        f"{min(labels[row] for row in range(len(INTERACTIONS)))}",
    )
    return dict(zip(REFERENCE, values, strict=True))


def table(seed: int = 0) -> str:
    """The world's statistics by split, beside the reference, as a Markdown table."""
    columns = {
        split: measure([annotate(sample_scene(seed, split, index)) for index in range(size)])
        for split, size in SPLITS.items()
    }
    lines = [f"| | {' | '.join(SPLITS)} | HICO-DET |", "|" + "---|" * (len(SPLITS) + 2)]
    for key, reference in REFERENCE.items():
        cells = [columns[split][key] if split == "train" or key != RARE else "" for split in SPLITS]
        lines.append(f"| {key} | {' | '.join(cells)} | {reference} |")
    return "\n".join(lines)


def contact_sheet(seed: int, split: str, num_scenes: int) -> np.ndarray:
    """The first scenes of a split side by side, uint8 [rows * SIZE_PX, columns * SIZE_PX, 3]."""
    columns = max(isqrt(num_scenes * 3 // 2), 1)
    rows = -(-num_scenes // columns)
    sheet = np.full((rows * SIZE_PX, columns * SIZE_PX, 3), 255, np.uint8)
    for index in range(num_scenes):
        y, x = index // columns * SIZE_PX, index % columns * SIZE_PX
        sheet[y : y + SIZE_PX, x : x + SIZE_PX] = render(sample_scene(seed, split, index))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Prints the table, or writes a contact sheet instead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="world seed")
    parser.add_argument("--sheet", type=Path, help="write this PNG with scenes of --split, and print no table")
    parser.add_argument("--split", default="test", help="split of the sheet")
    parser.add_argument("--num", type=int, default=24, help="scenes on the sheet")
    options = parser.parse_args(arguments)
    if options.sheet is None:
        print(f"{len(INTERACTIONS)} interactions, world seed {options.seed}\n\n{table(options.seed)}")
        return
    from PIL import Image

    Image.fromarray(contact_sheet(options.seed, options.split, options.num)).save(options.sheet)


if __name__ == "__main__":
    main()
