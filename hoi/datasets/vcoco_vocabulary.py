"""V-COCO's interactions: 25 action-role pairs with the objects that they admit, and four actions without any object.

V-COCO names actions and roles, and no object classes. Which of COCO's 80 classes an action-role pair admits is written
down here by common sense, from the meaning of the words; no annotation was counted for it. [choice]
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.vcoco_actions import KEYS
from hoi.prompts import a_object
from hoi.vocabulary import NO_OBJECT, Vocabulary

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
"""Key of the evaluation → its wordings, each with the objects that take it. `{}` is the object with its article. An
object outside all lists takes the first wording where every object is admitted."""


@lru_cache(maxsize=2)
def vcoco_vocabulary(admitted: Admitted) -> Vocabulary:
    """COCO's 80 objects and `no_object`; the 29 keys of the evaluation as verbs; a phrase for each interaction.

    Args:
        admitted: `common_sense` for the objects listed above; `all` for every object with each of the 25 action-role
            pairs, 2,004 interactions.

    Returns:
        Interactions by key, then by object, each in its own order.
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
