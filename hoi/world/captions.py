"""Scenes become captions like the alt text of the web: partial, varied, about what one sees.

A caption is made from the drawn scene as a human would describe it. It holds no box and no class number, and it does
not say which person a phrase belongs to; verbs reach the world's CLIP by these words only. About a third of the
captions of a compound pose name one of its verbs only, and some name none. All lower-case ASCII.
"""

from __future__ import annotations

from hoi.world.people import Look
from hoi.world.raster import CANVAS, Dice, extent
from hoi.world.scene import Interaction, Person, Scene, Thing, shapes_of_person, shapes_of_thing
from hoi.world.vocabulary import NO_INTERACTION

NOUNS: dict[str, tuple[str, ...]] = {
    "bicycle": ("bicycle", "bicycle", "bike"),
    "horse": ("horse", "horse", "horse", "pony"),
    "skateboard": ("skateboard", "skateboard", "board"),
    "ball": ("ball", "ball", "ball", "football"),
    "umbrella": ("umbrella",),
    "dog": ("dog", "dog", "dog", "puppy"),
    "chair": ("chair", "chair", "chair", "seat"),
    "bench": ("bench", "bench", "bench", "park bench"),
    "suitcase": ("suitcase", "suitcase", "bag", "luggage case"),
    "surfboard": ("surfboard", "surfboard", "surf board"),
    "frisbee": ("frisbee", "frisbee", "flying disc"),
    "box": ("box", "box", "box", "crate"),
}
PEOPLE: dict[str, tuple[str, ...]] = {
    "man": ("man", "man", "guy", "person", "person"),
    "woman": ("woman", "woman", "lady", "person", "person"),
    "kid": ("kid", "child", "boy", "girl", "person"),
}
DOING: dict[str, tuple[str, ...]] = {
    "ride": ("riding", "riding", "riding"),
    "sit_on": ("sitting on", "sitting on", "seated on"),
    "hold": ("holding", "holding", "holding", "gripping"),
    "lift": ("lifting", "lifting", "lifting", "raising"),
    "throw": ("throwing", "throwing", "tossing"),
    "kick": ("kicking", "kicking", "kicking"),
    "pull": ("pulling", "pulling", "tugging"),
    "push": ("pushing", "pushing", "shoving"),
    "pet": ("petting", "petting", "stroking"),
    "jump_over": ("jumping over", "jumping over", "leaping over"),
    NO_INTERACTION: ("standing next to", "near", "and", "and", "standing by"),
}
DOES: dict[str, str] = {
    "ride": "rides",
    "sit_on": "sits on",
    "hold": "holds",
    "lift": "lifts",
    "throw": "throws",
    "kick": "kicks",
    "pull": "pulls",
    "push": "pushes",
    "pet": "pets",
    "jump_over": "jumps over",
}
GRIPS: dict[str, tuple[str, ...]] = {
    "bicycle": ("hands on the handlebars", "holding the handlebars"),
    "horse": ("holding the reins", "reins in hand"),
    "dog": ("holding the leash", "leash in hand"),
    "suitcase": ("holding the handle", "hand on the handle"),
}
PREFIXES = ("a photo of", "a photo of", "photo of", "a picture of", "image of", "a drawing of")
SETTINGS: dict[str, tuple[str, ...]] = {
    "grass": ("in the park", "on the grass", "on a field"),
    "sand": ("on the beach", "on the sand"),
    "street": ("in the street", "in town"),
    "water": ("by the sea", "on the water"),
    "room": ("indoors", "in a room"),
}


def caption(scene: Scene, variant: int) -> str:
    """A caption of the whole scene.

    Args:
        scene: To describe.
        variant: Any integer; each gives its own wording.
    """
    dice = Dice(f"{scene.seed}/{scene.split}/{scene.index}/caption/{variant}")
    phrases = _phrases(scene, sorted({i.person for i in scene.interactions}), dice)
    return _sentence(scene, phrases, dice)


def caption_crop(scene: Scene, variant: int) -> tuple[str, tuple[int, int, int, int]]:
    """A caption of a part of the scene, and that part.

    Args:
        scene: To describe.
        variant: Any integer; each gives its own choice of part and wording.

    Returns:
        (caption, (x0, y0, x1, y1)) in scene pixels, exclusive at x1 and y1.
    """
    dice = Dice(f"{scene.seed}/{scene.split}/{scene.index}/crop/{variant}")
    kind = dice.weighted(("pair", "group", "thing", "person"), (66, 18, 8, 8))
    if kind == "thing" and scene.things:
        thing = dice.choose(scene.things)
        return _sentence(scene, [_thing(thing, dice)], dice), _crop(scene, [], [thing], dice)
    if kind == "person" and scene.people:
        person = dice.choose(scene.people)
        return _sentence(scene, [_person(person.look, dice)], dice), _crop(scene, [person], [], dice)
    if kind == "group" or not scene.interactions:
        people, things = dice.choose(scene.groups)
        if kind == "group" and scene.interactions:
            people, things = dice.choose([g for g in scene.groups if any(i.person in g[0] for i in scene.interactions)])
        phrases = _phrases(scene, list(people), dice)
        box = _crop(scene, [scene.people[row] for row in people], [scene.things[row] for row in things], dice)
        return _sentence(scene, phrases or [_thing(scene.things[row], dice) for row in things], dice), box
    interaction = dice.choose(scene.interactions)
    box = _crop(scene, [scene.people[interaction.person]], [scene.things[interaction.thing]], dice)
    return _sentence(scene, [_doing(scene, interaction, dice)], dice), box


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _person(look: Look, dice: Dice) -> str:
    noun = dice.choose(PEOPLE[look.kind])
    if dice.percent(16):
        return _article(f"{noun} in {_article(look.shirt_name + ' ' + dice.choose(('shirt', 'top')))}")
    if look.hat != "none" and dice.percent(12):
        return _article(f"{noun} in {_article(look.hat)}")
    return _article(noun)


def _thing(thing: Thing, dice: Dice) -> str:
    noun = dice.choose(NOUNS[thing.name])
    return _article(f"{thing.look.colour_name} {noun}" if dice.percent(30) else noun)


def _doing(scene: Scene, interaction: Interaction, dice: Dice) -> str:
    """One person, one object, and some of the verbs between them."""
    thing = scene.things[interaction.thing]
    who, what = _person(scene.people[interaction.person].look, dice), _thing(thing, dice)
    verbs = list(interaction.verbs)
    if verbs == [NO_INTERACTION]:
        return f"{who} {dice.choose(DOING[NO_INTERACTION])} {what}"
    if dice.percent(8):
        return f"{who} with {what}"
    if "ride" in verbs and dice.percent(6):
        who = "a rider"
    first = dice.choose(verbs)
    rest = [verb for verb in verbs if verb != first]
    if not rest or dice.percent(35):
        return f"{who} {DOES[first] if dice.percent(18) else dice.choose(DOING[first])} {what}"
    if rest == ["hold"] or (first != "hold" and "hold" in rest and dice.percent(50)):
        if thing.name in GRIPS and dice.percent(35):
            return f"{who} {dice.choose(DOING[first])} {what}, {dice.choose(GRIPS[thing.name])}"
        rest = ["hold"]
    second = dice.choose(rest)
    one, other = dice.choose(DOING[first]), dice.choose(DOING[second])
    return f"{who} {one} and {other} {what}" if dice.percent(60) else f"{who} {one} {what} and {other} it"


def _phrases(scene: Scene, people: list[int], dice: Dice) -> list[str]:
    """What the given people do, the largest first, the later ones sometimes left out."""
    phrases = []
    for row in sorted(people, key=lambda row: (-scene.people[row].height, row)):
        mine = [i for i in scene.interactions if i.person == row]
        if not mine:
            if dice.percent(30):
                phrases.append(_person(scene.people[row].look, dice))
            continue
        if phrases and dice.percent(30):
            continue
        phrase = _doing(scene, mine[0], dice)
        for more in mine[1:]:
            if dice.percent(70):
                phrase += f", holding {_thing(scene.things[more.thing], dice)}"
        phrases.append(phrase)
    return phrases


def _sentence(scene: Scene, phrases: list[str], dice: Dice) -> str:
    interacting = {i.thing for i in scene.interactions}
    if not phrases:
        phrases = [_thing(thing, dice) for thing in scene.things] or [_person(p.look, dice) for p in scene.people]
    elif len(phrases) > 1 and len(interacting) < len(scene.things) and dice.percent(25):
        spare = [thing for row, thing in enumerate(scene.things) if row not in interacting]
        phrases = [*phrases, _thing(dice.choose(spare), dice)]
    text = phrases[0] + "".join(dice.choose((" and ", ", ", ", with ")) + p for p in phrases[1:])
    if dice.percent(18):
        text += " " + dice.choose(SETTINGS[scene.background.kind])
    if dice.percent(40):
        text = f"{dice.choose(PREFIXES)} {text}"
    return text


def _crop(scene: Scene, people: list[Person], things: list[Thing], dice: Dice) -> tuple[int, int, int, int]:
    """Union of the figures, widened by a random margin, in scene pixels."""
    boxes = [extent(shapes_of_thing(thing)) for thing in things]
    boxes += [extent([s for layer in shapes_of_person(person).values() for s in layer]) for person in people]
    x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
    x1, y1 = max(b[2] for b in boxes), max(b[3] for b in boxes)
    side = max(x1 - x0, y1 - y0)
    margins = [side * dice.between(2, 22) // 100 for _ in range(4)]
    left, top = max(x0 - margins[0], 0) // 2, max(y0 - margins[1], 0) // 2
    right, bottom = min(x1 + margins[2], CANVAS) // 2, min(y1 + margins[3], CANVAS) // 2
    return left, top, max(right, left + 1), max(bottom, top + 1)
