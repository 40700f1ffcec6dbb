"""V-COCO's annotation files.

Two formats are in use: V-COCO's own label files with COCO's instances, which know of every person and of roles without
a box; and fredzzhang's JSON of pairs, which has 24 of the 25 action-role pairs, and no action without object.

Shapes: H persons, A actions, Q action-role pairs, R pairs, n images of a file.

Source: s-gupta/v-coco; fredzzhang/vcoco.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.datasets.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi.datasets.vcoco import ACTION_ROLES, ACTIONS, KEYS
from hoi.errors import UserError
from hoi.json_lines import read_json_file, refuse_repeats, shown
from hoi.vocabulary import NO_OBJECT

LABELS = "V-COCO's label file, a list of 26 actions with image_id, ann_id, label and role_object_id"
INSTANCES = "COCO's instances with the boxes of these images: images and annotations"
PAIRS = "fredzzhang's V-COCO JSON: annotations, images, classes and objects"
PERSON_CATEGORY = 1


@dataclass(frozen=True)
class VcocoTruth:
    """All person boxes of a split, with what is annotated of them."""

    image: np.ndarray  # int64 [H], row of the split
    boxes_h: np.ndarray  # float [H, 4], pixel-edge
    is_annotated: np.ndarray  # bool [H]; a prediction that is matched to another person is ignored
    does: np.ndarray  # bool [H, A]
    role_boxes: np.ndarray  # float [H, Q, 4], read where has_role is True
    has_role: np.ndarray  # bool [H, Q], whether the role's object is visible and boxed


@dataclass(frozen=True)
class VcocoLabelFile:
    """V-COCO's own label file, without boxes."""

    path: Path
    actions: list[dict[str, Any]]  # its 26 records
    image_ids: list[int]  # n, ascending


@dataclass(frozen=True)
class VcocoSplit:
    """A label file joined to COCO's boxes."""

    image_ids: list[int]  # n, ascending
    size_hw: np.ndarray  # int64 [n, 2], pixels
    truth: VcocoTruth
    role_category: np.ndarray  # int64 [H, Q], COCO's category of each role's object, read where truth.has_role is True
    instances: Path  # the file that held the boxes


@dataclass(frozen=True)
class VcocoPairs:
    """Annotated pairs of some images, laid flat."""

    image_ids: tuple[int, ...]  # n COCO ids of all images of the file, those without a pair among them
    image: np.ndarray  # int64 [R], COCO id of each pair's image
    boxes_h: np.ndarray  # float32 [R, 4], pixel-edge
    boxes_o: np.ndarray  # float32 [R, 4]; the human's box again for an action without object
    keys: tuple[str, ...]  # R of the evaluation's 29 KEYS
    objects: tuple[str, ...]  # R COCO names, or no_object

    def __len__(self) -> int:
        return len(self.image)


def read_labels(path: Path) -> VcocoLabelFile:
    """Read V-COCO's own label file, gzipped or not. Raises UserError: it is missing, or something else."""
    actions = read_json_file(path, "annotations", LABELS)
    keys = {"action_name", "role_name", "image_id", "ann_id", "label", "role_object_id"}
    is_labels = isinstance(actions, list) and all(isinstance(a, dict) and keys <= a.keys() for a in actions)
    if not is_labels or sorted(str(action["action_name"]) for action in actions) != sorted(ACTIONS):
        raise UserError("this is no V-COCO label file", where=path, expected=LABELS, got=_keys_of(actions))
    for action in actions:
        columns = [action[key] for key in ("ann_id", "image_id", "label", "role_name", "role_object_id")]
        num, *others, num_roles, num_objects = (len(c) if isinstance(c, list) else -1 for c in columns)
        if {*others} != {num} or num_objects != num_roles * num or num < 0:
            raise UserError(
                "the lists of an action differ in length",
                where=f"{path}, action {action['action_name']}",
                expected=f"{num} of image_id and label, {num_roles} x {num} of role_object_id",
            )
        if wrong := [value for value in action["image_id"] if type(value) is not int]:
            raise UserError("an image id is no whole number", where=path, got=shown(wrong[0]))
    return VcocoLabelFile(path, actions, sorted(set(actions[0]["image_id"])))


def _keys_of(plain: Any) -> str:
    return (", ".join(map(str, list(plain)[:6])) if isinstance(plain, dict) else type(plain).__name__)[:200]


def join_instances(labels: VcocoLabelFile, instances: Path | None = None, fix: str = "--instances FILE") -> VcocoSplit:
    """Join labels to COCO's boxes; without `instances`, the first `instances*.json` beside them that holds the boxes.

    Raises UserError: there are no instances (`fix` is the next step), or they do not fit the labels.
    """
    path, content = _read_instances(labels, instances, fix)
    row_of = {image_id: row for row, image_id in enumerate(labels.image_ids)}
    try:
        refuse_repeats((image["id"] for image in content["images"]), "an image id", path, "images")
        refuse_repeats((record["id"] for record in content["annotations"]), "an annotation id", path, "annotations")
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        truth, role_category = _truth(labels, content, row_of, sizes, path)
        size_hw = np.array([sizes[i] for i in labels.image_ids], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else error
        expected = "images [{id, width, height}] and annotations [{id, image_id, category_id, bbox}]"
        raise UserError("these instances are not understood", where=path, expected=expected, got=got) from None
    return VcocoSplit(labels.image_ids, size_hw, truth, role_category, path)


def _read_instances(labels: VcocoLabelFile, instances: Path | None, fix: str) -> tuple[Path, dict[str, Any]]:
    wanted = set(labels.image_ids)
    paths = [instances] if instances is not None else sorted(labels.path.resolve().parent.glob("instances*.json*"))
    for path in paths:
        content = read_json_file(path, "annotations", INSTANCES)
        is_instances = isinstance(content, dict) and {"images", "annotations"} <= content.keys()
        is_instances = is_instances and isinstance(content["images"], list)
        is_instances = is_instances and all(isinstance(image, dict) for image in content["images"])
        there = {i for image in content["images"] if type(i := image.get("id")) is int} if is_instances else set()
        missing = wanted - there
        if not missing:
            return path, content
        if instances is not None:
            got = f"no image {min(missing)}" if is_instances else "another format"
            raise UserError("these instances do not fit the labels", where=path, expected=INSTANCES, got=got)
    raise UserError(
        "V-COCO's label file holds no boxes, and no file beside it does",
        where=labels.path,
        expected=f"instances*.json in its folder, {INSTANCES}",
        got=", ".join(path.name for path in paths) or "none",
        fix=fix,
    )


def _truth(
    labels: VcocoLabelFile,
    instances: dict[str, Any],
    row_of_image: dict[int, int],
    sizes: dict[int, tuple[int, int]],
    path: Path,
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
    for action in labels.actions:
        name, roles = action["action_name"], action["role_name"]
        role_ids = np.array(action["role_object_id"]).reshape(len(roles), -1).T.tolist()
        for ann_id, label, ids in zip(action["ann_id"], action["label"], role_ids, strict=True):
            expected = f"{ann_id}, named by {labels.path}"
            if ann_id not in person_of:
                raise UserError("an annotated person has no box", where=path, expected=expected)
            person = person_of[ann_id]
            is_annotated[person] = True
            does[person, ACTIONS.index(name)] = label == 1
            for role, object_id in zip(roles, ids, strict=True):
                if role == "agent" or label != 1 or not object_id:
                    continue
                if object_id not in box_of:
                    expected = f"{object_id}, named by {labels.path}"
                    raise UserError("a role has no box", where=path, expected=expected)
                column, box = ACTION_ROLES.index((name, role)), box_of[object_id]
                has_role[person, column], role_boxes[person, column] = True, edges[box]
                role_category[person, column] = records[box]["category_id"]
    image = np.array([row_of_image[records[row]["image_id"]] for row in persons], np.int64)
    return VcocoTruth(image, edges[persons], is_annotated, does, role_boxes, has_role), role_category


def _edges(records: list[dict[str, Any]], sizes: dict[int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    # Whether vsrl_eval keeps each of COCO's boxes, bool [N], and their pixel edges [N, 4].
    xywh = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
    last_pixel = np.array([sizes[record["image_id"]][::-1] for record in records], np.float64).reshape(-1, 2) - 1
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + np.maximum(xywh[:, 2:] - 1, 0)], axis=1)
    corners = corners.clip(0, np.tile(last_pixel, 2))
    has_area = np.array([record.get("area", 1) > 0 for record in records], bool)
    return has_area & (corners[:, 2:] > corners[:, :2]).all(axis=1), corners + np.array([0, 0, 1, 1])


def pairs_of_truth(split: VcocoSplit) -> VcocoPairs:
    """Return the pairs that V-COCO boxes, and its persons that act without object; a role without a box gives none."""
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
    """Read fredzzhang's JSON of pairs, gzipped or not. Raises UserError: another format, or a wrong record."""
    plain = read_json_file(path, "annotations", PAIRS)
    is_known = isinstance(plain, dict) and {"annotations", "images", "classes", "objects"} <= plain.keys()
    if not is_known or len(plain["images"]) != len(plain["annotations"]):
        raise UserError("this is no V-COCO file of pairs", where=path, expected=PAIRS, got=_keys_of(plain))
    foreign = [name for name in plain["classes"] if "_".join(name.split()) not in KEYS]
    foreign += [name for name in plain["objects"] if name not in (*COCO_OBJECTS, "background")]
    if foreign:
        raise UserError("a V-COCO file of pairs names what V-COCO does not have", where=path, got=", ".join(foreign))
    keys = ["_".join(name.split()) for name in plain["classes"]]
    rows: list[tuple[int, list[float], list[float], str, str]] = []
    for position, (image_id, record) in enumerate(zip(plain["images"], plain["annotations"], strict=True)):
        where = f"{path}, annotation {position}"
        try:
            name, columns = record["file_name"], [record[n] for n in ("boxes_h", "boxes_o", "actions", "objects")]
            if int(re.findall(r"\d+", name)[-1]) != image_id:
                raise UserError("image id and file name differ", where=where, expected=image_id, got=name)
            for box_h, box_o, action, obj in zip(*columns, strict=True):
                rows.append((image_id, _box(box_h), _box(box_o), keys[action], plain["objects"][obj]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            expected = "file_name; boxes_h, boxes_o, actions and objects of one length; finite boxes"
            got = f"{type(error).__name__}: {error}"
            raise UserError("an annotation is not understood", where=where, expected=expected, got=got) from None
    images, boxes_h, boxes_o, of_key, objects = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    edges_h, edges_o = (np.array(column, np.float32).reshape(-1, 4) for column in (boxes_h, boxes_o))
    image = np.array(images, np.int64)
    return VcocoPairs(tuple(plain["images"]), image, edges_h, edges_o, tuple(of_key), tuple(objects))


def _box(value: Any) -> list[float]:
    x1, y1, x2, y2 = (float(edge) for edge in value)
    if not (np.isfinite([x1, y1, x2, y2]).all() and x1 <= x2 and y1 <= y2):
        raise ValueError(f"box {value}")
    return [x1, y1, x2, y2]
