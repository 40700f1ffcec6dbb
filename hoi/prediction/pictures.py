"""Draw an image's predictions: the best pairs, one colour per person, and a legend where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from hoi.drawing import PAIR_COLOURS, DrawnPair, add_legend, covered_share, draw_pairs, fit_longest_side
from hoi.prediction.predictor import HoiTriplet, ImageResult
from hoi.prompts import spaced
from hoi.vocabulary import NO_INTERACTION, NO_OBJECT, Vocabulary

MIN_SIDE_PX, MAX_SIDE_PX = 640, 1600
"""Limits of a picture's longest side: small images are enlarged, so that letters are not larger than people."""
MIN_SHARE = 0.1
"""Least score that is drawn, relative to the image's best: the scale of scores depends on the vocabulary."""
MAX_PAIRS = 12
MAX_LABELS, MAX_COVERED = 5, 0.12
"""Up to so many labels, covering up to this share of the picture, are drawn as words; others as numbers in a legend."""


def draw_result(
    image: np.ndarray, result: ImageResult, vocabulary: Vocabulary, *, max_pairs: int = MAX_PAIRS, legend: bool = True
) -> Image.Image:
    """Draw an image, uint8 [H, W, 3], with its best pairs; `no_interaction` is not drawn.

    Without `legend` nothing is added below, so that a video's frames keep their size.
    """
    pairs = shown_pairs(result, vocabulary, max_pairs)
    longest = max(result.size_hw)
    picture, scaled = fit_longest_side(image, pairs, min(max(longest, MIN_SIDE_PX), MAX_SIDE_PX))
    if not legend:
        return draw_pairs(picture, scaled)
    covered = covered_share(picture.size, scaled)
    if len(scaled) <= MAX_LABELS and covered is not None and covered <= MAX_COVERED:
        return draw_pairs(picture, scaled)
    numbered = [replace(pair, text=str(number), at_link=True) for number, pair in enumerate(scaled, start=1)]
    lines = [(str(pair.colour), str(number), pair.text) for number, pair in enumerate(scaled, start=1)]
    return add_legend(draw_pairs(picture, numbered), lines)


def shown_pairs(result: ImageResult, vocabulary: Vocabulary, max_pairs: int) -> list[DrawnPair]:
    """Return an image's best pairs, best first, each with all of its likely interactions and the best one's score."""
    likely = [each for each in result.triplets if each.verb != NO_INTERACTION]
    if not likely:
        return []
    groups: dict[tuple[int, int], list[HoiTriplet]] = {}
    for each in likely:
        if each.score >= MIN_SHARE * likely[0].score:
            groups.setdefault((each.human_idx, each.object_idx), []).append(each)
    chosen = list(groups.values())[:max_pairs]
    people = list(dict.fromkeys(members[0].human_idx for members in chosen))
    return [
        DrawnPair(
            members[0].human_xyxy,
            members[0].object_xyxy,
            f"{_words(members, vocabulary)} {members[0].score:#.2g}",
            colour=PAIR_COLOURS[people.index(members[0].human_idx) % len(PAIR_COLOURS)],
        )
        for members in chosen
    ]


def _words(members: Sequence[HoiTriplet], vocabulary: Vocabulary) -> str:
    # As `ride + hold bicycle`; the vocabulary's phrases as they are.
    if any(vocabulary.phrases[each.interaction_idx] is not None for each in members):
        return " + ".join(each.phrase for each in members)
    # Objects that are detected as one class share a pair: ride bicycle + ride bike.
    verbs: dict[str, list[str]] = {}
    for each in members:
        verbs.setdefault(each.object, []).append(spaced(each.verb))
    return " + ".join(
        " + ".join(names) if obj == NO_OBJECT else f"{' + '.join(names)} {spaced(obj)}" for obj, names in verbs.items()
    )
