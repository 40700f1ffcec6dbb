"""Objects: a name, a colour and a variant become shapes.

Units are thousandths of a standing person's height, x towards the object's front, y down; the origin is where the
object touches the ground (the grip of an umbrella).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hoi.world.people import SHIRTS, darker
from hoi.world.raster import Colour, Rng, Shape, capsule, disc, ellipse, polygon, rectangle, ring

DARK: Colour = (38, 38, 42)
METAL: Colour = (105, 108, 116)
WOOD: dict[str, Colour] = {
    "brown": (140, 88, 48),
    "wooden": (190, 140, 85),
    "grey": (128, 128, 132),
    "green": (62, 110, 70),
}
COATS: dict[str, Colour] = {
    "brown": (125, 75, 42),
    "black": (52, 46, 44),
    "white": (226, 222, 212),
    "grey": (150, 146, 142),
    "tan": (200, 160, 105),
}

BOXES: dict[str, Colour] = {
    "brown": (188, 142, 92),
    "cardboard": (208, 168, 115),
    "grey": (160, 155, 150),
    "blue": (80, 110, 180),
    "red": (190, 70, 60),
}


class ObjectLook(NamedTuple):
    """An object's colour, named for captions, and variant."""

    colour_name: str
    variant: int


def sample_object_look(name: str, rng: Rng) -> ObjectLook:
    return ObjectLook(rng.choose(tuple(KINDS[name].colours)), rng.below(3))


def object_shapes(name: str, look: ObjectLook, posture: str = "") -> list[Shape]:
    """Return the shapes of an object at rest.

    A posture is `gallop` for a horse's legs, `grip` for a suitcase's long handle, `closed` for an umbrella; else empty.
    """
    kind = KINDS[name]
    return kind.shapes(kind.colours[look.colour_name], look.variant, posture)


def _bicycle(c: Colour, variant: int, posture: str) -> list[Shape]:
    crank, _saddle, bars, rear, front = (0, -200), (-110, -500), (230, -560), (-270, -190), (290, -190)
    shapes = [ring(x, y, 190, 164, DARK) for x, y in (rear, front)]
    shapes += [disc(x, y, 20, METAL) for x, y in (rear, front)]
    if variant == 1:
        shapes += [capsule((x - 120, y - 120), (x + 120, y + 120), 5, METAL) for x, y in (rear, front)]
        shapes += [capsule((x - 120, y + 120), (x + 120, y - 120), 5, METAL) for x, y in (rear, front)]
    lines = (
        (rear, crank),
        (rear, (-90, -420)),
        (crank, (-100, -470)),
        (crank, (210, -420)),
        ((-90, -420), (205, -445)),
        (front, bars),
    )
    shapes += [capsule(a, b, 18, c) for a, b in lines]
    shapes += [
        capsule((-170, -505), (-50, -505), 24, DARK),
        capsule(bars, (265, -610), 18, DARK),
        capsule((215, -615), (310, -605), 18, DARK),
    ]
    shapes += [disc(crank[0], crank[1], 38, METAL)]
    if variant == 2:
        shapes += [rectangle(290, -560, 420, -450, (150, 105, 60))]
    return shapes


def _horse(c: Colour, variant: int, posture: str) -> list[Shape]:
    mane, shade = darker(c, 45) if c[0] > 70 else (140, 110, 70), darker(c, 78)
    if posture == "gallop":
        feet = ((-470, -90, -330, -270), (420, -190, 360, -330), (-300, 0, -180, -250), (200, -110, 330, -260))
    else:
        feet = ((-290, 0, -240, -230), (230, 0, 235, -230), (-190, 0, -200, -230), (310, 0, 280, -230))
    shapes: list[Shape] = [capsule((-340, -620), (-440, -330), 30, mane)]
    for i, (fx, fy, kx, ky) in enumerate(feet):
        tone = shade if i < 2 else c
        hip = (-240 if i % 2 == 0 else 240, -480)
        shapes += [
            capsule(hip, (kx, ky), 50, tone),
            capsule((kx, ky), (fx, fy - 30), 32, tone),
            capsule((fx, fy - 20), (fx + 24, fy - 20), 26, DARK),
        ]
    shapes += [capsule((-230, -555), (230, -560), 145, c), capsule((250, -600), (400, -890), 80, c)]
    shapes += [
        capsule((330, -690), (360, -960), 34, mane),
        capsule((410, -910), (560, -810), 64, c),
        disc(570, -800, 52, shade),
    ]
    shapes += [polygon(((360, -940), (375, -1040), (420, -945)), c), disc(445, -905, 13, (20, 18, 18))]
    if variant:
        shapes += [
            polygon(
                ((-110, -712), (90, -712), (110, -560), (-130, -560)), (150, 40, 50) if variant == 1 else (60, 70, 130)
            )
        ]
    return shapes


def _skateboard(c: Colour, variant: int, posture: str) -> list[Shape]:
    shapes = [disc(x, -30, 32, (235, 225, 190) if variant else (60, 60, 66)) for x in (-150, 150)]
    shapes += [capsule((-190, -76), (190, -76), 22, c)]
    shapes += [capsule((side * 190, -76), (side * 265, -110), 20, c) for side in (1, -1)]
    return shapes


def _ball(c: Colour, variant: int, posture: str) -> list[Shape]:
    shapes = [disc(0, -100, 100, c)]
    if variant == 0:
        mark = (245, 245, 245) if sum(c) < 600 else (40, 40, 40)
        shapes += [
            disc(0, -100, 34, mark),
            disc(-66, -140, 20, mark),
            disc(66, -140, 20, mark),
            disc(-40, -36, 20, mark),
            disc(48, -40, 20, mark),
        ]
    elif variant == 1:
        shapes += [capsule((-96, -100), (96, -100), 7, DARK), capsule((0, -196), (0, -4), 7, DARK)]
    else:
        shapes += [ellipse(0, -100, 44, 98, (250, 250, 250) if sum(c) < 600 else (220, 80, 70))]
    return shapes


def _umbrella(c: Colour, variant: int, posture: str) -> list[Shape]:
    if posture == "closed":
        return [
            capsule((0, 0), (0, -180), 12, DARK),
            polygon(((-50, -180), (50, -180), (12, -560), (-12, -560)), c),
            capsule((0, -560), (0, -600), 8, METAL),
        ]
    top, rim, half = -640, -400, 360
    shapes = [capsule((0, 40), (0, top), 13, DARK), capsule((0, 40), (34, 40), 13, DARK)]
    dome = ((-half, rim), (-310, -500), (-200, -590), (0, top - 10), (200, -590), (310, -500), (half, rim))
    shapes += [polygon(dome, c)]
    stripe = darker(c, 70) if variant else (245, 245, 245) if sum(c) < 600 else (200, 70, 70)
    shapes += [polygon(((-120, rim), (0, top - 10), (120, rim)), stripe), capsule((0, top), (0, top - 60), 9, DARK)]
    return shapes


def _dog(c: Colour, variant: int, posture: str) -> list[Shape]:
    shade = darker(c, 75)
    shapes = [capsule((x, -150), (x + 6, -20), 26, shade) for x in (-100, 120)]
    shapes += [capsule((-150, -210), (-235, -310 if variant else -230), 20, c)]
    shapes += [capsule((-120, -200), (110, -205), 72, c)]
    shapes += [capsule((x, -150), (x - 4, -18), 28, c) for x in (-140, 95)]
    shapes += [
        capsule((130, -230), (170, -310), 46, c),
        disc(185, -325, 62, c),
        capsule((200, -310), (262, -300), 34, shade),
    ]
    shapes += [
        capsule((150, -365), (128, -290) if variant != 1 else (150, -410), 24, shade),
        disc(200, -340, 11, (15, 15, 15)),
        disc(288, -308, 15, (20, 20, 20)),
    ]
    shapes += [capsule((132, -265), (180, -245), 13, (200, 40, 40))]
    return shapes


def _chair(c: Colour, variant: int, posture: str) -> list[Shape]:
    shade = darker(c, 70)
    shapes = [capsule((x, -260), (x, -12), 15, shade) for x in (-90, 150)]
    shapes += [capsule((x, -260), (x + (20 if x > 0 else -15), -12), 17, c) for x in (-130, 120)]
    shapes += [capsule((-140, -260), (-165, -560), 20, c), capsule((-95, -270), (-115, -550), 14, shade)]
    if variant == 0:
        shapes += [polygon(((-172, -560), (-110, -545), (-100, -390), (-150, -390)), c)]
    shapes += [polygon(((-150, -290), (150, -290), (165, -245), (-140, -245)), c)]
    return shapes


def _bench(c: Colour, variant: int, posture: str) -> list[Shape]:
    frame = DARK if variant else (95, 95, 100)
    shapes = [rectangle(x - 18, -500, x + 18, -10, frame) for x in (-350, 350)]
    shapes += [rectangle(-420, y, 420, y + 52, c) for y in (-500, -420)]
    shapes += [rectangle(-430, -290, 430, -240, darker(c, 85)), rectangle(-410, -240, 410, -225, darker(c, 60))]
    shapes += [rectangle(x - 16, -240, x + 16, 0, frame) for x in (-390, 390)]
    return shapes


def _suitcase(c: Colour, variant: int, posture: str) -> list[Shape]:
    shapes = [disc(x, -18, 20, DARK) for x in (-100, 100)]
    if posture == "grip":
        shapes += [
            capsule((-110, -350), (-110, -560), 11, METAL),
            capsule((-60, -350), (-60, -560), 11, METAL),
            capsule((-125, -565), (-45, -565), 17, DARK),
        ]
    else:
        shapes += [
            capsule((-50, -350), (-50, -400), 14, DARK),
            capsule((50, -350), (50, -400), 14, DARK),
            capsule((-50, -400), (50, -400), 14, DARK),
        ]
    shapes += [rectangle(-145, -350, 145, -30, c)]
    shapes += [rectangle(x - 12, -350, x + 12, -30, darker(c, 70)) for x in ((-80, 80) if variant else (0,))]
    return [*shapes, rectangle(-145, -200, 145, -182, darker(c, 60))]


def _surfboard(c: Colour, variant: int, posture: str) -> list[Shape]:
    stripe = (245, 245, 245) if sum(c) < 600 else (60, 120, 200)
    hull = ((-480, -50), (-380, -88), (0, -100), (380, -92), (500, -70), (380, -28), (0, -8), (-380, -16))
    shapes = [polygon(((-400, -30), (-350, -20), (-430, 44)), DARK), polygon(hull, c)]
    shapes += [capsule((-380, -52), (400, -58), 12, stripe)]
    return [*shapes, rectangle(-60, -92, 40, -14, stripe)] if variant == 1 else shapes


def _frisbee(c: Colour, variant: int, posture: str) -> list[Shape]:
    return [ellipse(0, -45, 150, 45, c), ellipse(0, -52, 100, 24, darker(c, 75 if variant else 60))]


def _box(c: Colour, variant: int, posture: str) -> list[Shape]:
    shapes = [rectangle(-180, -330, 180, 0, c), rectangle(-180, -330, 180, -290, darker(c, 82))]
    if variant:
        shapes += [rectangle(-32, -330, 32, 0, darker(c, 70) if variant == 1 else (232, 214, 170))]
    else:
        shapes += [rectangle(60, -120, 140, -50, (240, 240, 235))]
    return [*shapes, rectangle(-180, -16, 180, 0, darker(c, 66))]


class Kind(NamedTuple):
    """Properties that objects of one name share; heights are above the ground at rest."""

    shapes: Callable[[Colour, int, str], list[Shape]]
    colours: dict[str, Colour]
    height: int  # of a horse, its back
    seat: int = 0


KINDS: dict[str, Kind] = {
    "bicycle": Kind(_bicycle, SHIRTS, 640),
    "horse": Kind(_horse, COATS, 700),
    "skateboard": Kind(_skateboard, SHIRTS, 100, 100),
    "ball": Kind(_ball, SHIRTS, 200, 200),
    "umbrella": Kind(_umbrella, SHIRTS, 300),
    "dog": Kind(_dog, COATS, 340),
    "chair": Kind(_chair, SHIRTS, 560, 280),
    "bench": Kind(_bench, WOOD, 500, 280),
    "suitcase": Kind(_suitcase, SHIRTS, 400, 350),
    "surfboard": Kind(_surfboard, SHIRTS, 90, 80),
    "frisbee": Kind(_frisbee, SHIRTS, 90),
    "box": Kind(_box, BOXES, 330, 330),
}
