"""Poses on or above an object: ride, sit_on, jump_over, with what the hands do meanwhile. Units as in arrange.py."""

from __future__ import annotations

from hoi.world.arrangement import Arrangement
from hoi.world.dice import Dice
from hoi.world.people import Pose
from hoi.world.raster import Point
from hoi.world.things import HEIGHTS, SEATS


def on_bicycle(verbs: str, dice: Dice) -> Arrangement:
    """ride, sit_on, with or without hold."""
    swing = dice.between(-60, 60)
    near_foot, far_foot = (20 + swing, -120), (20 - swing, -270)
    if "ride" not in verbs:
        hands = ((210, -600), (220, -600)) if "hold" in verbs else ((40, -560), (70, -565))
        pose = Pose((-115, -545), (-60, -850), *hands, (130, 0), (60, 0))
    elif verbs == "ride+hold":
        pose = Pose((30, -690), (170, -930), (270, -640), (280, -640), near_foot, far_foot, 20, 20)
    elif "hold" in verbs:
        pose = Pose((-105, -560), (50, -810), (250, -640), (270, -640), near_foot, far_foot, 20, 20)
    else:
        high = dice.between(0, 60)
        pose = Pose((-105, -560), (-70, -870), (80, -1130 + high), (-250, -1120 + high), near_foot, far_foot, 0, 20)
    return Arrangement(pose, 0, layer="between", side="on")


def on_horse(verbs: str, dice: Dice) -> Arrangement:
    """ride, sit_on, with or without hold and pet."""
    gallop = "ride" in verbs
    pose = Pose((-20, -760), (-10, -1070), (100, -790), (120, -800), (60, -360), (70, -350), 0, 15)
    line: tuple[Point, ...] = ()
    if verbs == "ride+sit_on":
        pose = pose._replace(near_hand=(190, -1340), far_hand=(-210, -1340))
    if "hold" in verbs:
        pose = pose._replace(neck=(60, -1060), near_hand=(270, -930), far_hand=(280, -930), near_foot=(-20, -370))
        line = ((270, -930), (540, -830))
    if "pet" in verbs:
        pose = pose._replace(neck=(150, -1020), near_hand=(400, -900), far_hand=(280, -880), nod=30)
        line = ((280, -880), (540, -830)) if gallop else ()
    return Arrangement(pose, 0, layer="between", posture="gallop" if gallop else "", line=line, side="on")


def on_board(name: str, verbs: str, dice: Dice) -> Arrangement:
    """ride, standing on a skateboard or surfboard; with hold, crouched with a hand on it."""
    deck = SEATS[name] + 10
    low = dice.between(0, 60)
    pose = Pose(
        (-20, -deck - 430 + low),
        (40, -deck - 710 + low),
        (290, -deck - 660),
        (-270, -deck - 640),
        (150, -deck),
        (-170, -deck),
    )
    if "hold" in verbs:
        pose = Pose(
            (-60, -deck - 260),
            (120, -deck - 450),
            (200, -deck - 10),
            (-200, -deck - 560),
            (110, -deck),
            (-140, -deck),
            30,
        )
    return Arrangement(pose, 0, layer="held" if "hold" in verbs else "behind")


def seated(name: str, verbs: str, dice: Dice) -> Arrangement:
    """sit_on, hands in the lap; with hold, hands on the object."""
    seat = SEATS[name]
    size = 180 if name == "ball" else 100
    seat = seat * size // 100
    reach = 220 if seat >= 200 else 360 if name == "skateboard" else 400
    lean = dice.between(-30, 10)
    hip, neck = (0, -seat - 58), (lean, -seat - 365)
    foot = 0 if name != "surfboard" else -60
    pose = Pose(hip, neck, (165, -seat - 75), (140, -seat - 80), (reach, foot), (reach + 30, foot))
    x = {"bench": dice.choose((-210, 0, 210)), "chair": 10, "suitcase": -10, "surfboard": 60, "skateboard": -60}.get(
        name, 0
    )
    if "hold" in verbs:
        grip = {
            "bench": ((-215, -470), (-240, -480)),
            "chair": ((-140, -530), (-150, -500)),
            "suitcase": ((-190, -540), (150, -430)),
            "ball": ((-190, -210), (190, -230)),
            "box": ((-185, -250), (190, -260)),
        }.get(name, ((-200, -seat - 10), (-190, -seat)))
        pose = pose._replace(near_hand=grip[0], far_hand=grip[1], neck=(lean - 50, -seat - 345))
    side = "on" if name in ("bench", "box") else ""
    posture = "grip" if name == "suitcase" and "hold" in verbs else ""
    return Arrangement(pose, x, layer="behind", posture=posture, size=size, side=side)


def jumping(name: str, dice: Dice) -> Arrangement:
    """jump_over, in a split or with legs drawn up."""
    clear = min(HEIGHTS[name], 560) + dice.between(60, 130)
    pose = Pose(
        (0, -clear - 280),
        (60, -clear - 570),
        (250, -clear - 820),
        (-220, -clear - 760),
        (330, -clear - 90),
        (-380, -clear - 110),
        20,
        10,
    )
    if dice.percent(40):
        pose = pose._replace(
            near_foot=(130, -clear),
            far_foot=(-20, -clear + 10),
            near_hand=(330, -clear - 600),
            far_hand=(-310, -clear - 620),
        )
    posture = "closed" if name == "umbrella" else ""
    turn = 6 if name == "umbrella" else 0
    return Arrangement(
        pose, -280 if turn else 0, -50 if turn else 0, dice.choose((1, -1)) if not turn else 1, turn, "behind", posture
    )
