"""Everyday names of things to the names that COCO's classes have, for phrases as people write them."""

from __future__ import annotations

from functools import lru_cache

from hoi.datasets.coco import COCO_OBJECTS
from hoi.prompts import spaced
from hoi.vocabulary import PERSON

EVERYDAY_NAMES = {
    "airplane": ("aeroplane", "plane", "aircraft", "jet"),
    "backpack": ("rucksack",),
    "baseball bat": ("bat",),
    "baseball glove": ("baseball mitt",),
    "bicycle": ("bike", "mountain bike", "push bike"),
    "boat": ("sailboat", "rowboat"),
    "car": ("automobile",),
    "cell phone": ("phone", "mobile phone", "cellphone", "smartphone", "mobile", "telephone"),
    "couch": ("sofa",),
    "cow": ("cattle", "bull", "calf"),
    "cup": ("mug",),
    "dining table": ("table",),
    "dog": ("puppy",),
    "donut": ("doughnut",),
    "hair drier": ("hair dryer", "hairdryer"),
    "handbag": ("purse",),
    "horse": ("pony",),
    "keyboard": ("computer keyboard",),
    "laptop": ("laptop computer", "notebook computer"),
    "motorcycle": ("motorbike", "moped", "motor scooter"),
    "mouse": ("computer mouse",),
    PERSON: ("man", "woman", "child", "kid", "boy", "girl", "baby", "people", "men", "women", "children"),
    "potted plant": ("house plant", "houseplant"),
    "refrigerator": ("fridge",),
    "remote": ("remote control",),
    "sheep": ("lamb",),
    "skis": ("ski",),
    "sports ball": ("ball", "football", "soccer ball", "basketball", "volleyball", "baseball", "tennis ball"),
    "suitcase": ("luggage",),
    "teddy bear": ("teddy",),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "tie": ("necktie",),
    "truck": ("lorry", "pickup"),
    "tv": ("television", "tv set", "monitor"),
    "wine glass": ("wineglass",),
}
"""COCO class → other names of such things. [choice]"""


@lru_cache(maxsize=1)
def _by_name() -> dict[str, str]:
    return {other: name for name, others in EVERYDAY_NAMES.items() for other in others}


def usual_name(name: str) -> str:
    """A thing's name to the one that COCO has for it, with underscores; its own where COCO has none.

    "park bench", which COCO does not have, is the kind of bench that its last word says.
    """
    words = singular(spaced(name).lower())
    if words in COCO_OBJECTS:
        return name if words == spaced(name).lower() else words.replace(" ", "_")
    head = singular(words.split(" ")[-1])
    known = _by_name().get(words) or (head if head in COCO_OBJECTS else None)
    return name if known is None else known.replace(" ", "_")


def singular(words: str) -> str:
    """A plural whose singular is known to it; anything else as it is."""
    known = {*COCO_OBJECTS, *_by_name()}
    endings = [("ies", "y"), ("ves", "fe"), ("es", ""), ("s", "")]
    forms = [words.removesuffix(end) + other for end, other in endings if words.endswith(end)]
    return words if words in known else next((form for form in forms if form in known), words)


def known_things() -> frozenset[str]:
    """COCO's classes and their everyday names, in words."""
    return frozenset({*COCO_OBJECTS, *_by_name()})
