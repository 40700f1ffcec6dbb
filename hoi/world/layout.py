"""Sample scenes: who does what, with which object, and where. Seed, split and index decide everything."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from math import isqrt
from typing import TypeVar

from hoi.world.background import sample_background
from hoi.world.objects import sample_object_look
from hoi.world.people import sample_look
from hoi.world.poses import Arrangement, arrange, idle
from hoi.world.raster import CANVAS, Box, Point, Rng
from hoi.world.scene import Interaction, Object, Person, Scene, Step, bounds
from hoi.world.vocabulary import COMBINATIONS, INTERACTIONS, NO_INTERACTION, OBJECTS, SPLITS, TRAINING_SPLITS

TAIL_OFFSET = 3
"""An interaction of rank k has weight (k + TAIL_OFFSET) ** -1.5: larger is flatter."""
FLOOR = 5_000
"""Smallest weight of a combination in `train`, so that few interactions are absent."""
PersonOrObject = TypeVar("PersonOrObject", Person, Object)
Combination = tuple[str, tuple[str, ...]]
"""An object and its verbs."""


def _shuffled(key: str) -> list[int]:
    rng, rows = Rng(key), list(range(len(INTERACTIONS)))
    for last in range(len(rows) - 1, 0, -1):
        other = rng.below(last + 1)
        rows[last], rows[other] = rows[other], rows[last]
    return rows


@cache
def _tailed_combinations() -> tuple[list[Combination], list[int]]:
    """Return every combination and its weight in `train`, by those of its interactions, which are in millionths."""
    ranked = {INTERACTIONS[row]: rank for rank, row in enumerate(_shuffled("tail"))}
    tail_of = {pair: 10**9 // isqrt((rank + TAIL_OFFSET) ** 3 * 10**6) for pair, rank in ranked.items()}
    items, weights = [], []
    for name, combinations in COMBINATIONS.items():
        for verbs, weight in (*combinations, ((NO_INTERACTION,), 3)):
            tail = [tail_of[verb, name] for verb in verbs]
            items.append((name, verbs))
            weights.append(weight * isqrt(min(tail) * max(tail)) * len(tail) + FLOOR)
    return items, weights


@cache
def _cycle(seed: int, split: str, number: int) -> list[int]:
    """Return every interaction once, in random order: so many scenes in a row begin with one of each."""
    return _shuffled(f"{seed}/{split}/cycle/{number}")


def _sample_combination(split: str, rng: Rng, row: int | None = None) -> Combination:
    """Sample object and verbs of a pair; outside `train`, with the interaction of this row or a random one."""
    if split == "train":
        return rng.weighted(*_tailed_combinations())
    verb, name = INTERACTIONS[rng.below(len(INTERACTIONS)) if row is None else row]
    if verb == NO_INTERACTION:
        return name, (verb,)
    fitting = [entry for entry in COMBINATIONS[name] if verb in entry[0]]
    return name, rng.weighted([verbs for verbs, _ in fitting], [weight for _, weight in fitting])


MIN_HEIGHT = 76
"""Of a standing person, in canvas cells (38 px): smaller people show no verbs."""
HEIGHTS = ((MIN_HEIGHT, 100, 12), (100, 160, 17), (160, 250, 22), (250, 350, 29), (350, 480, 20))
"""(low, high, weight) of a standing person's height, in cells, before it is reduced to fit."""
MAX_HEIGHT = (480, 330, 230, 170)
"""Largest such height by the number of pairs: several groups need room."""
NUM_PAIRS = ((1, 58), (2, 19), (3, 7), (4, 5), (5, 11))
"""(pairs in a scene, weight)."""
GROUP = 1000
"""Height of the person that a group is composed around, before it is scaled."""


@dataclass
class Group:
    """People and objects that belong together, in thousandths; the first person is at the origin and faces right."""

    people: list[Person] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    interactions: list[Interaction] = field(default_factory=list)
    lines: list[tuple[Point, ...]] = field(default_factory=list)
    behind: set[int] = field(default_factory=set)  # people drawn before everything else of the group


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """Sample a scene; equal arguments give equal scenes.

    Args:
        seed: Of the world; 0 is the committed one.
        split: One of SPLITS or TRAINING_SPLITS.
        index: 0 or more; may exceed the split's usual size.

    Raises ValueError: The split is unknown, or the index negative.
    """
    if split not in SPLITS and split not in TRAINING_SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {(*SPLITS, *TRAINING_SPLITS)}")
    if index < 0:
        raise ValueError(f"scene index must be 0 or more, got {index}")
    rng = Rng(f"{seed}/{split}/{index}/layout")
    wanted = rng.weighted(*zip(*NUM_PAIRS, strict=True))
    row = None if split == "train" else _cycle(seed, split, index // len(INTERACTIONS))[index % len(INTERACTIONS)]
    combination = _sample_combination(split, rng, row)
    placed: list[tuple[Group, Box]] = []
    height = 0
    while wanted > 0:
        group = _compose(combination, wanted, split, rng)
        if not placed:
            low, high = rng.weighted([bounds[:2] for bounds in HEIGHTS], [bounds[2] for bounds in HEIGHTS])
            height = min(rng.between(low, high), MAX_HEIGHT[min(wanted, len(MAX_HEIGHT)) - 1])
        put = _place(group, height, placed, crowded=wanted > len(group.interactions) or bool(placed), rng=rng)
        if put is None:
            break
        placed.append(put)
        wanted -= len(group.interactions)
        combination = _sample_combination(split, rng)
    for _ in range(rng.weighted((0, 1, 2), (58, 30, 12))):
        put = _place(_distractor(rng), height, placed, crowded=True, rng=rng, gap=14)
        if put is not None:
            placed.append(put)
    return _assemble(seed, split, index, [group for group, _ in placed], rng)


def _compose(combination: Combination, room: int, split: str, rng: Rng) -> Group:
    """Compose one person with one object and, up to `room` pairs, a sharer, a second object or a bystander."""
    name, verbs = combination
    group = Group()
    if verbs == (NO_INTERACTION,):
        group.objects.append(_object(name, rng, 0, 0, rng.choose((1, -1))))
        group.layers.append("behind")
        _add_bystander(group, rng)
    else:
        placed = arrange(name, verbs, rng)
        group.people.append(Person(sample_look(rng), placed.pose, 0, 0, GROUP, 1))
        group.objects.append(_object(name, rng, placed.x, placed.y, placed.facing, placed))
        group.layers.append(placed.layer)
        group.interactions.append(Interaction(0, 0, verbs))
        if placed.line:
            group.lines.append(placed.line)
        if room >= 2 and placed.side and rng.percent(60):
            _add_sharer(group, placed, rng)
        elif room >= 2 and verbs in (("sit_on",), ("ride",), ("ride", "sit_on")) and rng.percent(60):
            _add_held(group, rng)
    if len(group.interactions) < room and rng.percent(22):
        _add_bystander(group, rng)
    return group


def _object(name: str, rng: Rng, x: int, y: int, facing: int, placed: Arrangement | None = None) -> Object:
    size = rng.between(94, 112)
    if placed is None:
        return Object(name, sample_object_look(name, rng), x, y, GROUP * size // 100, facing, 0, "")
    # Poses are made for one size of these.
    exact = name in ("bicycle", "horse", "chair", "bench") or "grip" in placed.posture
    height = GROUP * placed.size * (100 if exact else size) // 10000
    return Object(name, sample_object_look(name, rng), x, y, height, facing, placed.turn, placed.posture)


def _add_sharer(group: Group, first: Arrangement, rng: Rng) -> None:
    """Add a second person who uses the same object, on another side of it."""
    obj = group.objects[0]
    for _ in range(8):
        verbs = rng.weighted(*zip(*COMBINATIONS[obj.name], strict=True))
        placed = arrange(obj.name, verbs, rng)
        both_on = first.side == placed.side == "on"
        if not placed.side or placed.posture != obj.posture or (both_on and obj.name != "bench"):
            continue
        facing = placed.facing * obj.facing
        if first.side == placed.side and not both_on:
            if obj.name not in ("box", "bench"):
                continue
            facing = -1  # from the other side: these are symmetric
        x = obj.x - facing * placed.x
        if both_on and abs(x) < 300:
            continue
        row = len(group.people)
        group.people.append(Person(sample_look(rng), placed.pose, x, 0, GROUP, facing))
        group.interactions.append(Interaction(row, 0, verbs))
        if placed.line:
            group.lines.append(tuple((x + facing * p[0], p[1]) for p in placed.line))
        if placed.layer == "between":
            group.layers[0] = "between"
        return


def _add_held(group: Group, rng: Rng) -> None:
    """Put a second object into the first person's near hand."""
    person = group.people[0]
    name = rng.weighted(("umbrella", "ball", "frisbee"), (6, 2, 2))
    hip, neck = person.pose.hip, person.pose.neck
    if name == "umbrella":
        hand, offset = (neck[0] + 170, neck[1] + 150), (0, 0)
    else:
        hand, offset = (hip[0] + 250, hip[1] - 170), (70, 30)
    group.people[0] = person._replace(pose=person.pose._replace(near_hand=hand))
    group.objects.append(_object(name, rng, hand[0] + offset[0], hand[1] + offset[1], 1))
    group.layers.append("held")
    group.interactions.append(Interaction(0, len(group.objects) - 1, ("hold",)))


def _add_bystander(group: Group, rng: Rng) -> None:
    """Add a person who stands close to the first object and does nothing with it, on the first side that is free."""
    x0, _, x1, _ = bounds((), group.objects[:1])
    side = rng.choose((1, -1))
    inside = rng.between(30, max(40, min(150, (x1 - x0) // 2)))
    look, pose = sample_look(rng), idle(rng)
    for x in (x1 - inside + 110, x0 + inside - 110)[::side]:
        if all(abs(person.x - x) >= 300 for person in group.people):
            row = len(group.people)
            lift = 0 if rng.percent(50) else -rng.between(10, 40)
            group.people.append(Person(look, pose, x, lift, GROUP, rng.choose((1, -1))))
            group.interactions.append(Interaction(row, 0, (NO_INTERACTION,)))
            group.behind.add(row)
            return


def _distractor(rng: Rng) -> Group:
    """Sample a single person or object without a label."""
    group = Group()
    if rng.percent(40):
        group.people.append(Person(sample_look(rng), idle(rng), 0, 0, GROUP, rng.choose((1, -1))))
    else:
        group.objects.append(_object(rng.choose(OBJECTS[1:]), rng, 0, 0, rng.choose((1, -1))))
        group.layers.append("behind")
    return group


def _place(
    group: Group, height: int, placed: list[tuple[Group, Box]], crowded: bool, rng: Rng, gap: int = 8
) -> tuple[Group, Box] | None:
    """Scale a group and move it to a free position; return it with its box in cells, or None if there is no room.

    Args:
        group: In thousandths.
        height: Of a standing person, in cells; reduced to fit.
        crowded: Leave room for other groups.
        gap: Distance from the groups that are placed, in cells.
    """
    x0, y0, x1, y1 = bounds(group.people, group.objects)
    percent_x, percent_y = (64, 80) if crowded else (108, 101)
    limit = min(CANVAS * percent_x * 10 // (x1 - x0), CANVAS * percent_y * 10 // (y1 - y0))
    if limit < MIN_HEIGHT and crowded:
        limit = min(CANVAS * 1000 // (x1 - x0), CANVAS * 1000 // (y1 - y0))
    scale = min(height * rng.between(85, 115) // 100, limit)
    facing = rng.choose((1, -1))
    for _ in range(60):
        scale = max(scale, MIN_HEIGHT)
        w, h = (x1 - x0) * scale // 1000, (y1 - y0) * scale // 1000
        left = rng.between(min(-4, CANVAS - w), max(CANVAS - w, 4))
        bottom = max(rng.between(CANVAS * 60 // 100, CANVAS - 4), h - 8)
        box = left, bottom - h, left + w, bottom
        if box[1] >= -6 and not any(
            box[0] < t[2] + gap and t[0] < box[2] + gap and box[1] < t[3] + gap and t[1] < box[3] + gap
            for _, t in placed
        ):
            x = left - x0 * scale // 1000 if facing > 0 else left + x1 * scale // 1000
            return _moved(group, x, bottom - y1 * scale // 1000, scale, facing), box
        scale = scale * 95 // 100
    return None


def _moved(group: Group, x: int, y: int, scale: int, facing: int) -> Group:
    def at(px: int, py: int) -> Point:
        return x + facing * (px * scale // 1000), y + py * scale // 1000

    def moved(entity: PersonOrObject) -> PersonOrObject:
        px, py = at(entity.x, entity.y)
        return entity._replace(x=px, y=py, height=entity.height * scale // 1000, facing=entity.facing * facing)

    people, objects = [moved(person) for person in group.people], [moved(obj) for obj in group.objects]
    lines = [tuple(at(*point) for point in line) for line in group.lines]
    return Group(people, objects, group.layers, group.interactions, lines, group.behind)


def _assemble(seed: int, split: str, index: int, placed: list[Group], rng: Rng) -> Scene:
    """Number everybody, decide the order of drawing, and add a background."""
    placed = sorted(placed, key=lambda group: max([p.y for p in group.people] + [t.y for t in group.objects]))
    people: list[Person] = []
    objects: list[Object] = []
    lines: list[tuple[tuple[Point, ...], int]] = []
    interactions: list[Interaction] = []
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    order: list[Step] = []
    for group in placed:
        p0, o0, l0 = len(people), len(objects), len(lines)
        order += [Step(layer, p0 + row) for row in sorted(group.behind) for layer in ("far", "body", "near")]
        actors = [p0 + row for row in range(len(group.people)) if row not in group.behind]

        def on(layer: str, group: Group = group, o0: int = o0) -> list[Step]:
            return [Step("object", o0 + row) for row, name in enumerate(group.layers) if name == layer]

        order += on("behind") + [Step("far", row) for row in actors] + on("between")
        order += [Step("body", row) for row in actors] + [Step("line", l0 + row) for row in range(len(group.lines))]
        order += on("held") + [Step("near", row) for row in actors]
        width = max(1, group.people[0].height // 110) if group.people else 1
        lines += [(line, width) for line in group.lines]
        people += group.people
        objects += group.objects
        interactions += [Interaction(p0 + i.person, o0 + i.obj, i.verbs) for i in group.interactions]
        groups.append((tuple(range(p0, len(people))), tuple(range(o0, len(objects)))))
    wet = any(obj.name == "surfboard" for obj in objects)
    ground = min([person.y for person in people] + [CANVAS * 62 // 100])
    background = sample_background(rng, ground - 12, wet)
    return Scene(
        seed,
        split,
        index,
        background,
        tuple(people),
        tuple(objects),
        tuple(lines),
        tuple(interactions),
        tuple(groups),
        tuple(order),
    )
