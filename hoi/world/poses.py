"""Poses: verbs and an object become a pose and the object's position beside it, so that every verb shows.

Units are thousandths of the person's height, x towards where the person faces, y down, both from the ground point
below the person. What a verb looks like is the same for all objects:

- hold: hands on the object, arms bent (or a slack leash, reins, a handle); lift alone: crouched, raising it off the
  ground; hold + lift: overhead on straight arms; throw: in flight beyond outstretched arms; hold + throw: wound up.
- push: leaning onto the object, arms straight; pull: leaning away from it on a taut line or a long handle.
- ride: carried along, feet off the ground; sit_on alone: at rest, hands in the lap or feet on the ground.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hoi.world.objects import KINDS
from hoi.world.people import Pose
from hoi.world.raster import Point, Rng

STANDING = Pose((0, -520), (0, -805), (40, -440), (-30, -440), (30, 0), (-40, 0))


class Arrangement(NamedTuple):
    """A person's pose and the position of the object, in thousandths of the person's height.

    Attributes:
        x, y: Origin of the object.
        facing: Of the object; +1 is the person's direction.
        turn: Of the object, in steps of 15 degrees.
        layer: Draw order of the object: `behind` the person, `between` the far limbs and the body, or `held` between
            body and near arm.
        posture: See `objects.object_shapes`.
        line: Points of a leash, rein or rope.
        size: Of the object, in percent.
        side: Where the person is at an object that a second person can share: `back`, `on` or `front`; else empty.
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


def _raised(pose: Pose, height: int) -> Pose:
    hip, neck, near_hand, far_hand, near_foot, far_foot = [(x, y - height) for x, y in pose[:6]]
    return Pose(hip, neck, near_hand, far_hand, near_foot, far_foot, pose.nod, pose.toes)


def on_bicycle(verbs: str, rng: Rng) -> Arrangement:
    swing = rng.between(-60, 60)
    near_foot, far_foot = (20 + swing, -120), (20 - swing, -270)
    if "ride" not in verbs:
        hands = ((210, -600), (220, -600)) if "hold" in verbs else ((40, -560), (70, -565))
        pose = Pose((-115, -545), (-60, -850), *hands, (130, 0), (60, 0))
    elif verbs == "ride+hold":
        pose = Pose((30, -690), (170, -930), (270, -640), (280, -640), near_foot, far_foot, 20, 20)
    elif "hold" in verbs:
        pose = Pose((-105, -560), (50, -810), (250, -640), (270, -640), near_foot, far_foot, 20, 20)
    else:
        high = rng.between(0, 60)
        pose = Pose((-105, -560), (-70, -870), (80, -1130 + high), (-250, -1120 + high), near_foot, far_foot, 0, 20)
    return Arrangement(pose, 0, layer="between", side="on")


def on_horse(verbs: str, rng: Rng) -> Arrangement:
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


def on_board(name: str, verbs: str, rng: Rng) -> Arrangement:
    low = rng.between(0, 60)
    pose = Pose((-20, low - 430), (40, low - 710), (290, -660), (-270, -640), (150, 0), (-170, 0))
    if "hold" in verbs:
        pose = Pose((-60, -260), (120, -450), (200, -10), (-200, -560), (110, 0), (-140, 0), 30)
    pose = _raised(pose, KINDS[name].seat + 10)
    return Arrangement(pose, 0, layer="held" if "hold" in verbs else "behind")


def seated(name: str, verbs: str, rng: Rng) -> Arrangement:
    seat = KINDS[name].seat
    size = 180 if name == "ball" else 100
    seat = seat * size // 100
    reach = 220 if seat >= 200 else 360 if name == "skateboard" else 400
    lean = rng.between(-30, 10)
    hip, neck = (0, -seat - 58), (lean, -seat - 365)
    foot = 0 if name != "surfboard" else -60
    pose = Pose(hip, neck, (165, -seat - 75), (140, -seat - 80), (reach, foot), (reach + 30, foot))
    x = {"bench": rng.choose((-210, 0, 210)), "chair": 10, "suitcase": -10, "surfboard": 60, "skateboard": -60}.get(
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


def jumping(name: str, verbs: str, rng: Rng) -> Arrangement:
    clear = min(KINDS[name].height, 560) + rng.between(60, 130)
    pose = Pose((0, -280), (60, -570), (250, -820), (-220, -760), (330, -90), (-380, -110), 20, 10)
    if rng.percent(40):
        pose = pose._replace(near_foot=(130, 0), far_foot=(-20, 10), near_hand=(330, -600), far_hand=(-310, -620))
    pose = _raised(pose, clear)
    if name == "umbrella":
        return Arrangement(pose, -280, -50, 1, 6, "behind", "closed")
    return Arrangement(pose, 0, 0, rng.choose((1, -1)), layer="behind")


def petting(name: str, verbs: str, rng: Rng) -> Arrangement:
    if name == "horse":
        hand = (270, -850)
        far_hand, line = ((170, -620), ((170, -620), (240, -700), (250, -830))) if "hold" in verbs else ((30, -450), ())
        pose = Pose((0, -500), (30, -805), hand, far_hand, (70, 0), (-70, 0), 10)
        return Arrangement(pose, 790, 0, -1, layer="behind", line=line, side="front")
    if "lift" in verbs:  # carried on one arm, stroked with the other hand
        pose = STANDING._replace(near_hand=(280, -740), far_hand=(200, -500), neck=(-30, -805))
        return Arrangement(pose, 110, -470, 1, layer="held")
    pose = Pose((-80, -250), (70, -500), (230, -390), (40, -330), (50, 0), (-120, 0), 25)
    line = ()
    if "hold" in verbs:
        pose = pose._replace(far_hand=(-60, -620))
        line = ((-60, -620), (60, -690), (210, -250))
    return Arrangement(pose, 420, 0, -1, layer="behind", line=line, side="back")


def throwing(name: str, verbs: str, rng: Rng) -> Arrangement:
    small = name in ("ball", "frisbee")
    posture = "closed" if name == "umbrella" else ""
    if "hold" in verbs:  # wound up, the object behind the head
        pose = Pose((0, -480), (-90, -770), (-340, -960), (270, -860), (230, 0), (-130, 0), -10)
        turn = {"umbrella": -3, "skateboard": 2, "frisbee": 1}.get(name, 0)
        y = -880 if name == "ball" else -930
        return Arrangement(pose, -400 if small else -360, y, 1, turn, "between", posture)
    rise = rng.between(-60, 60)
    pose = Pose((40, -480), (170, -760), (500, -870), (-150, -620), (230, 0), (-250, 0), 20)
    if not small:
        pose = pose._replace(far_hand=(470, -900))
    turn = {
        "frisbee": rng.choose((-1, 1)),
        "umbrella": 4,
        "skateboard": rng.choose((-2, 2)),
        "box": rng.choose((-1, 1, 2)),
    }.get(name, 0)
    x = {"umbrella": 660, "box": 800, "skateboard": 860}.get(name, 740)
    return Arrangement(
        pose, x + rng.between(0, 60), -860 + rise + (100 if name == "box" else 0), 1, turn, "behind", posture
    )


def kicking(name: str, verbs: str, rng: Rng) -> Arrangement:
    pose = Pose((-20, -495), (-110, -785), (-330, -720), (180, -800), (330, -250), (-60, 0), 0, -50)
    turn, x, y = {
        "ball": (0, 520, -rng.between(130, 300)),
        "frisbee": (-1, 560, -rng.between(180, 300)),
        "umbrella": (4, 440, -170),
        "skateboard": (-2, 600, -110),
        "chair": (2, 540, -40),
        "suitcase": (1, 560, -20),
        "box": (1, 590, -20),
    }[name]
    return Arrangement(pose, x + rng.between(0, 40), y, 1, turn, "behind", "closed" if name == "umbrella" else "")


def pushing(name: str, verbs: str, rng: Rng) -> Arrangement:
    if name == "bicycle" and "hold" in verbs:  # walking it by the handlebar
        pose = Pose((-20, -500), (60, -800), (330, -620), (350, -620), (130, 0), (-170, 0), 20)
        return Arrangement(pose, 90, layer="behind")
    if name == "suitcase" and "hold" in verbs:  # rolling it ahead on its long handle
        pose = Pose((-30, -500), (30, -800), (230, -560), (240, -540), (140, 0), (-170, 0), 10)
        return Arrangement(pose, 310, posture="grip", layer="behind")
    x, hands_y = {
        "horse": (720, -640),
        "box": (560, -270),
        "bench": (800, -450),
        "chair": (520, -520),
        "suitcase": (530, -330),
        "ball": (540, -260),
        "bicycle": (530, -500),
    }[name]
    low = min(hands_y + 560, 240)
    shoulder_y = min(hands_y - 150, -480)
    pose = Pose((-190, -440 + low // 3), (70, shoulder_y), (350, hands_y), (360, hands_y - 30), (-60, 0), (-480, 0), 25)
    if name == "chair" and "hold" in verbs:  # walking upright behind it, hands on the backrest
        pose = Pose((0, -500), (50, -800), (290, -540), (300, -545), (130, 0), (-150, 0), 10)
        x = 460
    size = 190 if name == "ball" else 100
    side = "back" if name in ("horse", "box", "bench") else ""
    return Arrangement(pose, x, size=size, layer="behind", side=side)


def pulling(name: str, verbs: str, rng: Rng) -> Arrangement:
    if name == "suitcase":  # rolling it behind, tilted on its long handle
        pose = Pose((0, -500), (40, -800), (-190, -500), (150, -520), (190, 0), (-190, 0), 15)
        return Arrangement(pose, -500, 0, -1, -2, "held", "grip")
    if name in ("horse", "dog"):  # leading it on a taut line, leaning ahead
        pose = Pose((0, -490), (150, -770), (-190, -620), (-170, -600), (150, 0), (-260, 0), 25)
        x, mouth = (-1000, (-460, -800)) if name == "horse" else (-800, (-640, -250))
        return Arrangement(
            pose, x, 0, 1, layer="behind", line=((-190, -620), mouth), side="front" if name == "horse" else ""
        )
    # leaning back, facing the object, hands together
    pose = Pose((-160, -430), (-300, -710), (0, -610), (20, -590), (110, 0), (-40, 0), -15, -20)
    if name == "chair" and "hold" in verbs:
        pose = Pose((-150, -430), (-270, -710), (60, -540), (70, -520), (100, 0), (-60, 0), -15, -20)
        return Arrangement(pose, 230, layer="behind")
    x, knot = {
        "chair": (560, (430, -400)),
        "bench": (860, (480, -400)),
        "surfboard": (880, (400, -60)),
        "box": (640, (470, -180)),
    }[name]
    return Arrangement(
        pose, x, 0, 1, layer="behind", line=((10, -600), knot), side="back" if name in ("box", "bench") else ""
    )


def lifting(name: str, verbs: str, rng: Rng) -> Arrangement:
    if "hold" in verbs:  # overhead
        if name == "umbrella":
            pose = STANDING._replace(near_hand=(40, -1130), far_hand=(-60, -1130))
            return Arrangement(pose, 20, -1110, layer="between")
        top = -1120
        pose = Pose((0, -500), (-10, -805), (80, top - 20), (-80, top - 20), (90, 0), (-90, 0), -10)
        if name == "frisbee":
            pose = pose._replace(near_hand=(60, top - 20), far_hand=(-150, -600))
            return Arrangement(pose, 70, top - 10, layer="held")
        return Arrangement(pose, 0, top, rng.choose((1, -1)), layer="between")
    # crouched, raising it off the ground
    if name == "bicycle":  # by its saddle
        pose = Pose((-120, -400), (40, -690), (290, -560), (320, -560), (50, 0), (-140, 0), 20)
        return Arrangement(pose, 450, -120, 1, 1, "held")
    if name == "bench":  # by one end
        pose = Pose((-130, -350), (60, -600), (280, -430), (300, -430), (60, 0), (-130, 0), 25)
        return Arrangement(pose, 640, -100, -1, -1, "held")
    if name == "surfboard":
        pose = Pose((-130, -340), (60, -570), (270, -310), (290, -300), (60, 0), (-130, 0), 25)
        return Arrangement(pose, 710, -130, -1, -1, "held")
    wide = {"skateboard": 400, "dog": 390}.get(name, 330)
    raised = rng.between(60, 150)
    grip = {"chair": -250, "suitcase": -260, "ball": -90, "dog": -150, "box": -60, "skateboard": -80}[name] - raised
    pose = Pose((-130, -330), (60, -560), (270, grip), (290, grip), (60, 0), (-130, 0), 25)
    return Arrangement(pose, wide, -raised, rng.choose((1, -1)) if name != "chair" else 1, layer="held")


def holding(name: str, verbs: str, rng: Rng) -> Arrangement:
    pose, x, y, facing, turn = STANDING._replace(far_hand=(-40, -440)), 0, 0, 1, 0
    line: tuple[Point, ...] = ()
    if name == "umbrella":
        pose, x, y = pose._replace(near_hand=(150, -640)), 155, -640
    elif name == "bicycle":
        pose, x = pose._replace(near_hand=(300, -620)), 60
    elif name == "horse":
        pose, x, facing = pose._replace(near_hand=(150, -560)), 860, -1
        line = ((150, -560), (230, -600), (310, -810))
    elif name == "dog":
        pose, x = STANDING._replace(near_hand=(170, -560), near_foot=(90, 0), far_foot=(-90, 0)), 480
        line = ((170, -560), (330, -300), (620, -250))
    elif name == "bench":
        pose, x = STANDING._replace(near_hand=(170, -510), far_hand=(210, -520), neck=(40, -800)), 560
    elif name == "surfboard":
        pose, x, y, turn = STANDING._replace(near_hand=(190, -650), far_hand=(210, -480)), 160, -510, -6
    elif name == "skateboard":
        pose, x, y, turn = pose._replace(near_hand=(130, -450)), 60, -460, -6
    elif name == "suitcase":
        pose, x, y = STANDING._replace(near_hand=(70, -480), near_foot=(110, 0), far_foot=(-120, 0)), 70, -70
    else:
        x, y = 290, {"box": -450, "chair": -330, "ball": -520, "frisbee": -560}[name]
        pose = STANDING._replace(near_hand=(260, y - 60), far_hand=(270, y - 90), neck=(-20, -805))
    layer = "behind" if name in ("bicycle", "horse", "dog", "bench") else "held"
    side = {"horse": "front", "bench": "back"}.get(name, "")
    return Arrangement(pose, x, y, facing, turn, layer, line=line, side=side)


_BY_VERB: dict[str, Callable[[str, str, Rng], Arrangement]] = {
    "ride": on_board,
    "sit_on": seated,
    "jump_over": jumping,
    "pet": petting,
    "throw": throwing,
    "kick": kicking,
    "push": pushing,
    "pull": pulling,
    "lift": lifting,
    "hold": holding,
}
"""The first verb of a combination, in this order, decides the pose; the others change it."""


def arrange(name: str, verbs: tuple[str, ...], rng: Rng) -> Arrangement:
    """Sample an arrangement of a person and an object for one of `vocabulary.COMBINATIONS[name]`."""
    if name in ("bicycle", "horse") and ("ride" in verbs or "sit_on" in verbs):
        on_top = on_bicycle if name == "bicycle" else on_horse
        arrangement = on_top("+".join(verbs), rng)
    else:
        first = next(verb for verb in _BY_VERB if verb in verbs)
        arrangement = _BY_VERB[first](name, "+".join(verbs), rng)
    return arrangement._replace(pose=_jitter(arrangement.pose, rng))


def _jitter(pose: Pose, rng: Rng) -> Pose:
    def near(point: Point, size: int) -> Point:
        return point[0] + rng.between(-size, size), point[1] + rng.between(-size, size)

    return pose._replace(
        neck=near(pose.neck, 16),
        near_hand=near(pose.near_hand, 10),
        far_hand=near(pose.far_hand, 14),
        near_foot=(pose.near_foot[0] + rng.between(-14, 14), pose.near_foot[1]),
        far_foot=(pose.far_foot[0] + rng.between(-14, 14), pose.far_foot[1]),
        nod=pose.nod + rng.between(-8, 10),
    )


def idle(rng: Rng) -> Pose:
    """Sample the pose of a bystander: standing or strolling, hands off everything."""
    near, far = rng.choose(
        (((45, -445), (-35, -445)), ((95, -520), (70, -500)), ((40, -445), (110, -880)), ((130, -480), (-130, -480)))
    )
    stride = rng.choose((20, 40, 130))
    return _jitter(STANDING._replace(near_hand=near, far_hand=far, near_foot=(stride, 0), far_foot=(-stride, 0)), rng)
