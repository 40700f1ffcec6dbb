"""V-COCO: its images, splits and vocabulary. No label file is opened here."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from hoi.config import VcocoDataset
from hoi.datasets import Dataset
from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.images import hash_point, read_image
from hoi.errors import UserError
from hoi.files import read_lines
from hoi.prompts import a_object
from hoi.vocabulary import NO_OBJECT, Vocabulary

IDS = Path(__file__).parent / "data" / "vcoco_ids.json"
LAYOUTS = {
    "train2014": "COCO_train2014_{:012d}.jpg",
    "val2014": "COCO_val2014_{:012d}.jpg",
    "train2017": "{:012d}.jpg",
    "val2017": "{:012d}.jpg",
    ".": "{:012d}.jpg",
}
"""Folder → name of an image in it. COCO dealt the same images anew in 2017, so a split's images may be in both."""


@lru_cache(maxsize=1)
def split_ids() -> dict[str, tuple[int, ...]]:
    """Return the COCO image ids of V-COCO's splits, ascending; `trainval` is `train` and `validation`."""
    ids = {name: tuple(rows) for name, rows in json.loads(IDS.read_text()).items() if name != "source"}
    return {**ids, "trainval": tuple(sorted(ids["train"] + ids["validation"]))}


class VcocoImages:
    """One split of V-COCO; the image id is COCO's, in decimal, whatever the layout of the files."""

    def __init__(self, config: VcocoDataset, split: str) -> None:
        root = Path(config.images)
        self._layouts = [(root / folder, name) for folder, name in LAYOUTS.items() if (root / folder).is_dir()]
        if len(self._layouts) > 1:
            # `.` is always there: it counts only where no folder of COCO's is.
            self._layouts.pop()
        if split == "test":
            self._layouts.sort(key=lambda layout: layout[0].name != "val2014")
        if not self._layouts:
            expected = "a folder that holds train2014 and val2014, or train2017 and val2017"
            problem, fix = "there is no such folder of COCO images", "set dataset.images"
            raise UserError(problem, where=config.images, expected=expected, fix=fix)
        self._max_image_pixels = config.max_image_pixels
        share = {str(name): share for name, share in config.splits.items()}[split]
        listed = None if config.image_list is None else read_id_list(config.image_list)
        self.image_ids = [
            str(number)
            for number in split_ids()[split]
            if (listed is None or number in listed) and hash_point(str(number)) < share
        ]

    def path(self, row: int) -> Path:
        """Return the file of a row, or where it should be in the first folder."""
        number = int(self.image_ids[row])
        paths = [folder / name.format(number) for folder, name in self._layouts]
        return next((path for path in paths if path.is_file()), paths[0])

    def read(self, row: int) -> np.ndarray:
        return read_image(self.path(row), self._max_image_pixels)


@lru_cache(maxsize=8)
def read_id_list(path: str) -> frozenset[int]:
    """Return the COCO image ids of a text file, one a line. Raises UserError: no such file, or no image of V-COCO's."""
    lines = read_lines(path, "COCO image ids, one a line", "set dataset.image_list")
    id_of = {str(image_id): image_id for of_split in split_ids().values() for image_id in of_split}
    listed = {line.strip().lstrip("0"): number for number, line in enumerate(lines, start=1) if line.strip()}
    for text, number in listed.items():
        if text not in id_of:
            problem, where = "a listed image is none of V-COCO's", f"{path}, line {number}"
            raise UserError(problem, where=where, expected="a COCO image id, as 294", got=text[:80])
    return frozenset(map(id_of.__getitem__, listed))


Admitted = Literal["common_sense", "all"]
Wordings = tuple[tuple[str, tuple[str, ...]], ...]

CYCLES = ("bicycle", "motorcycle")
CABINS = ("car", "airplane", "bus", "train", "truck", "boat")
MOUNTS = ("horse", "cow", "elephant")
PETS = ("bird", "cat", "dog")
SEATS = ("bench", "chair", "couch", "bed", "toilet")
BAGS = ("backpack", "umbrella", "handbag", "tie", "suitcase")
BOARDS = ("skis", "snowboard", "skateboard", "surfboard")
THROWN = ("frisbee", "sports ball")
SWUNG = ("baseball bat", "tennis racket")
TABLEWARE = ("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl")
FOOD = ("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake")
DEVICES = ("laptop", "mouse", "remote", "keyboard", "cell phone")
SMALL = ("book", "clock", "vase", "scissors", "teddy bear", "potted plant")
SPORTS = (*BOARDS, *THROWN, *SWUNG, "kite", "baseball glove")
PORTABLE = ("person", *PETS, *BAGS, *SPORTS, *TABLEWARE, *FOOD, *DEVICES, *SMALL, "bicycle", "chair")

WORDINGS: dict[str, Wordings] = {
    "hold_obj": (("holding {}", (*PORTABLE, "motorcycle", "horse", "stop sign", "hair drier", "toothbrush")),),
    "stand_agent": (("standing", ()),),
    "sit_instr": (
        ("sitting on {}", (*SEATS, *CYCLES, *MOUNTS, "skateboard", "surfboard", "snowboard", "suitcase")),
        ("sitting in {}", CABINS),
        ("sitting at {}", ("dining table",)),
    ),
    "ride_instr": (("riding {}", (*CYCLES, *CABINS, *MOUNTS, "skateboard", "surfboard", "snowboard")),),
    "walk_agent": (("walking", ()),),
    "look_obj": (("looking at {}", COCO_OBJECTS),),
    "hit_instr": (("hitting something with {}", SWUNG),),
    "hit_obj": (("hitting {}", ("sports ball",)),),
    "eat_obj": (("eating {}", FOOD),),
    "eat_instr": (("eating with {}", ("fork", "knife", "spoon")),),
    "jump_instr": (("jumping on {}", (*BOARDS, *CYCLES, "horse", "bed")),),
    "lay_instr": (("lying on {}", ("bed", "couch", "bench", "chair", "surfboard", "skateboard", "dining table")),),
    "talk_on_phone_instr": (("talking on {}", ("cell phone",)),),
    "carry_obj": (("carrying {}", PORTABLE),),
    "throw_obj": (("throwing {}", (*THROWN, "teddy bear")),),
    "catch_obj": (("catching {}", THROWN),),
    "cut_instr": (("cutting something with {}", ("knife", "scissors", "fork")),),
    "cut_obj": (("cutting {}", (*FOOD, "potted plant")), ("cutting the hair of {}", ("person",))),
    "run_agent": (("running", ()),),
    "work_on_computer_instr": (
        ("working on {}", ("laptop",)),
        ("working on a computer with {}", ("keyboard", "mouse", "tv")),
    ),
    "ski_instr": (("skiing on {}", ("skis",)),),
    "surf_instr": (("surfing on {}", ("surfboard",)),),
    "skateboard_instr": (("skateboarding on {}", ("skateboard",)),),
    "smile_agent": (("smiling", ()),),
    "drink_instr": (("drinking from {}", ("cup", "wine glass", "bottle", "bowl")),),
    "kick_obj": (("kicking {}", ("sports ball",)),),
    "point_instr": (("pointing at {}", COCO_OBJECTS),),
    "read_obj": (("reading {}", ("book",)), ("reading something on {}", ("laptop", "cell phone"))),
    "snowboard_instr": (("snowboarding on {}", ("snowboard",)),),
}
"""Key of the evaluation, in V-COCO's own order → its wordings, each with the objects that take it. `{}` is the object
with its article. An object outside all lists takes the first wording where every object is admitted."""

KEYS = tuple(WORDINGS)
"""The 29 scores of a row: 25 action-role pairs, and the agent of the four actions without a role."""
_PARTS = [key.rpartition("_") for key in KEYS]
ACTIONS = tuple(dict.fromkeys(action for action, _, _ in _PARTS))
ACTION_ROLES = tuple((action, role) for action, _, role in _PARTS if role != "agent")
ROLES = tuple((action, tuple(role for other, role in ACTION_ROLES if other == action)) for action in ACTIONS)
"""V-COCO's 26 actions in its own order, each with the roles that an object may have."""


@lru_cache(maxsize=2)
def vcoco_vocabulary(admitted: Admitted) -> Vocabulary:
    """Return COCO's 80 objects and `no_object`, the 29 keys of the evaluation as verbs, and a phrase for each pair.

    `common_sense` admits the objects listed above; `all` every object with each of the 25 action-role pairs.
    """
    interactions, phrases = [], []
    for key in KEYS:
        wording_of = {name: wording for wording, names in WORDINGS[key] for name in names}
        first = WORDINGS[key][0][0]
        if key.endswith("_agent"):
            interactions.append((key, NO_OBJECT))
            phrases.append(first)
            continue
        for name in COCO_OBJECTS:
            if name in wording_of or admitted == "all":
                interactions.append((key, name))
                phrases.append(wording_of.get(name, first).format(a_object(name)))
    return Vocabulary((*COCO_OBJECTS, NO_OBJECT), KEYS, tuple(interactions), tuple(phrases))


class Vcoco(Dataset[VcocoDataset]):
    def images(self, split: str) -> VcocoImages:
        return VcocoImages(self.settings, split)

    def vocabulary(self) -> Vocabulary:
        return vcoco_vocabulary(self.settings.vocabulary)
