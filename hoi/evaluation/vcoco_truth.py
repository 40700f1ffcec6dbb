"""V-COCO's label file and COCO's instances to the persons that `vcoco.evaluate` asks for.

A label file (`vcoco_{train,val,trainval,test}.json`) holds 26 actions with parallel lists `image_id`, `ann_id`, `label`
and, flat over roles, `role_object_id`; its ids are those of COCO's instances, which hold the boxes.

Source: s-gupta/v-coco, vsrl_utils.py and vsrl_eval.py. Boxes there: x2 = x1 + max(0, w - 1), clipped to the image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.vcoco_actions import ACTION_ROLES, ACTIONS
from hoi.errors import UserError
from hoi.evaluation.json_lines import read_bytes
from hoi.evaluation.vcoco import VcocoTruth

LABELS = "V-COCO's label file, a list of 26 actions with image_id, ann_id, label and role_object_id"
INSTANCES = "COCO's instances with the boxes of these images: images and annotations"
PERSON_CATEGORY = 1


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
