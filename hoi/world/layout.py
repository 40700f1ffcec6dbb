"""(seed, split, index) becomes a scene: who, with what, doing what, where. No pixels yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from math import isqrt

from hoi.world.background import sample_background
from hoi.world.people import sample_look
from hoi.world.poses import Arrangement, arrange, idle
from hoi.world.raster import CANVAS, Dice, Point, extent
from hoi.world.scene import Interaction, Person, Scene, Step, Thing, shapes_of_person, shapes_of_thing
from hoi.world.things import sample_thing_look
from hoi.world.vocabulary import (
    COMBINATIONS,
    INTERACTION_ROW,
    INTERACTIONS,
    NO_INTERACTION,
    OBJECTS,
    SPLITS,
    TRAINING_SPLITS,
)

TAIL_OFFSET = 3
"""Larger is flatter: an interaction of rank k has weight (k + TAIL_OFFSET) ** -1.5."""

FLOOR = 5_000
"""Least weight of a combination in `train`, so that few interactions are absent from it."""

Combination = tuple[str, tuple[str, ...]]
"""An object and its verbs."""


def _shuffled(key: str) -> list[int]:
    dice, rows = Dice(key), list(range(len(INTERACTIONS)))
    for last in range(len(rows) - 1, 0, -1):
        other = dice.below(last + 1)
        rows[last], rows[other] = rows[other], rows[last]
    return rows


@cache
def _tail() -> dict[tuple[str, str], int]:
    """Weight of each interaction in `train`, in millionths of the weight of rank 1 - TAIL_OFFSET."""
    ranked = _shuffled("tail")
    return {INTERACTIONS[row]: 10**9 // isqrt((rank + TAIL_OFFSET) ** 3 * 10**6) for rank, row in enumerate(ranked)}


@cache
def _tailed_combinations() -> tuple[tuple[Combination, ...], tuple[int, ...]]:
    items, weights = [], []
    for name, combinations in COMBINATIONS.items():
        for verbs, weight in (*combinations, ((NO_INTERACTION,), 3)):
            tail = [_tail()[verb, name] for verb in verbs]
            items.append((name, verbs))
            weights.append(weight * isqrt(min(tail) * max(tail)) * len(tail) + FLOOR)
    return tuple(items), tuple(weights)


@cache
def _cycle(seed: int, split: str, number: int) -> list[int]:
    return _shuffled(f"{seed}/{split}/cycle/{number}")


def combination_of_scene(seed: int, split: str, index: int, dice: Dice) -> Combination:
    """Object and verbs of a scene's first pair."""
    if split == "train":
        return dice.weighted(*_tailed_combinations())
    row = _cycle(seed, split, index // len(INTERACTIONS))[index % len(INTERACTIONS)]
    return _containing(row, dice)


def sample_combination(split: str, dice: Dice) -> Combination:
    """Object and verbs of a further pair."""
    if split == "train":
        return dice.weighted(*_tailed_combinations())
    return _containing(dice.below(len(INTERACTIONS)), dice)


def _containing(row: int, dice: Dice) -> Combination:
    verb, name = INTERACTIONS[row]
    if verb == NO_INTERACTION:
        return name, (verb,)
    fitting = [entry for entry in COMBINATIONS[name] if verb in entry[0]]
    return name, dice.weighted([verbs for verbs, _ in fitting], [weight for _, weight in fitting])


def rows_of(name: str, verbs: tuple[str, ...]) -> tuple[int, ...]:
    """Interaction rows of an object and its verbs, ascending."""
    return tuple(sorted(INTERACTION_ROW[verb, name] for verb in verbs))


Box = tuple[int, int, int, int]

MIN_HEIGHT = 76
"""Of a standing person, in canvas cells (38 px): below it verbs cannot be told."""

HEIGHTS = ((MIN_HEIGHT, 100, 12), (100, 160, 17), (160, 250, 22), (250, 350, 29), (350, 480, 20))
"""(low, high, weight) of a standing person's height, in cells, before it is shrunk to fit."""

NUM_PAIRS = ((1, 58), (2, 19), (3, 7), (4, 5), (5, 11))
"""(pairs wanted in a scene, weight)."""

MOST_HEIGHT = (480, 330, 230, 170)
"""The same, at most, by the number of pairs wanted: several groups need room."""

GROUP = 1000
"""Groups are composed around a person of this height, then scaled."""


@dataclass
class Group:
    """People and things that belong together, in thousandths, the first person at the origin facing right."""

    people: list[Person] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    interactions: list[Interaction] = field(default_factory=list)
    lines: list[tuple[Point, ...]] = field(default_factory=list)
    behind: set[int] = field(default_factory=set)  # people drawn before everything else of the group


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """Draws a scene; equal arguments give equal scenes, whatever was drawn before.

    Args:
        seed: Of the world; 0 is the committed one.
        split: A key of SPLITS, or `clip` or `detector`.
        index: 0 or more; may exceed the split's usual size.

    Raises:
        ValueError: For an unknown split or a negative index.
    """
    if split not in SPLITS and split not in TRAINING_SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {(*SPLITS, *TRAINING_SPLITS)}")
    if index < 0:
        raise ValueError(f"scene index must be 0 or more, got {index}")
    dice = Dice(f"{seed}/{split}/{index}/layout")
    wanted = dice.weighted(*zip(*NUM_PAIRS, strict=True))
    combination = combination_of_scene(seed, split, index, dice)
    placed: list[Group] = []
    boxes: list[Box] = []
    height = 0
    while wanted > 0:
        group = _compose(combination, wanted, split, dice)
        if not placed:
            height = min(_sample_height(dice), MOST_HEIGHT[min(wanted, len(MOST_HEIGHT)) - 1])
        put = _place(group, height, boxes, crowded=wanted > len(group.interactions) or bool(placed), dice=dice)
        if put is None:
            break
        placed.append(put[0])
        boxes.append(put[1])
        wanted -= len(group.interactions)
        combination = sample_combination(split, dice)
    for _ in range(dice.weighted((0, 1, 2), (58, 30, 12))):
        put = _place(_distractor(dice), height, boxes, crowded=True, dice=dice, gap=14)
        if put is not None:
            placed.append(put[0])
            boxes.append(put[1])
    return _assemble(seed, split, index, placed, dice)


def _sample_height(dice: Dice) -> int:
    low, high = dice.weighted([bounds[:2] for bounds in HEIGHTS], [bounds[2] for bounds in HEIGHTS])
    return dice.between(low, high)


def _compose(combination: Combination, room: int, split: str, dice: Dice) -> Group:
    """One person with one object, and, where `room` pairs allow, sharers, a second object or a bystander."""
    name, verbs = combination
    group = Group()
    if verbs == (NO_INTERACTION,):
        group.things.append(_thing(name, dice, 0, 0, dice.choose((1, -1))))
        group.layers.append("behind")
        _add_bystander(group, 0, dice)
    else:
        found = arrange(name, verbs, dice)
        group.people.append(Person(sample_look(dice), found.pose, 0, 0, GROUP, 1))
        group.things.append(_thing(name, dice, found.x, found.y, found.facing, found))
        group.layers.append(found.layer)
        group.interactions.append(Interaction(0, 0, verbs))
        if found.line:
            group.lines.append(found.line)
        if room >= 2 and found.side and dice.percent(60):
            _add_sharer(group, found, dice)
        elif room >= 2 and verbs in (("sit_on",), ("ride",), ("ride", "sit_on")) and dice.percent(60):
            _add_held(group, dice)
    if len(group.interactions) < room and dice.percent(22):
        _add_bystander(group, 0, dice)
    return group


def _thing(name: str, dice: Dice, x: int, y: int, facing: int, found: Arrangement | None = None) -> Thing:
    size = dice.between(94, 112)
    if found is None:
        return Thing(name, sample_thing_look(name, dice), x, y, GROUP * size // 100, facing, 0, "")
    exact = name in ("bicycle", "horse", "chair", "bench") or "grip" in found.posture  # bodies are fitted to these
    height = GROUP * found.size * (100 if exact else size) // 10000
    return Thing(name, sample_thing_look(name, dice), x, y, height, facing, found.turn, found.posture)


def _add_sharer(group: Group, first: Arrangement, dice: Dice) -> None:
    """A second person with the first's object, on another side of it."""
    thing = group.things[0]
    for _ in range(8):
        verbs = dice.weighted(*zip(*COMBINATIONS[thing.name], strict=True))
        found = arrange(thing.name, verbs, dice)
        both_on = first.side == found.side == "on"
        symmetric = thing.name in ("box", "bench")
        if not found.side or found.posture != thing.posture or (both_on and thing.name != "bench"):
            continue
        facing = found.facing * thing.facing
        if symmetric and not both_on and first.side == found.side:
            facing = -1
        elif first.side == found.side and not both_on:
            continue
        x = thing.x - facing * found.x
        if both_on and abs(x) < 300:
            continue
        row = len(group.people)
        group.people.append(Person(sample_look(dice), found.pose, x, 0, GROUP, facing))
        group.interactions.append(Interaction(row, 0, verbs))
        if found.line:
            group.lines.append(tuple((x + facing * p[0], p[1]) for p in found.line))
        if found.layer == "between":
            group.layers[0] = "between"
        return


def _add_held(group: Group, dice: Dice) -> None:
    """A second object in the first person's near hand."""
    person = group.people[0]
    name = dice.weighted(("umbrella", "ball", "frisbee"), (6, 2, 2))
    hip, neck = person.pose.hip, person.pose.neck
    if name == "umbrella":
        hand, place = (neck[0] + 170, neck[1] + 150), (0, 0)
    else:
        hand, place = (hip[0] + 250, hip[1] - 170), (70, 30)
    group.people[0] = person._replace(pose=person.pose._replace(near_hand=hand))
    group.things.append(_thing(name, dice, hand[0] + place[0], hand[1] + place[1], 1))
    group.layers.append("held")
    group.interactions.append(Interaction(0, len(group.things) - 1, ("hold",)))


def _add_bystander(group: Group, thing_row: int, dice: Dice) -> None:
    """Someone who stands close to an object and has nothing to do with it."""
    thing = group.things[thing_row]
    x0, _, x1, _ = extent(shapes_of_thing(thing))
    side = dice.choose((1, -1))
    inside = dice.between(30, max(40, min(150, (x1 - x0) // 2)))
    look, pose = sample_look(dice), idle(dice)
    x = x1 - inside + 110 if side > 0 else x0 + inside - 110
    near = [person for person in group.people if abs(person.x - x) < 300]
    if near:  # the other side is free, or else further out
        x = x0 + inside - 110 if side > 0 else x1 - inside + 110
        if any(abs(person.x - x) < 300 for person in group.people):
            return
    row = len(group.people)
    lift = 0 if dice.percent(50) else -dice.between(10, 40)
    group.people.append(Person(look, pose, x, lift, GROUP, dice.choose((1, -1))))
    group.interactions.append(Interaction(row, thing_row, (NO_INTERACTION,)))
    group.behind.add(row)


def _distractor(dice: Dice) -> Group:
    """A person or an object on its own."""
    group = Group()
    if dice.percent(40):
        group.people.append(Person(sample_look(dice), idle(dice), 0, 0, GROUP, dice.choose((1, -1))))
    else:
        group.things.append(_thing(dice.choose(OBJECTS[1:]), dice, 0, 0, dice.choose((1, -1))))
        group.layers.append("behind")
    return group


def _box(group: Group) -> Box:
    boxes = [extent(shapes_of_thing(thing)) for thing in group.things]
    boxes += [extent([s for layer in shapes_of_person(person).values() for s in layer]) for person in group.people]
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def _place(
    group: Group, height: int, taken: list[Box], crowded: bool, dice: Dice, gap: int = 8
) -> tuple[Group, Box] | None:
    """Scales and moves a group to a free place of the canvas.

    Args:
        group: In thousandths.
        height: Wanted of a standing person, in cells; shrunk to fit.
        taken: Boxes of the groups already there, in cells.
        crowded: True when other groups are still to fit in.
        dice: Source of the place.
        gap: Cells to keep from others.

    Returns:
        The moved group and its box, or None when no place was found.
    """
    x0, y0, x1, y1 = _box(group)
    limit = min(
        CANVAS * (64 if crowded else 108) * 10 // (x1 - x0), CANVAS * (80 if crowded else 101) * 10 // (y1 - y0)
    )
    if limit < MIN_HEIGHT and crowded:
        limit = min(CANVAS * 1000 // (x1 - x0), CANVAS * 1000 // (y1 - y0))
    scale = min(height * dice.between(85, 115) // 100, limit)
    facing = dice.choose((1, -1))
    for _ in range(60):
        scale = max(scale, MIN_HEIGHT)
        w, h = (x1 - x0) * scale // 1000, (y1 - y0) * scale // 1000
        left = dice.between(min(-4, CANVAS - w), max(CANVAS - w, 4))
        bottom = max(dice.between(CANVAS * 60 // 100, CANVAS - 4), h - 8)
        box = left, bottom - h, left + w, bottom
        if box[1] >= -6 and not any(
            box[0] < t[2] + gap and t[0] < box[2] + gap and box[1] < t[3] + gap and t[1] < box[3] + gap for t in taken
        ):
            x = left - x0 * scale // 1000 if facing > 0 else left + x1 * scale // 1000
            return _moved(group, x, bottom - y1 * scale // 1000, scale, facing), box
        scale = scale * 95 // 100
    return None


def _moved(group: Group, x: int, y: int, scale: int, facing: int) -> Group:
    def at(px: int, py: int) -> Point:
        return x + facing * (px * scale // 1000), y + py * scale // 1000

    people = []
    for person in group.people:
        px, py = at(person.x, person.y)
        people.append(person._replace(x=px, y=py, height=person.height * scale // 1000, facing=person.facing * facing))
    things = []
    for thing in group.things:
        px, py = at(thing.x, thing.y)
        things.append(thing._replace(x=px, y=py, height=thing.height * scale // 1000, facing=thing.facing * facing))
    lines = [tuple(at(*point) for point in line) for line in group.lines]
    return Group(people, things, group.layers, group.interactions, lines, group.behind)


def _assemble(seed: int, split: str, index: int, placed: list[Group], dice: Dice) -> Scene:
    """Numbers everyone, settles who is drawn before whom, and adds a backdrop."""
    placed = sorted(placed, key=lambda group: max([p.y for p in group.people] + [t.y for t in group.things]))
    people: list[Person] = []
    things: list[Thing] = []
    lines: list[tuple[tuple[Point, ...], int]] = []
    interactions: list[Interaction] = []
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    order: list[Step] = []
    for group in placed:
        p0, t0, l0 = len(people), len(things), len(lines)
        order += [Step(layer, p0 + row) for row in sorted(group.behind) for layer in ("far", "body", "near")]
        actors = [p0 + row for row in range(len(group.people)) if row not in group.behind]

        def on(layer: str, group: Group = group, t0: int = t0) -> list[Step]:
            return [Step("thing", t0 + row) for row, name in enumerate(group.layers) if name == layer]

        order += on("behind") + [Step("far", row) for row in actors] + on("between")
        order += [Step("body", row) for row in actors] + [Step("line", l0 + row) for row in range(len(group.lines))]
        order += on("held") + [Step("near", row) for row in actors]
        width = max(1, group.people[0].height // 110) if group.people else 1
        lines += [(line, width) for line in group.lines]
        people += group.people
        things += group.things
        interactions += [Interaction(p0 + i.person, t0 + i.thing, i.verbs) for i in group.interactions]
        groups.append((tuple(range(p0, len(people))), tuple(range(t0, len(things)))))
    wet = any(thing.name == "surfboard" for thing in things)
    ground = min([person.y for person in people] + [CANVAS * 62 // 100])
    background = sample_background(dice, ground - 12, wet)
    return Scene(
        seed,
        split,
        index,
        background,
        tuple(people),
        tuple(things),
        tuple(lines),
        tuple(interactions),
        tuple(groups),
        tuple(order),
    )
