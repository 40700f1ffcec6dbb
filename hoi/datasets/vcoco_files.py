"""V-COCO's annotation files to boxed persons and objects, each with a key of the evaluation.

Two formats are in use: V-COCO's own label files with COCO's instances, which know of every person and of roles without
a box; and fredzzhang's JSON of pairs, which has 24 of the 25 action-role pairs, and no action without object.

Letters: R pairs.

Source: s-gupta/v-coco; fredzzhang/vcoco.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi.datasets.vcoco_actions import ACTION_ROLES, ACTIONS, KEYS
from hoi.errors import UserError
from hoi.evaluation.json_lines import read_bytes
from hoi.evaluation.vcoco_truth import VcocoSplit
from hoi.vocabulary import NO_OBJECT

PAIRS = "fredzzhang's V-COCO JSON: annotations, images, classes and objects"


@dataclass(frozen=True)
class VcocoPairs:
    """Annotated pairs of some images, laid flat.

    Args:
        image_ids: n COCO ids of all images of the file, those without a pair among them.
        image: int64 [R], COCO id of each pair's image.
        boxes_h, boxes_o: float32 [R, 4], pixel-edge; the human's box twice for an action without object.
        keys: R names out of the evaluation's 29 `KEYS`.
        objects: R COCO names, or `no_object`.
    """

    image_ids: tuple[int, ...]
    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    keys: tuple[str, ...]
    objects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image)


def pairs_of_truth(split: VcocoSplit) -> VcocoPairs:
    """V-COCO's own annotation to the pairs that it boxes, and its persons that act without object.

    A role without a box gives no pair; the evaluation counts it all the same.
    """
    truth, name_of = split.truth, dict(zip(COCO_CATEGORY_IDS, COCO_OBJECTS, strict=True))
    persons, roles = np.nonzero(truth.has_role)
    agents = [action for action in ACTIONS if f"{action}_agent" in KEYS]
    actors, acts = np.nonzero(truth.does[:, [ACTIONS.index(action) for action in agents]])
    every = np.concatenate([persons, actors])
    return VcocoPairs(
        tuple(split.image_ids),
        np.array(split.image_ids, np.int64)[truth.image[every]],
        truth.boxes_h[every].astype(np.float32),
        np.concatenate([truth.role_boxes[persons, roles], truth.boxes_h[actors]]).astype(np.float32),
        (*("_".join(ACTION_ROLES[role]) for role in roles), *(f"{agents[act]}_agent" for act in acts)),
        (*(name_of[i] for i in split.role_category[persons, roles].tolist()), *[NO_OBJECT] * len(actors)),
    )


def read_pairs(path: Path) -> VcocoPairs:
    """fredzzhang's JSON, gzipped or not, to its pairs.

    Raises:
        UserError: no such file, another format, or a wrong record, named.
    """
    try:
        plain = json.loads(read_bytes(path, "annotations"))
    except ValueError as error:
        raise UserError("this file is no JSON", where=path, expected=PAIRS, got=error) from None
    _check_header(plain, path)
    keys = ["_".join(name.split()) for name in plain["classes"]]
    rows: list[tuple[int, list[float], list[float], str, str]] = []
    for position, (image_id, record) in enumerate(zip(plain["images"], plain["annotations"], strict=True)):
        where = f"{path}, annotation {position}"
        try:
            columns = [record[name] for name in ("boxes_h", "boxes_o", "actions", "objects")]
            if int(re.findall(r"\d+", record["file_name"])[-1]) != image_id:
                raise UserError(
                    "image id and file name differ", where=where, expected=image_id, got=record["file_name"]
                )
            for box_h, box_o, action, thing in zip(*columns, strict=True):
                rows.append((image_id, _box(box_h), _box(box_o), keys[action], plain["objects"][thing]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                "an annotation is not understood",
                where=where,
                expected="file_name; boxes_h, boxes_o, actions and objects of one length; finite boxes",
                got=f"{type(error).__name__}: {error}",
            ) from None
    images, boxes_h, boxes_o, of_key, objects = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return VcocoPairs(
        tuple(plain["images"]),
        np.array(images, np.int64),
        np.array(boxes_h, np.float32).reshape(-1, 4),
        np.array(boxes_o, np.float32).reshape(-1, 4),
        tuple(of_key),
        tuple(objects),
    )


def _check_header(plain: Any, path: Path) -> None:
    is_known = isinstance(plain, dict) and {"annotations", "images", "classes", "objects"} <= plain.keys()
    if not is_known or len(plain["images"]) != len(plain["annotations"]):
        got = ", ".join(map(str, list(plain)[:6])) if isinstance(plain, dict) else type(plain).__name__
        raise UserError("this is no V-COCO file of pairs", where=path, expected=PAIRS, got=got[:200])
    foreign = [name for name in plain["classes"] if "_".join(name.split()) not in KEYS]
    foreign += [name for name in plain["objects"] if name not in (*COCO_OBJECTS, "background")]
    if foreign:
        raise UserError("a V-COCO file of pairs names what V-COCO does not have", where=path, got=", ".join(foreign))


def _box(value: Any) -> list[float]:
    x1, y1, x2, y2 = (float(edge) for edge in value)
    if not (np.isfinite([x1, y1, x2, y2]).all() and x1 <= x2 and y1 <= y2):
        raise ValueError(f"box {value}")
    return [x1, y1, x2, y2]
