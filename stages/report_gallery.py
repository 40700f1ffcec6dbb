"""The report's gallery: images drawn by lot, and those on which student and teacher differ most."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hoi.datasets import ImageSource, UnreadableImage, open_images
from hoi.errors import UserError
from hoi.report.curves import image_ap, image_disagreement
from hoi.report.gallery import Exhibit, Judge, choose_images, make_panel
from stages.report_methods import Bench

NUM_EACH, NUM_BY_LOT = 4, 6
"""Images with the largest lead, as many with the largest lag, and images drawn by lot."""
CHOSEN = "Chosen, not typical."


@dataclass(frozen=True)
class Gallery:
    """What there is to see.

    Args:
        parts: Heading, explanation and images of each part.
        none_because: Why there is nothing; empty where there is something.
        notes: What had to be left out.
    """

    parts: list[tuple[str, str, list[Exhibit]]] = field(default_factory=list)
    none_because: str = ""
    notes: list[str] = field(default_factory=list)


def make_gallery(bench: Bench) -> Gallery:
    """The shown student beside the teacher on a few images, or why there are none."""
    try:
        source = open_images(bench.config.dataset, bench.config.evaluation.split)
    except UserError as error:
        return Gallery(none_because=f"the images are not at hand: {error.what}")
    if list(source.image_ids) != bench.split.image_ids:
        return Gallery(none_because="the images of the split are no longer those that were evaluated")
    lead, notes = _leads(bench)
    chosen = choose_images(lead, NUM_EACH, NUM_BY_LOT)
    ahead = (
        ("The largest differences", f"Images on which the two spread their scores most differently. {CHOSEN}")
        if bench.matches is None
        else (f"{bench.student.name} ahead", f"Images with the largest lead in that AP. {CHOSEN}")
    )
    parts = {
        "by lot": ("Drawn by lot", "Images drawn by lot from all that are not below."),
        "ahead": ahead,
        "behind": (f"{bench.teacher.name} ahead", f"Images with the largest lag in that AP. {CHOSEN}"),
    }
    unreadable: list[str] = []
    found = []
    for key, (heading, text) in parts.items():
        exhibits = [_exhibit(source, row, notes[row], bench, unreadable) for row in chosen[key]]
        found.append((heading, text, [exhibit for exhibit in exhibits if exhibit is not None]))
    said = f"{len(unreadable)} images cannot be read, such as {unreadable[0]}" if unreadable else ""
    if not any(exhibits for _, _, exhibits in found):
        return Gallery(none_because=said or "no image has a pair")
    return Gallery(found, notes=[f"The gallery lacks pictures: {said}"] if said else [])


def _leads(bench: Bench) -> tuple[np.ndarray, list[str]]:
    """How far student and teacher lie apart on each image, float64 [I] and in words; NaN where none is drawn."""
    student, teacher, num_images = bench.student, bench.teacher, bench.split.num_images
    if bench.matches is None:
        triplets = student.triplets
        lead = image_disagreement(triplets.image, triplets.score, teacher.triplets.score, num_images)
        lead[np.bincount(triplets.image, minlength=num_images) == 0] = np.nan
        return lead, [f"{100 * value:.0f} % of the scores' mass lies elsewhere" for value in lead]
    is_real = ~bench.split.vocabulary.is_no_interaction
    aps = [image_ap(bench.matches, method.triplets.score, num_images, is_real) for method in (student, teacher)]
    words = [
        f"AP within the image: {student.name} {100 * a:.0f}, {teacher.name} {100 * b:.0f}"
        for a, b in zip(*aps, strict=True)
    ]
    return aps[0] - aps[1], words


def _exhibit(source: ImageSource, row: int, note: str, bench: Bench, unreadable: list[str]) -> Exhibit | None:
    """One image under both methods; None, and its name and the reason in `unreadable`, where it cannot be read."""
    try:
        image = source.read(row)
    except UnreadableImage as error:
        unreadable.append(f"{source.image_ids[row]}: {error}")
        return None
    judge = Judge(bench.split.vocabulary, bench.labels)
    panels = [
        make_panel(method.name, image, judge.show(row, method.triplets, bench.matches))
        for method in (bench.student, bench.teacher)
    ]
    return Exhibit(source.image_ids[row], note, panels)
