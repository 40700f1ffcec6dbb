"""Wording: the -ing forms of all of HICO-DET's verbs, articles, templates, phrases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hoi.prompts import a_object, interaction_prompts, verb_ing
from hoi.vocabulary import Vocabulary
from tests.fakes.pipelines import refused

# The 116 verbs of HICO-DET beside no_interaction (Chao et al., WACV 2018), spelt by hand.
HICO_DET = """
adjust adjusting, assemble assembling, block blocking, blow blowing, board boarding, break breaking, brush_with
brushing with, buy buying, carry carrying, catch catching, chase chasing, check checking, clean cleaning, control
controlling, cook cooking, cut cutting, cut_with cutting with, direct directing, drag dragging, dribble dribbling,
drink_with drinking with, drive driving, dry drying, eat eating, eat_at eating at, exit exiting, feed feeding, fill
filling, flip flipping, flush flushing, fly flying, greet greeting, grind grinding, groom grooming, herd herding, hit
hitting, hold holding, hop_on hopping on, hose hosing, hug hugging, hunt hunting, inspect inspecting, install
installing, jump jumping, kick kicking, kiss kissing, lasso lassoing, launch launching, lick licking, lie_on lying on,
lift lifting, light lighting, load loading, lose losing, make making, milk milking, move moving, open opening, operate
operating, pack packing, paint painting, park parking, pay paying, peel peeling, pet petting, pick picking, pick_up
picking up, point pointing, pour pouring, pull pulling, push pushing, race racing, read reading, release releasing,
repair repairing, ride riding, row rowing, run running, sail sailing, scratch scratching, serve serving, set setting,
shear shearing, sign signing, sip sipping, sit_at sitting at, sit_on sitting on, slide sliding, smell smelling, spin
spinning, squeeze squeezing, stab stabbing, stand_on standing on, stand_under standing under, stick sticking, stir
stirring, stop_at stopping at, straddle straddling, swing swinging, tag tagging, talk_on talking on, teach teaching,
text_on texting on, throw throwing, tie tying, toast toasting, train training, turn turning, type_on typing on, walk
walking, wash washing, watch watching, wave waving, wear wearing, wield wielding, zip zipping
"""


FURTHER = """
jump_over jumping over, lie_on lying on, be being, see seeing, dye dyeing, ski skiing, quit quitting, unzip unzipping,
fix fixing, visit visiting, bring bringing, standing_near standing near
"""
OBJECTS = """
umbrella an umbrella, sports_ball a sports ball, unicycle a unicycle, hourglass an hourglass, apple an apple,
oven an oven, skis a pair of skis, scissors a pair of scissors, tv a tv
"""


@pytest.mark.parametrize(
    ("text", "num", "form"), [(HICO_DET, 116, verb_ing), (FURTHER, 12, verb_ing), (OBJECTS, 9, a_object)]
)
def test_verbs_and_articles_take_their_right_form(text: str, num: int, form: Callable[[str], str]) -> None:
    cases = [entry.split(maxsplit=1) for entry in " ".join(text.split()).split(", ")]
    assert len(cases) == num
    assert {name: form(name) for name, _ in cases} == dict(cases)
    assert verb_ing("lie on") == "lying on"


VOCABULARY = Vocabulary(
    objects=("person", "bus", "sports_ball"),
    verbs=("sit_on", "no_interaction"),
    interactions=(("sit_on", "bus"), ("no_interaction", "bus"), ("sit_on", "sports_ball")),
    phrases=(None, None, "bouncing on a ball"),
)
USUAL = ["a photo of a person {verb_ing} {a_object}."]
NO_INTERACTION = ["a photo of a person and {a_object}."]


def test_no_interaction_has_templates_of_its_own() -> None:
    texts = interaction_prompts(VOCABULARY, [*USUAL, "{object}: {phrase}"], NO_INTERACTION)
    assert texts == (
        ("a photo of a person sitting on a bus.", "bus: sitting on a bus"),
        ("a photo of a person and a bus.",),
        ("a photo of a person bouncing on a ball.", "sports ball: bouncing on a ball"),
    )
    # A phrase words it, too.
    vocabulary = Vocabulary(("person", "bus"), ("no_interaction",), (("no_interaction", "bus"),), ("beside a bus",))
    assert interaction_prompts(vocabulary, USUAL, NO_INTERACTION) == (("a photo of a person beside a bus.",),)


@pytest.mark.parametrize(
    ("prompts", "no_interaction_prompts", "what", "where"),
    [
        (["a {thing}"], NO_INTERACTION, "unknown field", "teacher.prompts, 'a {thing}'"),
        (["a {}"], NO_INTERACTION, "unknown field", "teacher.prompts, 'a {}'"),
        (["a {object"], NO_INTERACTION, "malformed", "teacher.prompts"),
        ([], NO_INTERACTION, "there is no prompt", "teacher.prompts"),
        (USUAL, ["{verb_ing}"], "unknown field", "teacher.no_interaction_prompts"),
        (["{object} being {verb_ing}"], NO_INTERACTION, "no place for the phrase 'bouncing on a ball'", "teacher"),
    ],
)
def test_a_wrong_template_is_named(
    prompts: list[str], no_interaction_prompts: list[str], what: str, where: str
) -> None:
    error = refused(interaction_prompts, VOCABULARY, prompts, no_interaction_prompts)
    assert what in error.what
    assert where in str(error.where)
