"""A scene becomes pixels and boxes, in one drawing."""

from __future__ import annotations

import itertools
import zlib

import numpy as np

from hoi.world.layout import rows_of
from hoi.world.raster import Canvas, capsule
from hoi.world.scene import Background, Scene, SceneAnnotation, shapes_of_person, shapes_of_thing
from hoi.world.vocabulary import OBJECTS, SIZE_PX

MIN_VISIBLE_PERCENT = 25
"""An entity of which others hide more than the rest of this is not annotated, nor are its pairs."""
MIN_SIDE_PX = 3
"""An entity whose visible box is narrower or lower than this is not annotated, nor are its pairs."""

LINE_COLOUR = (70, 50, 40)
NOISE = 4
"""Largest grain, in levels of 255."""


def draw(scene: Scene) -> tuple[np.ndarray, SceneAnnotation]:
    """A scene becomes pixels, uint8 [SIZE_PX, SIZE_PX, 3], and its annotation."""
    canvas = _draw(scene)
    return _with_grain(canvas, scene), _annotation(canvas, scene)


def render(scene: Scene) -> np.ndarray:
    """A scene becomes pixels, uint8 [SIZE_PX, SIZE_PX, 3] in RGB."""
    return _with_grain(_draw(scene), scene)


def annotate(scene: Scene) -> SceneAnnotation:
    """A scene becomes boxes and pairs. The boxes come from drawing, so `draw` is cheaper when both are wanted."""
    return _annotation(_draw(scene), scene)


def _draw(scene: Scene) -> Canvas:
    canvas = Canvas(_row_colours(scene.background))
    for shape in scene.background.decor:
        canvas.draw(shape)
    people = [shapes_of_person(person) for person in scene.people]
    for layer, row in scene.order:
        if layer == "line":
            points, width = scene.lines[row]
            for a, b in itertools.pairwise(points):
                canvas.draw(capsule(a, b, width, LINE_COLOUR))
        elif layer == "thing":
            for shape in shapes_of_thing(scene.things[row]):
                canvas.draw(shape, len(people) + row)
        else:
            for shape in people[row][layer]:
                canvas.draw(shape, row)
    for shape in scene.background.foreground:
        canvas.draw(shape)
    return canvas


def _row_colours(background: Background) -> np.ndarray:
    """Gradients above and below the horizon, int64 [SIZE_PX, 3]."""
    horizon = background.horizon // 2
    rows = np.arange(SIZE_PX, dtype=np.int64)[:, None]
    top, low = (np.array(colour, np.int64) for colour in background.above)
    above = (top * (horizon - rows) + low * rows) // horizon
    top, low = (np.array(colour, np.int64) for colour in background.below)
    span = SIZE_PX - horizon
    below = (top * (SIZE_PX - rows) + low * (rows - horizon)) // span
    return np.where(rows < horizon, above, below)


def _with_grain(canvas: Canvas, scene: Scene) -> np.ndarray:
    seed = zlib.crc32(f"{scene.seed}/{scene.split}/{scene.index}/grain".encode("ascii"))
    # RandomState's stream is frozen by numpy; the default integer type, and so the stream, differs between platforms.
    grain = np.random.RandomState(seed).randint(-NOISE, NOISE + 1, size=(SIZE_PX, SIZE_PX, 1), dtype=np.int32)
    return np.clip(canvas.image().astype(np.int32) + grain, 0, 255).astype(np.uint8)


def _annotation(canvas: Canvas, scene: Scene) -> SceneAnnotation:
    owners = canvas.owners()
    names = ["person"] * len(scene.people) + [thing.name for thing in scene.things]
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    row_of: dict[int, int] = {}
    for entity, name in enumerate(names):
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
    for person, thing, verbs in scene.interactions:
        human, target = row_of.get(person), row_of.get(len(scene.people) + thing)
        if human is not None and target is not None:
            pairs.append((human, target, rows_of(scene.things[thing].name, verbs)))
    return SceneAnnotation(np.array(boxes, np.int32).reshape(-1, 4), np.array(labels, np.int32), pairs)
