"""People: a look and a pose of six points become shapes, far limbs first.

Units are thousandths of a standing person's height, x forward (where the person faces), y down, ground at 0.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

from hoi.world.raster import Colour, Point, Rng, Shape, capsule, disc, ellipse, polygon

LEG = 258
"""Length of the upper and the lower leg."""
ARM = 186
"""Length of the upper and the lower arm."""

SKINS: tuple[Colour, ...] = ((250, 215, 185), (232, 185, 145), (200, 145, 100), (150, 98, 62), (98, 62, 42))
HAIRS: tuple[Colour, ...] = (
    (35, 28, 25),
    (85, 52, 30),
    (150, 100, 50),
    (215, 180, 100),
    (150, 150, 150),
    (160, 70, 35),
)
SHIRTS: dict[str, Colour] = {
    "red": (205, 45, 45),
    "blue": (45, 85, 200),
    "green": (45, 150, 70),
    "yellow": (235, 205, 60),
    "white": (235, 235, 235),
    "black": (40, 40, 45),
    "orange": (235, 125, 40),
    "pink": (240, 130, 175),
    "purple": (125, 65, 165),
}
TROUSERS: tuple[Colour, ...] = (
    (45, 55, 95),
    (60, 60, 65),
    (110, 85, 60),
    (150, 140, 115),
    (85, 105, 140),
    (40, 80, 60),
)
SHOES: tuple[Colour, ...] = ((35, 30, 30), (120, 70, 40), (225, 225, 225), (180, 40, 40))


class Pose(NamedTuple):
    """Positions of hip, neck, hands and feet; elbows and knees follow. Knees bend forward, elbows back and down."""

    hip: Point
    neck: Point
    near_hand: Point
    far_hand: Point
    near_foot: Point
    far_foot: Point
    nod: int = 0  # forward shift of the head
    toes: int = 0  # downward shift of the toes, for feet in the air


class Look(NamedTuple):
    """A person's appearance, whatever the pose."""

    kind: str  # man, woman or kid
    skin: Colour
    hair: Colour
    shirt_name: str
    trousers: Colour
    legs: str  # trousers, shorts or skirt
    shoes: Colour
    hat: str  # none, cap or helmet
    hat_colour: Colour
    long_hair: bool
    bulk: int  # percent of the usual limb width
    sleeves: bool


def sample_look(rng: Rng) -> Look:
    kind = rng.weighted(("man", "woman", "kid"), (45, 40, 15))
    return Look(
        kind=kind,
        skin=rng.choose(SKINS),
        hair=rng.choose(HAIRS),
        shirt_name=rng.choose(tuple(SHIRTS)),
        trousers=rng.choose(TROUSERS),
        legs=rng.weighted(("trousers", "shorts", "skirt"), (55, 30, 15) if kind == "woman" else (65, 35, 0)),
        shoes=rng.choose(SHOES),
        hat=rng.weighted(("none", "cap", "helmet"), (72, 17, 11)),
        hat_colour=SHIRTS[rng.choose(tuple(SHIRTS))],
        long_hair=rng.percent(75 if kind == "woman" else 12),
        bulk=rng.between(88, 118),
        sleeves=rng.percent(45),
    )


def bend(start: Point, end: Point, length: int, side: int) -> tuple[Point, Point]:
    """Return the middle joint and the end of a limb of two bones of this length, from shoulder or hip to `end`.

    The end is moved along the line into reach; a `side` of +1 bends a hanging limb forward, -1 back.
    """
    dx, dy = end[0] - start[0], end[1] - start[1]
    span = isqrt(dx * dx + dy * dy)
    if span >= 2 * length:
        end = start[0] + dx * 2 * length // span, start[1] + dy * 2 * length // span
        return ((start[0] + end[0]) // 2, (start[1] + end[1]) // 2), end
    rise = isqrt(length * length - span * span // 4) * side
    span = max(span, 1)
    return ((start[0] + end[0]) // 2 + dy * rise // span, (start[1] + end[1]) // 2 - dx * rise // span), end


def darker(colour: Colour, percent: int = 75) -> Colour:
    return colour[0] * percent // 100, colour[1] * percent // 100, colour[2] * percent // 100


def person_shapes(look: Look, pose: Pose) -> dict[str, list[Shape]]:
    """Return shapes by layer: `far` (both far limbs), `body` (with the near leg), `near` (the near arm)."""
    shirt = SHIRTS[look.shirt_name]
    shoulder = (pose.neck[0] * 9 + pose.hip[0]) // 10, (pose.neck[1] * 9 + pose.hip[1]) // 10
    far = _arm(look, shoulder, pose.far_hand, 80) + _leg(look, pose, pose.hip, pose.far_foot, 78)
    torso = 62 * look.bulk // 100
    body = _leg(look, pose, pose.hip, pose.near_foot, 100)
    trunk = capsule(pose.hip, shoulder, torso, shirt)
    if look.legs == "skirt":
        knees = [bend(pose.hip, (x, y - 34), LEG, 1)[0] for x, y in (pose.far_foot, pose.near_foot)]
        body += [*(capsule(pose.hip, knee, 62, look.trousers) for knee in knees), trunk]
    else:
        body += [trunk, disc(pose.hip[0], pose.hip[1] + 8, torso - 4, look.trousers)]
    body += _head(look, pose)
    return {"far": far, "body": body, "near": _arm(look, shoulder, pose.near_hand, 100)}


def _arm(look: Look, shoulder: Point, hand: Point, shade: int) -> list[Shape]:
    width = 34 * look.bulk // 100
    elbow, hand = bend(shoulder, hand, ARM, -1)
    skin, shirt = darker(look.skin, shade), darker(SHIRTS[look.shirt_name], shade - 12)
    return [
        capsule(shoulder, elbow, width, shirt),
        capsule(elbow, hand, width - 4, shirt if look.sleeves else skin),
        disc(hand[0], hand[1], 36, skin),
    ]


def _leg(look: Look, pose: Pose, hip: Point, foot: Point, shade: int) -> list[Shape]:
    width = 44 * look.bulk // 100
    ankle = foot[0], foot[1] - 34
    knee, ankle = bend(hip, ankle, LEG - 12, 1)
    upper = darker(look.trousers if look.legs != "skirt" else look.skin, shade)
    lower = darker(look.trousers if look.legs == "trousers" else look.skin, shade)
    return [
        capsule(knee, ankle, width - 8, lower),
        capsule(hip, knee, width, upper),
        capsule((ankle[0], ankle[1] + 8), (ankle[0] + 68, ankle[1] + 10 + pose.toes), 26, darker(look.shoes, shade)),
    ]


def _head(look: Look, pose: Pose) -> list[Shape]:
    x, y = pose.neck[0] + 12 + pose.nod, pose.neck[1] - 105
    shapes = [capsule(pose.neck, (x, y), 32, darker(look.skin, 88))]
    if look.long_hair:
        shapes.append(capsule((x - 50, y), (x - 72, y + 140), 42, look.hair))
    shapes += [
        disc(x - 12, y - 10, 90, look.hair),
        ellipse(x + 18, y + 8, 74, 82, look.skin),
        ellipse(x - 10, y - 48, 88, 46, look.hair),
        disc(x + 58, y + 2, 12, (30, 25, 25)),
    ]
    if look.hat == "cap":
        shapes += [
            ellipse(x, y - 52, 94, 52, look.hat_colour),
            capsule((x + 40, y - 40), (x + 125, y - 32), 14, look.hat_colour),
        ]
    elif look.hat == "helmet":
        shapes.append(
            polygon(
                ((x - 98, y - 20), (x - 80, y - 80), (x - 20, y - 112), (x + 50, y - 98), (x + 95, y - 30)),
                look.hat_colour,
            )
        )
    return shapes
