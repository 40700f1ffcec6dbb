"""Small HICO-DETs: hand-made annotations in every published format, and drawn images in the official layout.

Of the hand-made files, the formats other than fredzzhang's follow the key names of the code that reads them. A
rehearsal's detections are annotated boxes with noise, and some that are annotated nowhere.
"""

from __future__ import annotations

import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import hicodet_vocabulary

WEIGHTS = Path(__file__).parents[2] / "hoi/world/weights"
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
SMALL = [
    "cache.scheduler=synchronous",
    "cache.device=cpu",
    "cache.images_per_shard=4",
    "pairs.max_humans=2",
    "pairs.max_objects=2",
    "train.seeds=[0]",
    "train.device=cpu",
    "train.epochs=60",
    "evaluation.bootstrap=20",
    f'teacher={{"model": "local-dir:{WEIGHTS / "clip"}", "image_size_px": 128}}',
]
"""Overrides that make a pipeline small; the teacher is the embedded world's, which has never seen such pictures."""


def instances_json(pairs: list[tuple[int, Any, Any, int]] | None = None) -> dict[str, Any]:
    """Return the annotations in fredzzhang's format."""
    annotation: list[dict[str, list]] = [{"boxes_h": [], "boxes_o": [], "hoi": []} for _ in NAMES]
    for image, human, obj, hoi in PAIRS if pairs is None else pairs:
        for key, value in (("boxes_h", human), ("boxes_o", obj), ("hoi", hoi)):
            annotation[image][key].append(value)
    return {"annotation": annotation, "filenames": NAMES, "size": SIZES, "empty": [1]}


def ppdm_json(first_pixel: int = 1) -> list[dict[str, Any]]:
    """Return the annotations in PPDM's format."""
    records: list[dict[str, Any]] = [{"file_name": name, "annotations": [], "hoi_annotation": []} for name in NAMES]
    for image, human, obj, hoi in PAIRS:
        boxes, pairs = records[image]["annotations"], records[image]["hoi_annotation"]
        verb, coco_id = INTERACTION_OF_VERB_AND_OBJECT[hoi]
        for box, category_id in ((human, 1), (obj, coco_id)):
            boxes.append({"bbox": [edge - 1 + first_pixel for edge in box], "category_id": category_id})
        pair = {"subject_id": len(boxes) - 2, "object_id": len(boxes) - 1, "category_id": f"{verb}\n"}
        pairs.append({**pair, "hoi_category_id": hoi + 1})
    return records


def write_mat(path: Path) -> None:
    """Write the official MATLAB format, with an invisible interaction that has no box."""
    images = np.zeros((1, len(NAMES)), [("filename", "O"), ("size", "O"), ("hoi", "O")])
    for image, (name, (width, height)) in enumerate(zip(NAMES, SIZES, strict=True)):
        hois = [_hoi(hoi, [(h, o) for i, h, o, k in PAIRS if (i, k) == (image, hoi)]) for hoi in (245, 152, 159)]
        images[0, image] = (name, {"width": width, "height": height, "depth": 3}, _structs([h for h in hois if h]))
    savemat(path, {"bbox_test": images, "bbox_train": images[:, :1]})


def _hoi(hoi: int, pairs: list[tuple[list[int], list[int]]]) -> dict[str, Any] | None:
    if not pairs and hoi != 159:
        return None
    humans, objects = ([dict(zip(("x1", "y1", "x2", "y2"), p[side], strict=True)) for p in pairs] for side in (0, 1))
    return {
        "id": hoi + 1,
        "bboxhuman": _structs(humans),
        "bboxobject": _structs(objects),
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
    """Write small noise images under the official names, without annotations."""
    for half, number in (("train2015", train), ("test2015", test)):
        folder = root / "images" / half
        folder.mkdir(parents=True)
        for k in range(number):
            width, height = SIZES[{0: 0, 1: 2, 2: 1}.get(k, 0)] if half == "test2015" else (64, 48)
            pixels = np.random.default_rng(k).integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"HICO_{half}_{k + 1:08d}.jpg")


def write_json(path: Path, plain: Any) -> Path:
    """Write a JSON file and return its path."""
    path.write_text(json.dumps(plain))
    return path


def made_up(number: int) -> dict[str, Any]:
    """Return random annotations in fredzzhang's format, with one or two pairs per image."""
    rng = np.random.default_rng(7)
    annotation, sizes = [], []
    for _ in range(number):
        width, height = rng.integers(96, 160, 2).tolist()
        pair: dict[str, list] = {"boxes_h": [], "boxes_o": [], "hoi": []}
        for _ in range(rng.integers(1, 3)):
            for key in ("boxes_h", "boxes_o"):
                x, y = rng.integers(1, width - 50), rng.integers(1, height - 50)
                pair[key].append([int(x), int(y), int(x + rng.integers(24, 48)), int(y + rng.integers(24, 48))])
            pair["hoi"].append(int(rng.integers(600)))
        annotation.append(pair)
        sizes.append([width, height])
    names = [f"HICO_test2015_{k + 1:08d}.jpg" for k in range(number)]
    return {"annotation": annotation, "filenames": names, "size": sizes, "empty": []}


def write_rehearsal(root: Path, source: dict[str, Any], num_train: int, num_test: int) -> list[str]:
    """Write both halves from the first images of an annotation file; return the overrides that read them."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    lists = {}
    for half, first, number in (("test2015", 0, num_test), ("train2015", num_test, num_train)):
        rows = range(first, first + number)
        names = [f"HICO_{half}_{row + 1:08d}.jpg" for row in rows]
        (root / "images" / half).mkdir(parents=True, exist_ok=True)
        for row, name in zip(rows, names, strict=True):
            _draw(root / "images" / half / name, source["size"][row], _boxes(source["annotation"][row]))
            images.append({"id": len(images) + 1, "file_name": name})
            detections += _detect(len(images), source["size"][row], _boxes(source["annotation"][row]), rng)
        part = {
            "annotation": [source["annotation"][row] for row in rows],
            "filenames": names,
            "size": [source["size"][row] for row in rows],
        }
        (root / f"instances_{half}.json").write_text(json.dumps(part))
        lists[half] = str(root / f"{half}.txt")
        Path(lists[half]).write_text("\n".join(names) + "\n")
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(COCO_OBJECTS)]
    (root / "boxes.json").write_text(json.dumps({"images": images, "categories": categories}))
    (root / "detections.json").write_text(json.dumps(detections))
    detector = {"name": "precomputed", "results": str(root / "detections.json"), "instances": str(root / "boxes.json")}
    return [
        f"dataset.image_lists={json.dumps(lists)}",
        "dataset.splits={train: 0.6, validation: 0.4, test: 1.0}",
        f"detector={json.dumps(detector)}",
    ]


def _boxes(annotation: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Return the class and the pixel-edge box of everything annotated in an image."""
    vocabulary = hicodet_vocabulary()
    boxes = []
    for human, obj, hoi in zip(annotation["boxes_h"], annotation["boxes_o"], annotation["hoi"], strict=True):
        for name, (x1, y1, x2, y2) in (("person", human), (vocabulary.interactions[hoi][1], obj)):
            if (name, [x1 - 1, y1 - 1, x2, y2]) not in boxes:
                boxes.append((name, [x1 - 1, y1 - 1, x2, y2]))
    return boxes


def _draw(path: Path, size_wh: list[int], boxes: list[tuple[str, list[float]]]) -> None:
    image = Image.new("RGB", (size_wh[0], size_wh[1]), (120, 130, 140))
    pen = ImageDraw.Draw(image)
    for name, (x1, y1, x2, y2) in boxes:
        hue = COCO_OBJECTS.index(name) / len(COCO_OBJECTS)
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.8, 0.9))
        shape = pen.ellipse if name == "person" else pen.rectangle
        shape((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), fill=colour, outline=(0, 0, 0))
    image.save(path)


def _detect(
    image_id: int, size_wh: list[int], boxes: list[tuple[str, list[float]]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return the boxes with noise, a tenth of them missing, and one that nobody annotated."""
    seen = [(name, np.array(box)) for name, box in boxes if rng.random() < 0.9]
    seen.append((COCO_OBJECTS[rng.integers(80)], np.array([5.0, 5.0, size_wh[0] / 2, size_wh[1] / 2])))
    records = []
    for name, box in seen:
        sides = np.tile(box[2:] - box[:2], 2)
        x1, y1, x2, y2 = box + rng.normal(0, 0.04, 4) * sides
        records.append(
            {
                "image_id": image_id,
                "category_id": COCO_OBJECTS.index(name) + 1,
                "bbox": [x1, y1, max(x2 - x1, 2), max(y2 - y1, 2)],
                "score": float(rng.uniform(0.3, 1)),
            }
        )
    return records
