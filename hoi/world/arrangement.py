"""The record that poses fill: a body, and an object beside it."""

from __future__ import annotations

from typing import NamedTuple

from hoi.world.people import Pose
from hoi.world.raster import Point

STANDING = Pose((0, -520), (0, -805), (40, -440), (-30, -440), (30, 0), (-40, 0))


class Arrangement(NamedTuple):
    """A person's pose and an object's place, in thousandths of the person's height.

    Attributes:
        pose: The body.
        x: Of the object's origin, ahead of the ground point below the person.
        y: The same, downwards; negative is off the ground.
        facing: Of the object, +1 as the person.
        turn: Of the object, in steps of 15 degrees.
        layer: Draw order: the object lies `behind` the person, `between` the far limbs and the body, or is `held`
            between body and near arm.
        posture: Of the object, see `things.thing_shapes`.
        line: Points of a leash, rein or rope.
        size: Of the object, percent of the usual.
        side: Where the person is at an object at rest that a second person can share: `back`, `on` or `front`; empty
            when it cannot be shared.
    """

    pose: Pose
    x: int
    y: int = 0
    facing: int = 1
    turn: int = 0
    layer: str = "held"
    posture: str = ""
    line: tuple[Point, ...] = ()
    size: int = 100
    side: str = ""
