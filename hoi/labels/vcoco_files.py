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
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.errors import UserError
from hoi.json_lines import read_bytes
from hoi.vocabulary import NO_OBJECT

LABELS = "V-COCO's label file, a list of 26 actions with image_id, ann_id, label and role_object_id"
INSTANCES = "COCO's instances with the boxes of these images: images and annotations"
PERSON_CATEGORY = 1


@dataclass(frozen=True)
class VcocoTruth:
    """All person boxes of a split, with what is annotated of them.

    Args:
        image: int64 [H], row of the split.
        boxes_h: float [H, 4].
        is_annotated: bool [H]; a row that is matched to another person is ignored.
        does: bool [H, A].
        role_boxes: float [H, Q, 4], read where `has_role` is True.
        has_role: bool [H, Q], whether the role's object is visible and boxed.
    """

    image: np.ndarray
    boxes_h: np.ndarray
    is_annotated: np.ndarray
    does: np.ndarray
    role_boxes: np.ndarray
    has_role: np.ndarray


@dataclass(frozen=True)
class VcocoLabels:
    """A label file.

    Args:
        path: Where it was read.
        actions: Its 26 records.
        image_ids: I COCO ids, ascending.
    """

    path: Path
    actions: list[dict[str, Any]]
    image_ids: list[int]


@dataclass(frozen=True)
class VcocoSplit:
    """A split of V-COCO with its boxes.

    Args:
        image_ids: I COCO ids, ascending.
        size_hw: int64 [I, 2], pixels.
        truth: Its persons.
        role_category: int64 [H, Q], COCO's category id of each role's object, read where `truth.has_role` is True.
        instances: The file that held the boxes.
    """

    image_ids: list[int]
    size_hw: np.ndarray
    truth: VcocoTruth
    role_category: np.ndarray
    instances: Path


def read_labels(path: Path) -> VcocoLabels:
    """A label file, gzipped or not.

    Raises:
        UserError: it is missing, or something else.
    """
    actions = _read_actions(path)
    return VcocoLabels(path, actions, sorted(set(actions[0]["image_id"])))


def join_instances(labels: VcocoLabels, instances: Path | None = None) -> VcocoSplit:
    """Labels and COCO's boxes to a split.

    Args:
        labels: The label file.
        instances: COCO's instances; None for the first `instances*.json` beside the label file that holds the boxes.

    Raises:
        UserError: there are no instances, or they do not fit the labels.
    """
    found, boxes = _read_instances(labels.path, instances, set(labels.image_ids))
    row_of = {image_id: row for row, image_id in enumerate(labels.image_ids)}
    try:
        sizes = {image["id"]: (image["height"], image["width"]) for image in boxes["images"]}
        truth, role_category = _truth(labels.actions, boxes, row_of, sizes, labels.path, found)
        size_hw = np.array([sizes[i] for i in labels.image_ids], np.int64)
    except (KeyError, TypeError, ValueError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else error
        expected = "images [{id, width, height}] and annotations [{id, image_id, category_id, bbox}]"
        raise UserError("these instances are not understood", where=found, expected=expected, got=got) from None
    return VcocoSplit(labels.image_ids, size_hw, truth, role_category, found)


def read_vcoco(labels: Path, instances: Path | None = None) -> VcocoSplit:
    """Both steps in one: a label file and COCO's instances to a split."""
    return join_instances(read_labels(labels), instances)


def _read_actions(path: Path) -> list[dict[str, Any]]:
    actions = _read(path, LABELS)
    keys = {"action_name", "role_name", "image_id", "ann_id", "label", "role_object_id"}
    is_labels = isinstance(actions, list) and all(isinstance(a, dict) and keys <= a.keys() for a in actions)
    if not is_labels or {action["action_name"] for action in actions} != set(ACTIONS):
        got = ", ".join(map(str, list(actions)[:6])) if isinstance(actions, dict) else type(actions).__name__
        raise UserError("this is no V-COCO label file", where=path, expected=LABELS, got=got[:200])
    for action in actions:
        columns = [action[key] for key in ("ann_id", "image_id", "label", "role_name", "role_object_id")]
        num, *others, num_roles, num_objects = (len(c) if isinstance(c, list) else -1 for c in columns)
        if {*others} != {num} or num_objects != num_roles * num or num < 0:
            raise UserError(
                "the lists of an action differ in length",
                where=f"{path}, action {action['action_name']}",
                expected=f"{num} of image_id and label, {num_roles} x {num} of role_object_id",
            )
    return actions


def _read_instances(labels: Path, instances: Path | None, image_ids: set[int]) -> tuple[Path, dict[str, Any]]:
    paths = [instances] if instances is not None else sorted(labels.resolve().parent.glob("instances*.json*"))
    for path in paths:
        content = _read(path, INSTANCES)
        is_instances = isinstance(content, dict) and {"images", "annotations"} <= content.keys()
        is_instances = is_instances and all(isinstance(image, dict) for image in content["images"])
        missing = image_ids - {image.get("id") for image in content["images"]} if is_instances else image_ids
        if not missing:
            return path, content
        if instances is not None:
            got = f"no image {min(missing)}" if is_instances else "another format"
            raise UserError("these instances do not fit the labels", where=path, expected=INSTANCES, got=got)
    raise UserError(
        "V-COCO's label file holds no boxes, and no file beside it does",
        where=labels,
        expected=f"instances*.json in its folder, {INSTANCES}",
        got=", ".join(path.name for path in paths) or "none",
        fix="--instances FILE",
    )


def _read(path: Path, expected: str) -> Any:
    try:
        return json.loads(read_bytes(path, "annotations"))
    except ValueError as error:
        raise UserError("this file is no JSON", where=path, expected=expected, got=error) from None


def _truth(
    actions: list[dict[str, Any]],
    instances: dict[str, Any],
    row_of_image: dict[int, int],
    sizes: dict[int, tuple[int, int]],
    labels: Path,
    found: Path,
) -> tuple[VcocoTruth, np.ndarray]:
    records = [record for record in instances["annotations"] if record["image_id"] in row_of_image]
    usable, edges = _edges(records, sizes)
    box_of = {record["id"]: row for row, record in enumerate(records) if usable[row]}
    persons = [row for row in box_of.values() if records[row]["category_id"] == PERSON_CATEGORY]
    person_of = {records[row]["id"]: place for place, row in enumerate(persons)}

    num = len(persons)
    is_annotated, does = np.zeros(num, bool), np.zeros((num, len(ACTIONS)), bool)
    has_role, role_boxes = np.zeros((num, len(ACTION_ROLES)), bool), np.zeros((num, len(ACTION_ROLES), 4))
    role_category = np.zeros((num, len(ACTION_ROLES)), np.int64)
    for action in actions:
        name, roles = action["action_name"], action["role_name"]
        role_ids = np.array(action["role_object_id"]).reshape(len(roles), -1).T.tolist()
        for ann_id, label, ids in zip(action["ann_id"], action["label"], role_ids, strict=True):
            if ann_id not in person_of:
                raise UserError("an annotated person has no box", where=found, expected=f"{ann_id}, named by {labels}")
            person = person_of[ann_id]
            is_annotated[person] = True
            does[person, ACTIONS.index(name)] = label == 1
            for role, object_id in zip(roles, ids, strict=True):
                if role == "agent" or label != 1 or not object_id:
                    continue
                if object_id not in box_of:
                    raise UserError("a role has no box", where=found, expected=f"{object_id}, named by {labels}")
                column = ACTION_ROLES.index((name, role))
                has_role[person, column], role_boxes[person, column] = True, edges[box_of[object_id]]
                role_category[person, column] = records[box_of[object_id]]["category_id"]
    image = np.array([row_of_image[records[row]["image_id"]] for row in persons], np.int64)
    return VcocoTruth(image, edges[persons], is_annotated, does, role_boxes, has_role), role_category


def _edges(records: list[dict[str, Any]], sizes: dict[int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """COCO's boxes to whether vsrl_eval keeps them, bool [N], and pixel edges [N, 4]."""
    xywh = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
    last_pixel = np.array([sizes[record["image_id"]][::-1] for record in records], np.float64).reshape(-1, 2) - 1
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + np.maximum(xywh[:, 2:] - 1, 0)], axis=1)
    corners = corners.clip(0, np.tile(last_pixel, 2))
    has_area = np.array([record.get("area", 1) > 0 for record in records], bool)
    return has_area & (corners[:, 2:] > corners[:, :2]).all(axis=1), corners + np.array([0, 0, 1, 1])


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
