"""Random numbers, shapes and their rasteriser: integer arithmetic only, so that scenes are equal on every platform.

The canvas has twice the scene's size. Each shape writes its number into one uint16 plane; at the end a palette maps
numbers to colours and 2 x 2 cells are averaged. Coordinates are canvas cells, x right, y down; a shape covers a cell
whose index point is inside it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from hoi.world.vocabulary import SIZE_PX

T = TypeVar("T")


class Rng:
    """Random integers from a string key, by `random.Random(str).random()`: the stream that Python promises to keep."""

    def __init__(self, key: str) -> None:
        self._random = random.Random(key)

    def below(self, bound: int) -> int:
        """Return a uniform integer in [0, bound)."""
        return int(self._random.random() * bound)

    def between(self, low: int, high: int) -> int:
        """Return a uniform integer in [low, high]."""
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        return self.below(100) < chance

    def choose(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """Return one item, with probability proportional to its integer weight."""
        rest = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            rest -= weight
            if rest < 0:
                return item
        raise ValueError(f"the weights of {len(items)} items must be positive, got {list(weights)}")


CANVAS = 2 * SIZE_PX

Colour = tuple[int, int, int]
Point = tuple[int, int]
Box = tuple[int, int, int, int]

SINE = (0, 265, 512, 724, 887, 989, 1024)
"""1024 sin of 0, 15, ... 90 degrees."""


def sine(step: int) -> int:
    """Return 1024 sin(15 degrees * step)."""
    step %= 24
    if step >= 12:
        return -sine(step - 12)
    return SINE[step] if step <= 6 else SINE[12 - step]


def turn(point: Point, step: int) -> Point:
    """Rotate a point about the origin by 15 degrees * step, clockwise on the screen."""
    if step % 24 == 0:
        return point
    s, c = sine(step), sine(step + 6)
    return (point[0] * c - point[1] * s) // 1024, (point[0] * s + point[1] * c) // 1024


class Shape(NamedTuple):
    """A primitive: `disc` and `ring` have 1 point, `capsule` 2, `polygon` (convex) 3 or more.

    `radius` is the outer radius, or half the width of a capsule; `hole` the inner radius of a ring.
    """

    kind: str
    points: tuple[Point, ...]
    radius: int
    colour: Colour
    hole: int = 0


def disc(x: int, y: int, radius: int, colour: Colour) -> Shape:
    return Shape("disc", ((x, y),), radius, colour)


def ring(x: int, y: int, radius: int, hole: int, colour: Colour) -> Shape:
    return Shape("ring", ((x, y),), radius, colour, hole)


def capsule(a: Point, b: Point, radius: int, colour: Colour) -> Shape:
    """Return a thick line with round ends."""
    return Shape("capsule", (a, b), radius, colour)


def polygon(points: tuple[Point, ...], colour: Colour) -> Shape:
    return Shape("polygon", points, 0, colour)


def rectangle(x0: int, y0: int, x1: int, y1: int, colour: Colour) -> Shape:
    return polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour)


def ellipse(x: int, y: int, rx: int, ry: int, colour: Colour) -> Shape:
    """Return an ellipse as a polygon of 24 corners, which can be rotated like any other shape."""
    return polygon(tuple((x + rx * sine(step + 6) // 1024, y + ry * sine(step) // 1024) for step in range(24)), colour)


def extent(shapes: Iterable[Shape]) -> Box:
    """Return the bounding box (x0, y0, x1, y1) of shapes."""
    boxes = [(x - s.radius, y - s.radius, x + s.radius, y + s.radius) for s in shapes for x, y in s.points]
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


class Canvas:
    """A plane of shape numbers; the first SIZE_PX numbers are the rows of the background.

    Args:
        row_colours: Colour of each scene row, integer [SIZE_PX, 3] in 0..255.
    """

    def __init__(self, row_colours: np.ndarray) -> None:
        rows = np.repeat(np.arange(SIZE_PX, dtype=np.uint16), 2)
        self._plane = np.repeat(rows[:, None], CANVAS, axis=1)
        self._ever = np.zeros((CANVAS, CANVAS), np.uint32)
        self._rows = row_colours
        self._palette: list[Colour] = []
        self._owners: list[int] = []

    def draw(self, shape: Shape, owner: int = -1) -> None:
        """Paint a shape for entity `owner` (0..31; negative for none)."""
        left, top, right, bottom = extent([shape])
        x0, x1 = max(left, 0), min(right + 1, CANVAS)
        y0, y1 = max(top, 0), min(bottom + 1, CANVAS)
        if x0 >= x1 or y0 >= y1:
            return
        x = np.arange(x0, x1, dtype=np.int64)[None, :]
        y = np.arange(y0, y1, dtype=np.int64)[:, None]
        mask = _MASKS[shape.kind](shape, x, y)
        self._plane[y0:y1, x0:x1][mask] = SIZE_PX + len(self._palette)
        if owner >= 0:
            self._ever[y0:y1, x0:x1][mask] |= np.uint32(1 << owner)
        self._palette.append(shape.colour)
        self._owners.append(owner)

    def image(self) -> np.ndarray:
        """Return the scene's pixels, uint8 [SIZE_PX, SIZE_PX, 3]."""
        palette = np.concatenate([self._rows, np.array(self._palette, np.int64).reshape(-1, 3)])
        cells = palette.astype(np.uint16)[self._plane]
        sums = cells[0::2] + cells[1::2]
        return ((sums[:, 0::2] + sums[:, 1::2] + 2) // 4).astype(np.uint8)

    def owners(self) -> np.ndarray:
        """Return the visible entity of each canvas cell, int16 [CANVAS, CANVAS]; -1 is the background."""
        table = np.concatenate([np.full(SIZE_PX, -1), np.array(self._owners, np.int64)]).astype(np.int16)
        return table[self._plane]

    def num_cells_drawn(self, owner: int) -> int:
        """Return the number of canvas cells that an entity painted, visible or hidden."""
        return int(np.count_nonzero(self._ever & np.uint32(1 << owner)))


def _disc_mask(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (cx, cy), r = shape.points[0], shape.radius
    squares = (x - cx) ** 2 + (y - cy) ** 2
    mask: np.ndarray = squares <= r * r
    if shape.hole:
        mask &= squares >= shape.hole * shape.hole
    return mask


def _capsule_mask(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    (ax, ay), (bx, by) = shape.points
    r2, dx, dy = shape.radius * shape.radius, bx - ax, by - ay
    px, py = x - ax, y - ay
    length2 = dx * dx + dy * dy
    along = px * dx + py * dy
    across = px * dy - py * dx
    mask: np.ndarray = (along >= 0) & (along <= length2) & (across * across <= r2 * length2)
    mask |= px * px + py * py <= r2
    mask |= (x - bx) ** 2 + (y - by) ** 2 <= r2
    return mask


def _polygon_mask(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a = np.array(shape.points, np.int64)
    b = np.roll(a, -1, axis=0)
    low, high = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    crosses = (low <= y) & (y <= high)  # [rows, edges]
    dy = b[:, 1] - a[:, 1]
    flat = dy == 0
    at = a[:, 0] + (b[:, 0] - a[:, 0]) * (y - a[:, 1]) // np.where(flat, 1, dy)
    far = 1 << 30
    left = np.where(crosses, np.where(flat, np.minimum(a[:, 0], b[:, 0]), at), far).min(axis=1)
    right = np.where(crosses, np.where(flat, np.maximum(a[:, 0], b[:, 0]), at), -far).max(axis=1)
    return np.asarray((x >= left[:, None]) & (x <= right[:, None]))


_MASKS = {"disc": _disc_mask, "ring": _disc_mask, "capsule": _capsule_mask, "polygon": _polygon_mask}
