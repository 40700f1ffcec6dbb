"""The records of a scene, and how they become shapes on the canvas.

Positions are canvas cells (half pixels), x right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hoi.world.people import Look, Pose, person_shapes
from hoi.world.raster import Colour, Point, Shape, turn
from hoi.world.things import ThingLook, thing_shapes


class Person(NamedTuple):
    """A figure: `height` of it when standing, in cells; `facing` +1 is right."""

    look: Look
    pose: Pose
    x: int
    y: int
    height: int
    facing: int


class Thing(NamedTuple):
    """An object: `height` is the length of 1000 of its units, in cells; `turn` in steps of 15 degrees."""

    name: str
    look: ThingLook
    x: int
    y: int
    height: int
    facing: int
    turn: int
    posture: str


class Interaction(NamedTuple):
    """A labelled pair: rows of `Scene.people` and `Scene.things`."""

    person: int
    thing: int
    verbs: tuple[str, ...]


class Step(NamedTuple):
    """One step of drawing: layer `far`, `body` or `near` of a person, `thing`, or `line`; and its row."""

    layer: str
    row: int


class Background(NamedTuple):
    """Colour gradients above and below the horizon (canvas row), and shapes behind and before everything."""

    kind: str
    horizon: int
    above: tuple[Colour, Colour]
    below: tuple[Colour, Colour]
    decor: tuple[Shape, ...]
    foreground: tuple[Shape, ...]


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn. `groups` lists (people rows, thing rows) that stand together."""

    seed: int
    split: str
    index: int
    background: Background
    people: tuple[Person, ...]
    things: tuple[Thing, ...]
    lines: tuple[tuple[tuple[Point, ...], int], ...]
    interactions: tuple[Interaction, ...]
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    order: tuple[Step, ...]


@dataclass(frozen=True)
class SceneAnnotation:
    """What can be seen in a scene.

    Attributes:
        boxes_xyxy: int32 [N, 4], tight around the visible pixels. 0-based pixel edges: x2 and y2 are exclusive, so a
            box of one pixel at the origin is (0, 0, 1, 1).
        labels: int32 [N], rows of `OBJECTS`; people come first.
        pairs: (human row, object row, interaction rows), rows of the boxes and of `INTERACTIONS`.
    """

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    pairs: list[tuple[int, int, tuple[int, ...]]]


def to_canvas(shapes: list[Shape], x: int, y: int, height: int, facing: int, steps: int = 0) -> list[Shape]:
    """Turns, scales, flips and moves shapes from thousandths of `height` to canvas cells."""
    moved = []
    for shape in shapes:
        points = tuple(
            (x + facing * (p[0] * height // 1000), y + p[1] * height // 1000)
            for p in (turn(q, steps) for q in shape.points)
        )
        radius = max(1, shape.radius * height // 1000) if shape.radius else 0
        moved.append(shape._replace(points=points, radius=radius, hole=shape.hole * height // 1000))
    return moved


def shapes_of_person(person: Person) -> dict[str, list[Shape]]:
    """A person's shapes by layer, on the canvas."""
    layers = person_shapes(person.look, person.pose)
    return {layer: to_canvas(shapes, *person[2:]) for layer, shapes in layers.items()}


def shapes_of_thing(thing: Thing) -> list[Shape]:
    """An object's shapes, on the canvas."""
    return to_canvas(thing_shapes(thing.name, thing.look, thing.posture), *thing[2:7])
