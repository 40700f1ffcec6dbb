"""Names of the embedded world: objects, verbs, interactions, and which verbs can occur together on one pair.

`COMBINATIONS` is the source: an interaction exists where a drawable combination contains it.
"""

from __future__ import annotations

WORLD_VERSION: int = 1
SIZE_PX = 192
"""Side of every scene, in pixels."""

SPLITS: dict[str, int] = {"train": 800, "validation": 300, "test": 500}
"""Scenes per split of the committed world. An index beyond the count is a valid scene, too."""

TRAINING_SPLITS = ("clip", "detector")
"""Splits that the CLIP, the captioner and the detector are trained on; of any length, with a flat prior."""

NO_INTERACTION = "no_interaction"
VERBS: tuple[str, ...] = (
    "ride",
    "sit_on",
    "hold",
    "lift",
    "throw",
    "kick",
    "pull",
    "push",
    "pet",
    "jump_over",
    NO_INTERACTION,
)

# Weight of each drawable combination of verbs of an object. All verbs of a combination show in its pose (poses.py).
_WEIGHTED: dict[str, str] = {
    "bicycle": "ride+sit_on+hold 7, ride+sit_on 2, ride+hold 2, sit_on 2, sit_on+hold 2, hold 4, push 2, hold+push 3,"
    " lift 3, hold+lift 3, jump_over 5",
    "horse": "ride+sit_on+hold 6, ride+sit_on 3, sit_on 2, sit_on+pet 2, ride+sit_on+hold+pet 5, hold 4, hold+pull 5,"
    " pet 4, hold+pet 3, push 5",
    "skateboard": "ride 5, ride+hold 2, sit_on 3, sit_on+hold 2, hold 4, lift 3, hold+lift 3, throw 4, hold+throw 2,"
    " kick 5, jump_over 5",
    "ball": "hold 3, lift 3, hold+lift 3, throw 4, hold+throw 3, kick 6, push 4, sit_on 3, sit_on+hold 3, jump_over 4",
    "umbrella": "hold 5, hold+lift 6, throw 4, hold+throw 3, kick 5, jump_over 5",
    "dog": "hold 4, hold+pull 6, pet 4, hold+pet 3, lift 3, hold+lift 3, hold+lift+pet 7, jump_over 5",
    "chair": "sit_on 4, sit_on+hold 3, hold 3, lift 3, hold+lift 3, kick 5, pull 2, hold+pull 3, push 3, hold+push 3,"
    " jump_over 5",
    "bench": "sit_on 5, sit_on+hold 4, hold 4, push 5, pull 5, lift 5, jump_over 5",
    "suitcase": "hold 3, hold+pull 5, push 2, hold+push 4, lift 3, hold+lift 4, sit_on 3, sit_on+hold 3, kick 5,"
    " jump_over 5",
    "surfboard": "ride 5, ride+hold 3, hold 4, hold+lift 4, lift 3, sit_on 3, sit_on+hold 3, pull 5, jump_over 5",
    "frisbee": "hold 4, throw 5, hold+throw 4, hold+lift 6, kick 5",
    "box": "hold 3, lift 3, hold+lift 4, throw 5, kick 5, pull 5, push 5, sit_on 3, sit_on+hold 3, jump_over 5",
}

COMBINATIONS = {
    name: tuple(
        (tuple(sorted(verbs.split("+"), key=VERBS.index)), int(weight))
        for verbs, weight in map(str.split, text.split(","))
    )
    for name, text in _WEIGHTED.items()
}
"""Per object: (verbs in the order of VERBS, weight). `no_interaction` is always possible and never listed."""

OBJECTS: tuple[str, ...] = ("person", *COMBINATIONS)

INTERACTIONS: tuple[tuple[str, str], ...] = tuple(
    (verb, name)
    for name in sorted(COMBINATIONS)
    for verb in sorted({verb for verbs, _ in COMBINATIONS[name] for verb in verbs} | {NO_INTERACTION})
)
"""(verb, object), sorted by object then verb."""

INTERACTION_ROW: dict[tuple[str, str], int] = {interaction: row for row, interaction in enumerate(INTERACTIONS)}


def rows_of(name: str, verbs: tuple[str, ...]) -> tuple[int, ...]:
    """Return the ascending interaction rows of an object and its verbs."""
    return tuple(sorted(INTERACTION_ROW[verb, name] for verb in verbs))
