"""(verbs, object) becomes a pose and the object's place beside it, so that every verb of the combination shows.

Units are thousandths of the person's height, x towards where the person faces, y down, both from the ground point
below the person. The convention of verbs, kept the same across objects:

- hold: hands on the object, arms bent (or a slack leash, reins, a handle); lift alone: crouched, raising it off the
  ground; hold + lift: overhead on straight arms; throw: in flight beyond outstretched arms; hold + throw: wound up.
- push: leaning onto the object, arms straight; pull: leaning away from it on a taut line or a long handle.
- ride: carried along, feet off the ground; sit_on alone: at rest, hands in the lap or feet on the ground.
"""

from __future__ import annotations

from hoi.world.arrangement import STANDING, Arrangement
from hoi.world.dice import Dice
from hoi.world.handling import holding, kicking, lifting, petting, pulling, pushing, throwing
from hoi.world.mounted import jumping, on_bicycle, on_board, on_horse, seated
from hoi.world.people import Pose
from hoi.world.raster import Point


def arrange(name: str, verbs: tuple[str, ...], dice: Dice) -> Arrangement:
    """Poses one pair.

    Args:
        name: The object.
        verbs: A combination of `vocabulary.COMBINATIONS[name]`, in its order.
        dice: Source of the variation within the combination.

    Returns:
        The arrangement, its pose jittered.
    """
    found = _pose(name, "+".join(verbs), dice)
    return found._replace(pose=_jitter(found.pose, dice))


def _jitter(pose: Pose, dice: Dice) -> Pose:
    def near(point: Point, size: int) -> Point:
        return point[0] + dice.between(-size, size), point[1] + dice.between(-size, size)

    return pose._replace(
        neck=near(pose.neck, 16),
        near_hand=near(pose.near_hand, 10),
        far_hand=near(pose.far_hand, 14),
        near_foot=(pose.near_foot[0] + dice.between(-14, 14), pose.near_foot[1]),
        far_foot=(pose.far_foot[0] + dice.between(-14, 14), pose.far_foot[1]),
        nod=pose.nod + dice.between(-8, 10),
    )


def idle(dice: Dice) -> Pose:
    """A bystander: standing or strolling, hands away from everything."""
    near, far = dice.choose(
        (((45, -445), (-35, -445)), ((95, -520), (70, -500)), ((40, -445), (110, -880)), ((130, -480), (-130, -480)))
    )
    stride = dice.choose((20, 40, 130))
    return _jitter(STANDING._replace(near_hand=near, far_hand=far, near_foot=(stride, 0), far_foot=(-stride, 0)), dice)


def _pose(name: str, verbs: str, dice: Dice) -> Arrangement:
    if name == "bicycle" and ("ride" in verbs or "sit_on" in verbs):
        return on_bicycle(verbs, dice)
    if name == "horse" and ("ride" in verbs or "sit_on" in verbs):
        return on_horse(verbs, dice)
    if "ride" in verbs:
        return on_board(name, verbs, dice)
    if "sit_on" in verbs:
        return seated(name, verbs, dice)
    if "jump_over" in verbs:
        return jumping(name, dice)
    if "pet" in verbs:
        return petting(name, verbs, dice)
    if "throw" in verbs:
        return throwing(name, verbs, dice)
    if "kick" in verbs:
        return kicking(name, dice)
    if "push" in verbs:
        return pushing(name, verbs, dice)
    if "pull" in verbs:
        return pulling(name, verbs, dice)
    if "lift" in verbs:
        return lifting(name, verbs, dice)
    return holding(name, dice)
