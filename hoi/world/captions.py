"""Captions of scenes, like the alt text of the web: partial and varied.

A caption describes the drawn scene as a person would, in lower-case ASCII. It has no box and no class number and does
not say which person a phrase is about; the world's CLIP sees verbs by these words only. About a third of the captions
of a pose with several verbs name one of them, and some name none.
"""

from __future__ import annotations

from hoi.world.people import Look
from hoi.world.raster import CANVAS, Box, Rng
from hoi.world.scene import Interaction, Object, Person, Scene, bounds
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
    """Return a caption of the whole scene; each integer `variant` has its own wording."""
    rng = Rng(f"{scene.seed}/{scene.split}/{scene.index}/caption/{variant}")
    return _sentence(scene, _phrases(scene, sorted({i.person for i in scene.interactions}), rng), rng)


def caption_crop(scene: Scene, variant: int) -> tuple[str, Box]:
    """Return a caption of a part of the scene, and the box of that part in scene pixels, exclusive at x1 and y1.

    Each integer `variant` has its own choice of part and wording.
    """
    rng = Rng(f"{scene.seed}/{scene.split}/{scene.index}/crop/{variant}")
    kind = rng.weighted(("pair", "group", "object", "person"), (66, 18, 8, 8))
    if kind == "object" and scene.objects:
        obj = rng.choose(scene.objects)
        return _sentence(scene, [_object(obj, rng)], rng), _crop([], [obj], rng)
    if kind == "person" and scene.people:
        person = rng.choose(scene.people)
        return _sentence(scene, [_person(person.look, rng)], rng), _crop([person], [], rng)
    if kind == "group" or not scene.interactions:
        people, objects = rng.choose(scene.groups)
        if kind == "group" and scene.interactions:
            people, objects = rng.choose([g for g in scene.groups if any(i.person in g[0] for i in scene.interactions)])
        phrases = _phrases(scene, list(people), rng)
        box = _crop([scene.people[row] for row in people], [scene.objects[row] for row in objects], rng)
        return _sentence(scene, phrases or [_object(scene.objects[row], rng) for row in objects], rng), box
    interaction = rng.choose(scene.interactions)
    box = _crop([scene.people[interaction.person]], [scene.objects[interaction.obj]], rng)
    return _sentence(scene, [_doing(scene, interaction, rng)], rng), box


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _person(look: Look, rng: Rng) -> str:
    noun = rng.choose(PEOPLE[look.kind])
    if rng.percent(16):
        return _article(f"{noun} in {_article(look.shirt_name + ' ' + rng.choose(('shirt', 'top')))}")
    if look.hat != "none" and rng.percent(12):
        return _article(f"{noun} in {_article(look.hat)}")
    return _article(noun)


def _object(obj: Object, rng: Rng) -> str:
    noun = rng.choose(NOUNS[obj.name])
    return _article(f"{obj.look.colour_name} {noun}" if rng.percent(30) else noun)


def _doing(scene: Scene, interaction: Interaction, rng: Rng) -> str:
    """Describe one pair by some of its verbs."""
    obj = scene.objects[interaction.obj]
    who, what = _person(scene.people[interaction.person].look, rng), _object(obj, rng)
    verbs = list(interaction.verbs)
    if verbs == [NO_INTERACTION]:
        return f"{who} {rng.choose(DOING[NO_INTERACTION])} {what}"
    if rng.percent(8):
        return f"{who} with {what}"
    if "ride" in verbs and rng.percent(6):
        who = "a rider"
    first = rng.choose(verbs)
    rest = [verb for verb in verbs if verb != first]
    if not rest or rng.percent(35):
        base, *words = first.split("_")
        does = " ".join([base + ("es" if base.endswith("sh") else "s"), *words])
        return f"{who} {does if rng.percent(18) else rng.choose(DOING[first])} {what}"
    if rest == ["hold"] or (first != "hold" and "hold" in rest and rng.percent(50)):
        if obj.name in GRIPS and rng.percent(35):
            return f"{who} {rng.choose(DOING[first])} {what}, {rng.choose(GRIPS[obj.name])}"
        rest = ["hold"]
    second = rng.choose(rest)
    one, other = rng.choose(DOING[first]), rng.choose(DOING[second])
    return f"{who} {one} and {other} {what}" if rng.percent(60) else f"{who} {one} {what} and {other} it"


def _phrases(scene: Scene, people: list[int], rng: Rng) -> list[str]:
    """Describe what people do, the tallest first; later ones are sometimes left out."""
    phrases = []
    for row in sorted(people, key=lambda row: (-scene.people[row].height, row)):
        interactions = [i for i in scene.interactions if i.person == row]
        if not interactions:
            if rng.percent(30):
                phrases.append(_person(scene.people[row].look, rng))
            continue
        if phrases and rng.percent(30):
            continue
        phrase = _doing(scene, interactions[0], rng)
        for other in interactions[1:]:
            if rng.percent(70):
                phrase += f", holding {_object(scene.objects[other.obj], rng)}"
        phrases.append(phrase)
    return phrases


def _sentence(scene: Scene, phrases: list[str], rng: Rng) -> str:
    interacting = {i.obj for i in scene.interactions}
    if not phrases:
        phrases = [_object(obj, rng) for obj in scene.objects] or [_person(p.look, rng) for p in scene.people]
    elif len(phrases) > 1 and len(interacting) < len(scene.objects) and rng.percent(25):
        spare = [obj for row, obj in enumerate(scene.objects) if row not in interacting]
        phrases = [*phrases, _object(rng.choose(spare), rng)]
    text = phrases[0] + "".join(rng.choose((" and ", ", ", ", with ")) + p for p in phrases[1:])
    if rng.percent(18):
        text += " " + rng.choose(SETTINGS[scene.background.kind])
    if rng.percent(40):
        text = f"{rng.choose(PREFIXES)} {text}"
    return text


def _crop(people: list[Person], objects: list[Object], rng: Rng) -> Box:
    """Return the union box with a random margin, in scene pixels."""
    x0, y0, x1, y1 = bounds(people, objects)
    side = max(x1 - x0, y1 - y0)
    margins = [side * rng.between(2, 22) // 100 for _ in range(4)]
    left, top = max(x0 - margins[0], 0) // 2, max(y0 - margins[1], 0) // 2
    right, bottom = min(x1 + margins[2], CANVAS) // 2, min(y1 + margins[3], CANVAS) // 2
    return left, top, max(right, left + 1), max(bottom, top + 1)
