"""A small V-COCO: drawn images under COCO's names, with annotation files in the two published formats.

Every image has the same people: ANNA kicks a ball, hits it with a racket and stands; BEN smiles, and looks at something
that has no box; CARL is not annotated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hoi.datasets.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi.datasets.vcoco import ROLES, split_ids
from hoi.world import render, sample_scene

SIZE_PX = 192
XYWH = {
    "anna": ("person", [10.0, 10.0, 40.0, 90.0]),
    "ben": ("person", [100.5, 20.0, 30.0, 80.0]),
    "carl": ("person", [150.0, 90.0, 30.0, 60.0]),
    "ball": ("sports ball", [40.0, 90.0, 20.0, 20.0]),
    "racket": ("tennis racket", [45.0, 30.0, 30.0, 20.0]),
}
NUMBER = {name: number for number, name in enumerate(XYWH, start=1)}
DOES: dict[str, dict[str, dict[str, str | None]]] = {
    "anna": {"kick": {"obj": "ball"}, "hit": {"instr": "racket", "obj": "ball"}, "stand": {}},
    "ben": {"smile": {}, "look": {"obj": None}},
}
COUNTS = {"train": 6, "validation": 3, "test": 4}
PARTS = {"train": "train", "validation": "val", "test": "test"}


def edges(name: str) -> list[float]:
    """Return the box of a person or object as pixel edges."""
    x, y, width, height = XYWH[name][1]
    return [x, y, x + width, y + height]


def ids_of(split: str) -> tuple[int, ...]:
    return split_ids()[split][: COUNTS[split]]


def write_images(root: Path) -> Path:
    """Write the images in COCO's folders of 2014; return the path of the list of their ids."""
    for split, folder in (("train", "train2014"), ("validation", "train2014"), ("test", "val2014")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index, number in enumerate(ids_of(split)):
            pixels = render(sample_scene(0, "train", index))
            Image.fromarray(pixels).save(root / folder / f"COCO_{folder}_{number:012d}.jpg")
    (root / "ids.txt").write_text("\n".join(str(number) for split in COUNTS for number in ids_of(split)))
    return root / "ids.txt"


def label_file(ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the actions in V-COCO's own format."""
    actions = []
    for action, roles in ROLES:
        people = [(number, person) for number in ids for person in DOES]
        ids_of_roles = [[number * 10 + NUMBER[person] for number, person in people]]
        for role in roles:
            named = [DOES[person].get(action, {}).get(role) for _, person in people]
            ids_of_roles.append(
                [number * 10 + NUMBER[name] if name else 0 for (number, _), name in zip(people, named, strict=True)]
            )
        actions.append(
            {
                "action_name": action,
                "role_name": ["agent", *roles],
                "include": [[] for _ in range(len(roles) + 1)],
                "image_id": [number for number, _ in people],
                "ann_id": ids_of_roles[0],
                "label": [int(action in DOES[person]) for _, person in people],
                "role_object_id": [role_id for row in ids_of_roles for role_id in row],
            }
        )
    return actions


def instances(ids: Sequence[int]) -> dict[str, Any]:
    """Return the instances in COCO's format."""
    category_of = dict(zip(COCO_OBJECTS, COCO_CATEGORY_IDS, strict=True))
    return {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": SIZE_PX, "height": SIZE_PX} for n in ids],
        "annotations": [
            {
                "id": number * 10 + NUMBER[name],
                "image_id": number,
                "category_id": category_of[category],
                "bbox": bbox,
                "area": bbox[2] * bbox[3],
                "iscrowd": 0,
            }
            for number in ids
            for name, (category, bbox) in XYWH.items()
        ],
        "categories": [{"id": number, "name": name} for name, number in category_of.items()],
    }


def pair_file(ids: Sequence[int]) -> dict[str, Any]:
    """Return the pairs in fredzzhang's format, which has those with two boxes alone."""
    classes = [f"{action} {role}" for action, roles in ROLES if action != "point" for role in roles]
    objects = ["background", *COCO_OBJECTS]
    pairs = [
        (edges(person), edges(name), classes.index(f"{action} {role}"), objects.index(XYWH[name][0]))
        for person, does in DOES.items()
        for action, roles in does.items()
        for role, name in roles.items()
        if name is not None
    ]
    columns = dict(zip(("boxes_h", "boxes_o", "actions", "objects"), map(list, zip(*pairs, strict=True)), strict=True))
    records = [{**columns, "file_name": f"COCO_train2014_{number:012d}.jpg"} for number in ids]
    return {"annotations": records, "classes": classes, "objects": objects, "images": list(ids), "action_to_object": []}


def write_annotations(folder: Path) -> Path:
    """Write V-COCO's label files, and COCO's instances beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in PARTS.items():
        (folder / f"vcoco_{part}.json").write_text(json.dumps(label_file(ids_of(split))))
    every = [number for split in COUNTS for number in ids_of(split)]
    (folder / "instances_all.json").write_text(json.dumps(instances(every)))
    return folder


def write_detections(folder: Path) -> tuple[Path, Path]:
    """Write detections of everything but CARL in COCO's format, and the instances file that names them."""
    every = [number for split in COUNTS for number in ids_of(split)]
    content = instances(every)
    detections = [
        {**{k: record[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9 - 0.1 * (record["id"] % 10)}
        for record in content["annotations"]
        if record["id"] % 10 != NUMBER["carl"]
    ]
    results, named = folder / "detections.json", folder / "named.json"
    results.write_text(json.dumps(detections))
    named.write_text(json.dumps({name: content[name] for name in ("images", "categories")}))
    return results, named
