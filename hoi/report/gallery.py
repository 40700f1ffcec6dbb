"""Pictures of a few images with the pairs that student and teacher find, as data URIs.

Shapes: I images, K interactions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hoi.datasets import ImageSource, UnreadableImage, open_images
from hoi.drawing import Box, DrawnPair, Verdict, draw_pairs, fit_longest_side
from hoi.errors import UserError
from hoi.evaluation.hico import Matches
from hoi.records import HoiLabels, Triplets
from hoi.report.finished import FinishedEvaluation, in_words
from hoi.report.plots import image_ap, image_disagreement, true_positives
from hoi.vocabulary import Vocabulary

SIDE_PX = 440
QUALITY = 80
SHOWN_WITHOUT_TRUTH = 3
NUM_EACH, NUM_RANDOM = 4, 6  # images with the largest lead, as many with the largest lag, and images drawn by lot
CHOSEN = "Chosen, not typical."


@dataclass(frozen=True)
class Panel:
    """One method's picture of an image."""

    method: str
    uri: str
    width: int  # pixels
    height: int
    lines: list[tuple[Verdict | None, str]]  # verdict (None without truth), and text with the score of a prediction

    @property
    def alt(self) -> str:
        """The picture in words."""
        return f"{self.method}: " + ("; ".join(f"{v + ': ' if v else ''}{text}" for v, text in self.lines) or "no pair")


@dataclass(frozen=True)
class Exhibit:
    """One image, as each method sees it."""

    image_id: str
    note: str
    panels: list[Panel]


@dataclass(frozen=True)
class Gallery:
    """Headings, each with its explanation and images."""

    parts: list[tuple[str, str, list[Exhibit]]] = field(default_factory=list)
    none_because: str = ""  # why there is nothing; empty where there is something
    notes: list[str] = field(default_factory=list)  # what had to be left out


ShownPair = tuple[DrawnPair, str]  # what is drawn of one method in one image, and the words with the score


def choose_pairs(
    image: int, triplets: Triplets, matches: Matches | None, vocabulary: Vocabulary, labels: HoiLabels | None
) -> list[ShownPair]:
    """Return the best-scored triplets of an image, as many as it has annotated interactions, and what they miss.

    `no_interaction` is neither shown nor counted. Interactions of the same boxes, object and verdict are one pair.
    """
    is_real = ~vocabulary.is_no_interaction
    here = np.flatnonzero(triplets.image == image)
    rows = here[is_real[triplets.interaction[here]]]
    rows = rows[np.argsort(-triplets.score[rows], kind="stable")]
    if labels is None or matches is None:
        return _group(vocabulary, triplets, rows[:SHOWN_WITHOUT_TRUTH], [None] * len(rows), with_score=True)
    truths = np.flatnonzero(labels.image == image)
    truths = truths[is_real[labels.interaction[truths]]]
    rows = rows[: len(truths)]
    # Scores of other images decide nothing here, and to rank them all for each image takes long.
    names = ("image", "interaction", "truth", "is_hit", "counts")
    part = replace(matches, **{name: getattr(matches, name)[here] for name in names})
    is_true = np.zeros(len(triplets), bool)
    is_true[here] = true_positives(part, triplets.score[here])
    verdicts: list[Verdict | None] = ["right" if right else "wrong" for right in is_true[rows]]
    missed = truths[~np.isin(truths, matches.truth[rows[is_true[rows]]])]
    truth = Triplets(labels.image, labels.boxes_h, labels.boxes_o, labels.interaction, np.zeros(len(labels)))
    shown = _group(vocabulary, triplets, rows, verdicts, with_score=True)
    return shown + _group(vocabulary, truth, missed, ["missed"] * len(missed), with_score=False)


def _group(
    vocabulary: Vocabulary,
    triplets: Triplets,
    rows: np.ndarray,
    verdicts: Sequence[Verdict | None],
    *,
    with_score: bool,
) -> list[ShownPair]:
    # Two detections may have the same box and another class.
    groups: dict[tuple[Box, Box, str, Verdict | None], list[int]] = {}
    for row, verdict in zip(rows.tolist(), verdicts, strict=False):
        _, obj = vocabulary.interactions[triplets.interaction[row]]
        key = (_box(triplets.boxes_h[row]), _box(triplets.boxes_o[row]), obj, verdict)
        groups.setdefault(key, []).append(row)
    shown = []
    for (box_h, box_o, obj, verdict), members in groups.items():
        verbs = [vocabulary.interactions[k][0] for k in triplets.interaction[members]]
        words = in_words(f"{' + '.join(verbs)} {obj}")
        scores = ", ".join(f"{triplets.score[row]:#.2g}" for row in members)
        line = f"{words} ({scores})" if with_score else words
        shown.append((DrawnPair(box_h, box_o, words, verdict), line))
    return shown


def _box(row: np.ndarray) -> Box:
    x1, y1, x2, y2 = (float(edge) for edge in row)
    return (x1, y1, x2, y2)


def choose_images(lead: np.ndarray, num_each: int, num_random: int, seed: int = 0) -> Mapping[str, list[int]]:
    """Choose the images with the largest lead of the student over the teacher, the largest lag, and others by lot.

    `lead` is float64 [I], NaN for an image that cannot be compared.
    """
    known = np.flatnonzero(np.isfinite(lead))
    order = known[np.argsort(-lead[known], kind="stable")]
    ahead = [int(row) for row in order[:num_each] if lead[row] > 0]
    behind = [int(row) for row in order[::-1][:num_each] if lead[row] < 0]
    others = np.setdiff1d(known, ahead + behind)
    lot = np.random.default_rng(seed).permutation(others)[:num_random]
    return {"by lot": sorted(lot.tolist()), "ahead": ahead, "behind": behind}


def make_gallery(finished: FinishedEvaluation) -> Gallery:
    """Draw the shown student beside the teacher on a few images, or say why there are none."""
    student, teacher = finished.student.name, finished.teacher.name
    try:
        source = open_images(finished.config.dataset, finished.config.evaluation.split)
    except UserError as error:
        return Gallery(none_because=f"the images are not at hand: {error.what}")
    if list(source.image_ids) != finished.split.image_ids:
        return Gallery(none_because="the images of the split are no longer those that were evaluated")
    lead, notes = _leads(finished)
    chosen = choose_images(lead, NUM_EACH, NUM_RANDOM)
    ahead = (f"{student} ahead", f"Images with the largest lead in that AP. {CHOSEN}")
    if finished.matches is None:
        about = f"Images on which the two spread their scores most differently. {CHOSEN}"
        ahead = ("The largest differences", about)
    parts = {
        "by lot": ("Drawn by lot", "Images drawn by lot from all that are not below."),
        "ahead": ahead,
        "behind": (f"{teacher} ahead", f"Images with the largest lag in that AP. {CHOSEN}"),
    }
    unreadable: list[str] = []
    shown = []
    for key, (heading, text) in parts.items():
        exhibits = [_exhibit(source, row, notes[row], finished, unreadable) for row in chosen[key]]
        shown.append((heading, text, [exhibit for exhibit in exhibits if exhibit is not None]))
    said = f"{len(unreadable)} images cannot be read, such as {unreadable[0]}" if unreadable else ""
    if not any(exhibits for _, _, exhibits in shown):
        return Gallery(none_because=said or "no image has a pair")
    return Gallery(shown, notes=[f"The gallery lacks pictures: {said}"] if said else [])


def _leads(finished: FinishedEvaluation) -> tuple[np.ndarray, list[str]]:
    # How far student and teacher are apart on each image, float64 [I] and in words; NaN where none is drawn.
    student, teacher, num_images = finished.student, finished.teacher, finished.split.num_images
    if finished.matches is None:
        triplets = student.triplets
        lead = image_disagreement(triplets.image, triplets.score, teacher.triplets.score, num_images)
        lead[np.bincount(triplets.image, minlength=num_images) == 0] = np.nan
        return lead, [f"{100 * value:.0f} % of the scores' mass lies elsewhere" for value in lead]
    is_real = ~finished.split.vocabulary.is_no_interaction
    aps = [image_ap(finished.matches, m.triplets.score, num_images, is_real) for m in (student, teacher)]
    said = "AP within the image: {} {:.0f}, {} {:.0f}"
    words = [said.format(student.name, 100 * a, teacher.name, 100 * b) for a, b in zip(*aps, strict=True)]
    return aps[0] - aps[1], words


def _exhibit(
    source: ImageSource, row: int, note: str, finished: FinishedEvaluation, unreadable: list[str]
) -> Exhibit | None:
    try:
        image = source.read(row)
    except UnreadableImage as error:
        unreadable.append(f"{source.image_ids[row]}: {error}")
        return None
    panels, vocabulary = [], finished.split.vocabulary
    for method in (finished.student, finished.teacher):
        shown = choose_pairs(row, method.triplets, finished.matches, vocabulary, finished.labels)
        picture = draw_pairs(*fit_longest_side(image, [pair for pair, _ in shown], SIDE_PX))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY)
        uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        lines = [(pair.verdict, line) for pair, line in shown]
        panels.append(Panel(method.name, uri, picture.width, picture.height, lines))
    return Exhibit(source.image_ids[row], note, panels)
