"""Hand-made HICO-DET annotation files: the same three pairs in every format, and small trees of drawn images.

No published file but fredzzhang's test JSON is at hand; these follow the key names of the code that reads the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

NAMES = ["HICO_test2015_00000001.jpg", "HICO_test2015_00000003.jpg", "HICO_test2015_00000002.jpg"]
SIZES = [[64, 48], [48, 64], [32, 32]]
# 245 is `sit_on bench`, 152 `race motorcycle`, 159 `no_interaction motorcycle`; corners are 1-based and inclusive.
PAIRS = [
    (0, [1, 6, 19, 29], [5, 25, 40, 44], 245),
    (0, [10, 3, 31, 40], [5, 25, 40, 44], 245),
    (2, [2, 2, 20, 32], [1, 9, 32, 30], 152),
]
INTERACTION_OF_VERB_AND_OBJECT = {245: (88, 15), 152: (73, 4)}
"""PPDM's verb (from 1) and COCO id of the object."""


def instances_json(pairs: list[tuple[int, Any, Any, int]] | None = None) -> dict[str, Any]:
    """fredzzhang's form."""
    annotation: list[dict[str, list]] = [{"boxes_h": [], "boxes_o": [], "hoi": []} for _ in NAMES]
    for image, human, thing, hoi in PAIRS if pairs is None else pairs:
        for key, value in (("boxes_h", human), ("boxes_o", thing), ("hoi", hoi)):
            annotation[image][key].append(value)
    return {"annotation": annotation, "filenames": NAMES, "size": SIZES, "empty": [1]}


def ppdm_json(first_pixel: int = 1) -> list[dict[str, Any]]:
    """PPDM's form."""
    records: list[dict[str, Any]] = [{"file_name": name, "annotations": [], "hoi_annotation": []} for name in NAMES]
    for image, human, thing, hoi in PAIRS:
        boxes, pairs = records[image]["annotations"], records[image]["hoi_annotation"]
        verb, coco_id = INTERACTION_OF_VERB_AND_OBJECT[hoi]
        for box, category_id in ((human, 1), (thing, coco_id)):
            boxes.append({"bbox": [edge - 1 + first_pixel for edge in box], "category_id": category_id})
        pair = {"subject_id": len(boxes) - 2, "object_id": len(boxes) - 1, "category_id": f"{verb}\n"}
        pairs.append({**pair, "hoi_category_id": hoi + 1})
    return records


def write_mat(path: Path) -> None:
    """The official form, with an invisible interaction that has no box."""
    images = np.zeros((1, len(NAMES)), [("filename", "O"), ("size", "O"), ("hoi", "O")])
    for image, (name, (width, height)) in enumerate(zip(NAMES, SIZES, strict=True)):
        hois = [_hoi(hoi, [(h, o) for i, h, o, k in PAIRS if (i, k) == (image, hoi)]) for hoi in (245, 152, 159)]
        images[0, image] = (name, {"width": width, "height": height, "depth": 3}, _structs([h for h in hois if h]))
    savemat(path, {"bbox_test": images, "bbox_train": images[:, :1]})


def _hoi(hoi: int, pairs: list[tuple[list[int], list[int]]]) -> dict[str, Any] | None:
    if not pairs and hoi != 159:
        return None
    humans, things = ([dict(zip(("x1", "y1", "x2", "y2"), p[side], strict=True)) for p in pairs] for side in (0, 1))
    return {
        "id": hoi + 1,
        "bboxhuman": _structs(humans),
        "bboxobject": _structs(things),
        "connection": np.array([[k + 1, k + 1] for k in range(len(pairs))]),
        "invis": int(hoi == 159),
    }


def _structs(rows: list[dict[str, Any]]) -> np.ndarray:
    if not rows:
        return np.zeros((0, 0))
    table = np.zeros((1, len(rows)), [(key, "O") for key in rows[0]])
    for column, row in enumerate(rows):
        table[0, column] = tuple(row.values())
    return table


def write_tree(root: Path, *, train: int = 12, test: int = 3) -> None:
    """Folders of small drawn images under the official names, without any annotation file."""
    for half, number in (("train2015", train), ("test2015", test)):
        folder = root / "images" / half
        folder.mkdir(parents=True)
        for k in range(number):
            width, height = SIZES[{0: 0, 1: 2, 2: 1}.get(k, 0)] if half == "test2015" else (64, 48)
            pixels = np.random.default_rng(k).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"HICO_{half}_{k + 1:08d}.jpg")


def write_json(path: Path, plain: Any) -> Path:
    """Writes a JSON file and gives its path."""
    path.write_text(json.dumps(plain))
    return path
