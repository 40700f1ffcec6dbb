"""Scenes: their records, drawing them, and the boxes and pairs that are visible.

Positions are canvas cells (half pixels), x right, y down.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hoi.world.objects import ObjectLook, object_shapes
from hoi.world.people import Look, Pose, person_shapes
from hoi.world.raster import Box, Canvas, Colour, Point, Shape, capsule, extent, turn
from hoi.world.vocabulary import OBJECTS, SIZE_PX, rows_of

MIN_VISIBLE_PERCENT = 25
"""A person or object that is hidden by more than the rest of this is not annotated, nor are its pairs."""
MIN_SIDE_PX = 3
"""A person or object whose visible box is narrower or lower than this is not annotated, nor are its pairs."""
LINE_COLOUR = (70, 50, 40)
NOISE = 4
"""Largest noise of a pixel, in levels of 255."""


class Person(NamedTuple):
    """A person: `height` in cells when standing; `facing` is +1 to the right, -1 to the left."""

    look: Look
    pose: Pose
    x: int
    y: int
    height: int
    facing: int


class Object(NamedTuple):
    """An object: `height` is the length of 1000 of its units, in cells; `turn` in steps of 15 degrees."""

    name: str
    look: ObjectLook
    x: int
    y: int
    height: int
    facing: int
    turn: int
    posture: str


class Interaction(NamedTuple):
    """A labelled pair: rows of `Scene.people` and `Scene.objects`."""

    person: int
    obj: int
    verbs: tuple[str, ...]


class Step(NamedTuple):
    """A step of drawing: layer `far`, `body` or `near` of a person, `object`, or `line`; and its row."""

    layer: str
    row: int


class Background(NamedTuple):
    """Colour gradients above and below the horizon (a canvas row), and shapes behind and before everything."""

    kind: str
    horizon: int
    above: tuple[Colour, Colour]
    below: tuple[Colour, Colour]
    decor: tuple[Shape, ...]
    foreground: tuple[Shape, ...]


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn. `groups` lists (people rows, object rows) that stand together."""

    seed: int
    split: str
    index: int
    background: Background
    people: tuple[Person, ...]
    objects: tuple[Object, ...]
    lines: tuple[tuple[tuple[Point, ...], int], ...]
    interactions: tuple[Interaction, ...]
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    order: tuple[Step, ...]


@dataclass(frozen=True)
class SceneAnnotation:
    """The annotation of a scene.

    Attributes:
        boxes_xyxy: int32 [N, 4], tight around the visible pixels. 0-based pixel edges: x2 and y2 are exclusive, so a
            box of one pixel at the origin is (0, 0, 1, 1).
        labels: int32 [N], rows of `OBJECTS`; people come first.
        pairs: (human row, object row, interaction rows), rows of the boxes and of `INTERACTIONS`.
    """

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    pairs: list[tuple[int, int, tuple[int, ...]]]


def shapes_of_person(person: Person) -> dict[str, list[Shape]]:
    """Return a person's shapes by layer, on the canvas."""
    layers = person_shapes(person.look, person.pose)
    return {layer: _to_canvas(shapes, *person[2:]) for layer, shapes in layers.items()}


def shapes_of_object(obj: Object) -> list[Shape]:
    """Return an object's shapes, on the canvas."""
    return _to_canvas(object_shapes(obj.name, obj.look, obj.posture), *obj[2:7])


def bounds(people: Sequence[Person], objects: Sequence[Object]) -> Box:
    """Return the box around people and objects, hidden parts included."""
    shapes = [shape for obj in objects for shape in shapes_of_object(obj)]
    return extent(shapes + [s for person in people for layer in shapes_of_person(person).values() for s in layer])


def _to_canvas(shapes: list[Shape], x: int, y: int, height: int, facing: int, steps: int = 0) -> list[Shape]:
    """Rotate, scale, mirror and move shapes from thousandths of `height` to canvas cells."""
    moved = []
    for shape in shapes:
        turned = [turn(point, steps) for point in shape.points]
        points = tuple((x + facing * (px * height // 1000), y + py * height // 1000) for px, py in turned)
        radius = max(1, shape.radius * height // 1000) if shape.radius else 0
        moved.append(shape._replace(points=points, radius=radius, hole=shape.hole * height // 1000))
    return moved


def draw(scene: Scene) -> tuple[np.ndarray, SceneAnnotation]:
    """Return the pixels of a scene, uint8 RGB [SIZE_PX, SIZE_PX, 3], and its annotation, from one drawing."""
    canvas = _drawn(scene)
    return _pixels(canvas, scene), _annotation(canvas, scene)


def render(scene: Scene) -> np.ndarray:
    """Return the pixels of a scene, uint8 RGB [SIZE_PX, SIZE_PX, 3]."""
    return _pixels(_drawn(scene), scene)


def annotate(scene: Scene) -> SceneAnnotation:
    """Return the annotation of a scene; `draw` is cheaper where the pixels are needed, too."""
    return _annotation(_drawn(scene), scene)


def _drawn(scene: Scene) -> Canvas:
    canvas = Canvas(_row_colours(scene.background))
    for shape in scene.background.decor:
        canvas.draw(shape)
    people = [shapes_of_person(person) for person in scene.people]
    for layer, row in scene.order:
        if layer == "line":
            points, width = scene.lines[row]
            for a, b in itertools.pairwise(points):
                canvas.draw(capsule(a, b, width, LINE_COLOUR))
        elif layer == "object":
            for shape in shapes_of_object(scene.objects[row]):
                canvas.draw(shape, len(people) + row)
        else:
            for shape in people[row][layer]:
                canvas.draw(shape, row)
    for shape in scene.background.foreground:
        canvas.draw(shape)
    return canvas


def _row_colours(background: Background) -> np.ndarray:
    """Return the gradients above and below the horizon, int64 [SIZE_PX, 3]."""
    horizon = background.horizon // 2
    rows = np.arange(SIZE_PX, dtype=np.int64)[:, None]
    (sky, haze), (near, far) = np.array([background.above, background.below], np.int64)
    above = (sky * (horizon - rows) + haze * rows) // horizon
    below = (near * (SIZE_PX - rows) + far * (rows - horizon)) // (SIZE_PX - horizon)
    return np.where(rows < horizon, above, below)


def _pixels(canvas: Canvas, scene: Scene) -> np.ndarray:
    seed = zlib.crc32(f"{scene.seed}/{scene.split}/{scene.index}/grain".encode("ascii"))
    # numpy keeps RandomState's stream; its default integer type, and so the stream, differs between platforms.
    noise = np.random.RandomState(seed).randint(-NOISE, NOISE + 1, size=(SIZE_PX, SIZE_PX, 1), dtype=np.int32)
    return np.clip(canvas.image().astype(np.int32) + noise, 0, 255).astype(np.uint8)


def _annotation(canvas: Canvas, scene: Scene) -> SceneAnnotation:
    owners = canvas.owners()
    boxes: list[Box] = []
    labels: list[int] = []
    row_of: dict[int, int] = {}
    for entity, name in enumerate(["person"] * len(scene.people) + [obj.name for obj in scene.objects]):
        visible = owners == entity
        columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
        if not len(columns) or 100 * np.count_nonzero(visible) < MIN_VISIBLE_PERCENT * canvas.num_cells_drawn(entity):
            continue
        x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
        box = x0 // 2, y0 // 2, x1 // 2 + 1, y1 // 2 + 1
        if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE_PX:
            continue
        row_of[entity] = len(boxes)
        boxes.append(box)
        labels.append(OBJECTS.index(name))
    pairs = []
    for person, obj, verbs in scene.interactions:
        human, target = row_of.get(person), row_of.get(len(scene.people) + obj)
        if human is not None and target is not None:
            pairs.append((human, target, rows_of(scene.objects[obj].name, verbs)))
    return SceneAnnotation(np.array(boxes, np.int32).reshape(-1, 4), np.array(labels, np.int32), pairs)
