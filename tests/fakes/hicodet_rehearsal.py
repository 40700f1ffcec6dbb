"""A small HICO-DET in the real layout: drawn images at annotated sizes, annotation files, lists, detections beforehand.

    python -m tests.fakes.hicodet_rehearsal FOLDER [--annotations instances_test2015.json] [--train 24] [--test 12]

Rows of both halves are taken from one annotation file, or made up where none is given; detections are annotated boxes
that were jittered, and some that are nowhere annotated.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet_classes import hicodet_vocabulary

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
    'teacher={"model": "local-dir:hoi/world/weights/clip", "image_size_px": 128}',
]
"""What makes a pipeline file small; the teacher is the embedded world's, which knows nothing of these pictures."""


def made_up(number: int) -> dict[str, Any]:
    """Annotations in fredzzhang's form with one or two pairs an image, 1-based inclusive corners."""
    dice = np.random.default_rng(7)
    annotation, sizes = [], []
    for _ in range(number):
        width, height = dice.integers(96, 160, 2).tolist()
        pair: dict[str, list] = {"boxes_h": [], "boxes_o": [], "hoi": []}
        for _ in range(dice.integers(1, 3)):
            for key in ("boxes_h", "boxes_o"):
                x, y = dice.integers(1, width - 50), dice.integers(1, height - 50)
                pair[key].append([int(x), int(y), int(x + dice.integers(24, 48)), int(y + dice.integers(24, 48))])
            pair["hoi"].append(int(dice.integers(600)))
        annotation.append(pair)
        sizes.append([width, height])
    names = [f"HICO_test2015_{k + 1:08d}.jpg" for k in range(number)]
    return {"annotation": annotation, "filenames": names, "size": sizes, "empty": []}


def write_rehearsal(root: Path, source: dict[str, Any], num_train: int, num_test: int) -> list[str]:
    """The first images of an annotation file to both halves of a tree.

    Returns:
        Overrides for a pipeline file that reads the tree.
    """
    dice, images, found = np.random.default_rng(0), [], []
    lists = {}
    for half, first, number in (("test2015", 0, num_test), ("train2015", num_test, num_train)):
        rows = range(first, first + number)
        names = [f"HICO_{half}_{row + 1:08d}.jpg" for row in rows]
        (root / "images" / half).mkdir(parents=True, exist_ok=True)
        for row, name in zip(rows, names, strict=True):
            _draw(root / "images" / half / name, source["size"][row], _boxes(source["annotation"][row]))
            images.append({"id": len(images) + 1, "file_name": name})
            found += _detect(len(images), source["size"][row], _boxes(source["annotation"][row]), dice)
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
    (root / "found.json").write_text(json.dumps(found))
    detector = {"name": "precomputed", "results": str(root / "found.json"), "instances": str(root / "boxes.json")}
    return [
        f"dataset.image_lists={json.dumps(lists)}",
        "dataset.splits={train: 0.6, validation: 0.4, test: 1.0}",
        f"detector={json.dumps(detector)}",
    ]


def _boxes(annotation: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """Class and pixel-edge box of all that is annotated in an image."""
    vocabulary = hicodet_vocabulary()
    boxes = []
    for human, thing, hoi in zip(annotation["boxes_h"], annotation["boxes_o"], annotation["hoi"], strict=True):
        for name, (x1, y1, x2, y2) in (("person", human), (vocabulary.interactions[hoi][1], thing)):
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
    image_id: int, size_wh: list[int], boxes: list[tuple[str, list[float]]], dice: np.random.Generator
) -> list[dict[str, Any]]:
    """Jittered boxes, a tenth of them missed, and one that nobody annotated."""
    seen = [(name, np.array(box)) for name, box in boxes if dice.random() < 0.9]
    seen.append((COCO_OBJECTS[dice.integers(80)], np.array([5.0, 5.0, size_wh[0] / 2, size_wh[1] / 2])))
    records = []
    for name, box in seen:
        sides = np.tile(box[2:] - box[:2], 2)
        x1, y1, x2, y2 = box + dice.normal(0, 0.04, 4) * sides
        records.append(
            {
                "image_id": image_id,
                "category_id": COCO_OBJECTS.index(name) + 1,
                "bbox": [x1, y1, max(x2 - x1, 2), max(y2 - y1, 2)],
                "score": float(dice.uniform(0.3, 1)),
            }
        )
    return records


def _command() -> None:
    parser = argparse.ArgumentParser(description="Writes the tree and prints the overrides that read it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--train", type=int, default=24)
    parser.add_argument("--test", type=int, default=12)
    options = parser.parse_args()
    total = options.train + options.test
    source = made_up(total) if options.annotations is None else json.loads(options.annotations.read_text())
    for override in [*write_rehearsal(options.folder, source, options.train, options.test), *SMALL]:
        print(override)


if __name__ == "__main__":
    _command()
