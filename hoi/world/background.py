"""Backgrounds: sky and ground, or wall and floor, with scenery that is never annotated."""

from __future__ import annotations

from hoi.world.people import darker
from hoi.world.raster import CANVAS, Colour, Rng, Shape, capsule, disc, ellipse, polygon, rectangle
from hoi.world.scene import Background

SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((95, 160, 225), (205, 228, 245)),
    ((130, 150, 170), (205, 208, 210)),
    ((235, 150, 110), (250, 225, 190)),
    ((90, 120, 190), (235, 205, 210)),
    ((150, 195, 215), (235, 240, 225)),
)
GROUNDS: dict[str, tuple[tuple[Colour, Colour], ...]] = {
    "grass": (((120, 170, 85), (70, 120, 50)), ((150, 175, 95), (95, 130, 60))),
    "sand": (((228, 208, 160), (190, 160, 110)), ((205, 175, 130), (160, 120, 80))),
    "street": (((165, 165, 168), (115, 115, 120)), ((190, 180, 170), (140, 130, 122))),
    "water": (((80, 150, 190), (30, 90, 140)), ((100, 165, 180), (45, 110, 130))),
    "room": (((190, 150, 110), (140, 100, 70)), ((170, 165, 160), (120, 115, 112))),
}
WALLS: tuple[tuple[Colour, Colour], ...] = (
    ((225, 215, 195), (235, 228, 212)),
    ((175, 195, 200), (195, 210, 212)),
    ((205, 180, 175), (222, 200, 192)),
)


def sample_background(rng: Rng, horizon_max: int, wet: bool) -> Background:
    """Sample a background whose horizon is at canvas row `horizon_max` or above; `wet` makes water likely."""
    kinds, weights = ("grass", "sand", "street", "water", "room"), (32, 18, 22, 10, 18)
    kind = rng.weighted(kinds, (8, 22, 4, 64, 2) if wet else weights)
    horizon = max(70, min(rng.between(130, 240), horizon_max))
    above = rng.choose(WALLS if kind == "room" else SKIES)
    decor = _room(rng, horizon) if kind == "room" else _outdoors(rng, horizon, kind)
    for _ in range(rng.below(5)):
        x, y = rng.below(CANVAS), rng.between(horizon + 8, CANVAS)
        tone = darker(rng.choose(GROUNDS[kind])[1], rng.choose((88, 112)))
        decor.append(capsule((x, y), (x + rng.between(10, 50), y), rng.between(1, 2), tone))
    foreground: list[Shape] = []
    if kind == "grass" and rng.percent(25):
        x = rng.choose((rng.between(0, 60), rng.between(CANVAS - 60, CANVAS)))
        leaf = rng.choose(((60, 105, 50), (85, 130, 60)))
        foreground = [disc(x + dx, CANVAS + 4, r, leaf) for dx, r in ((-22, 20), (4, 30), (26, 18))]
    return Background(kind, horizon, above, rng.choose(GROUNDS[kind]), tuple(decor), tuple(foreground))


def _outdoors(rng: Rng, horizon: int, kind: str) -> list[Shape]:
    shapes: list[Shape] = []
    for _ in range(rng.below(4)):
        x, y, r = rng.below(CANVAS), rng.between(10, max(horizon - 60, 20)), rng.between(14, 30)
        shapes += [
            ellipse(x, y, 2 * r, r // 2, (245, 245, 248)),
            ellipse(x + r, y - r // 3, r, r // 2, (245, 245, 248)),
        ]
    if rng.percent(45):
        tone = rng.choose(((120, 130, 150), (100, 135, 110), (150, 125, 130)))
        for _ in range(rng.between(1, 3)):
            x, w, h = rng.below(CANVAS), rng.between(60, 130), rng.between(25, 90)
            shapes.append(
                polygon(((x - w, horizon), (x, horizon - h), (x + w, horizon)), darker(tone, rng.between(88, 112)))
            )
    if kind == "water":
        return shapes
    for _ in range(rng.below(3)):
        if kind == "street" or rng.percent(25):
            shapes += _building(rng, horizon)
    for _ in range(rng.below(4)):
        x, r = rng.below(CANVAS), rng.between(12, 34)
        leaf = rng.choose(((60, 120, 65), (85, 135, 60), (120, 130, 60), (50, 95, 70)))
        shapes.append(rectangle(x - r // 6, horizon - 2 * r, x + r // 6, horizon + 3, (100, 70, 48)))
        shapes += [
            disc(x, horizon - 2 * r - r // 2, r, leaf),
            disc(x - r // 2, horizon - 2 * r, r * 2 // 3, darker(leaf, 90)),
        ]
    return shapes


def _building(rng: Rng, horizon: int) -> list[Shape]:
    x, w, h = rng.below(CANVAS), rng.between(50, 110), rng.between(50, 120)
    wall = rng.choose(((175, 130, 110), (160, 165, 170), (200, 180, 140), (140, 120, 120)))
    shapes = [rectangle(x, horizon - h, x + w, horizon, wall)]
    for wy in range(horizon - h + 10, horizon - 18, 26):
        shapes += [rectangle(wx, wy, wx + 10, wy + 14, darker(wall, 60)) for wx in range(x + 8, x + w - 12, 22)]
    return shapes


def _room(rng: Rng, horizon: int) -> list[Shape]:
    shapes = [rectangle(0, horizon - 8, CANVAS, horizon, (240, 238, 230))]
    if rng.percent(60):
        x, y, w = rng.between(10, 300), rng.between(12, 40), rng.between(50, 90)
        shapes += [
            rectangle(x - 5, y - 5, x + w + 5, y + 75, (245, 245, 242)),
            rectangle(x, y, x + w, y + 70, (170, 210, 235)),
        ]
        shapes.append(rectangle(x + w // 2 - 2, y, x + w // 2 + 2, y + 70, (245, 245, 242)))
    if rng.percent(50):
        x, y = rng.between(10, 330), rng.between(15, 50)
        shapes += [
            rectangle(x, y, x + 44, y + 34, (90, 65, 45)),
            rectangle(x + 4, y + 4, x + 40, y + 30, rng.choose(((200, 160, 90), (110, 150, 130)))),
        ]
    return shapes
