"""Triplets of chosen images to pictures with drawn pairs, as data URIs.

Letters: R triplets, I images, K interactions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from hoi.drawing import Box, DrawnPair, Verdict, draw_pairs, fit_longest_side
from hoi.evaluation.ranking import Matches
from hoi.records import HoiLabels, Triplets
from hoi.report.curves import true_positives
from hoi.report.tables import in_words
from hoi.vocabulary import Vocabulary

SIDE_PX = 440
QUALITY = 80
SHOWN_WITHOUT_TRUTH = 3


@dataclass(frozen=True)
class Panel:
    """One method's picture of an image.

    Args:
        method: Its name.
        uri: The picture, as data URI.
        width, height: Of the picture, pixels.
        lines: What is drawn: verdict (None without truth) and text, with the score of a prediction.
    """

    method: str
    uri: str
    width: int
    height: int
    lines: list[tuple[Verdict | None, str]]

    @property
    def alt(self) -> str:
        """The picture in words."""
        return f"{self.method}: " + ("; ".join(f"{v + ': ' if v else ''}{text}" for v, text in self.lines) or "no pair")


@dataclass(frozen=True)
class Exhibit:
    """One image, as each method sees it.

    Args:
        image_id: Its key.
        note: What is worth saying of it.
        panels: One a method.
    """

    image_id: str
    note: str
    panels: list[Panel]


@dataclass(frozen=True)
class Shown:
    """What is drawn of one method in one image: a pair, its verdict, and the words with the score."""

    pair: DrawnPair
    line: str


class Judge:
    """Which of a method's predictions are shown, and what the truth says of them.

    Args:
        vocabulary: Of the triplets.
        labels: Of the split, or None: then nothing is right, wrong or missed.
    """

    def __init__(self, vocabulary: Vocabulary, labels: HoiLabels | None) -> None:
        self.vocabulary, self.labels = vocabulary, labels
        self._is_real = ~vocabulary.is_no_interaction

    def show(self, image: int, triplets: Triplets, matches: Matches | None) -> list[Shown]:
        """The best-scored triplets of an image, as many as it has annotated interactions, and what they leave out.

        `no_interaction` is neither shown nor counted. Interactions of the same boxes, object and verdict are one pair.

        Args:
            image: Row of the split.
            triplets: Of the method, on the whole split.
            matches: Of these triplets with the labels; None without labels.
        """
        rows = np.flatnonzero(triplets.image == image)
        rows = rows[self._is_real[triplets.interaction[rows]]]
        rows = rows[np.argsort(-triplets.score[rows], kind="stable")]
        if self.labels is None or matches is None:
            return self._group(triplets, rows[:SHOWN_WITHOUT_TRUTH], [None] * len(rows), with_score=True)
        truths = np.flatnonzero(self.labels.image == image)
        truths = truths[self._is_real[self.labels.interaction[truths]]]
        rows = rows[: len(truths)]
        is_true = self._true(image, triplets, matches)[rows]
        verdicts: list[Verdict | None] = ["right" if right else "wrong" for right in is_true]
        missed = truths[~np.isin(truths, matches.truth[rows[is_true]])]
        shown = self._group(triplets, rows, verdicts, with_score=True)
        labels = self.labels
        truth = Triplets(labels.image, labels.boxes_h, labels.boxes_o, labels.interaction, np.zeros(len(labels)))
        return shown + self._group(truth, missed, ["missed"] * len(missed), with_score=False)

    def _true(self, image: int, triplets: Triplets, matches: Matches) -> np.ndarray:
        # Scores of other images decide nothing here, and to rank them all for each image takes long.
        here = np.flatnonzero(triplets.image == image)
        names = ("image", "interaction", "truth", "is_hit", "counts")
        part = replace(matches, **{name: getattr(matches, name)[here] for name in names})
        is_true = np.zeros(len(triplets), bool)
        is_true[here] = true_positives(part, triplets.score[here])
        return is_true

    def _group(
        self, triplets: Triplets, rows: np.ndarray, verdicts: Sequence[Verdict | None], *, with_score: bool
    ) -> list[Shown]:
        # Two detections may have the same box and another class.
        groups: dict[tuple[Box, Box, str, Verdict | None], list[int]] = {}
        for row, verdict in zip(rows.tolist(), verdicts, strict=False):
            _, thing = self.vocabulary.interactions[triplets.interaction[row]]
            key = (_box(triplets.boxes_h[row]), _box(triplets.boxes_o[row]), thing, verdict)
            groups.setdefault(key, []).append(row)
        shown = []
        for (box_h, box_o, thing, verdict), members in groups.items():
            verbs = [self.vocabulary.interactions[k][0] for k in triplets.interaction[members]]
            words = in_words(f"{' + '.join(verbs)} {thing}")
            scores = ", ".join(f"{triplets.score[row]:#.2g}" for row in members)
            pair = DrawnPair(box_h, box_o, words, verdict)
            shown.append(Shown(pair, f"{words} ({scores})" if with_score else words))
        return shown


def _box(row: np.ndarray) -> Box:
    x1, y1, x2, y2 = (float(edge) for edge in row)
    return (x1, y1, x2, y2)


def make_panel(method: str, image: np.ndarray, shown: Sequence[Shown]) -> Panel:
    """An image and what is to be shown of a method to its picture."""
    picture = draw_pairs(*fit_longest_side(image, [one.pair for one in shown], SIDE_PX))
    lines = [(one.pair.verdict, one.line) for one in shown]
    return Panel(method, data_uri(picture), picture.width, picture.height, lines)


def data_uri(picture: Image.Image) -> str:
    """A picture to a WebP data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def choose_images(lead: np.ndarray, num_each: int, num_random: int, seed: int = 0) -> Mapping[str, list[int]]:
    """Each image's lead of the student over the teacher to the images that are shown.

    Args:
        lead: float64 [I]; NaN for an image that cannot be compared.
        num_each: Images with the largest lead, and as many with the largest lag.
        num_random: Images drawn by lot from the others that can be compared.
        seed: Of the lot.
    """
    known = np.flatnonzero(np.isfinite(lead))
    order = known[np.argsort(-lead[known], kind="stable")]
    ahead = [int(row) for row in order[:num_each] if lead[row] > 0]
    behind = [int(row) for row in order[::-1][:num_each] if lead[row] < 0]
    others = np.setdiff1d(known, ahead + behind)
    lot = np.random.default_rng(seed).permutation(others)[:num_random]
    return {"by lot": sorted(lot.tolist()), "ahead": ahead, "behind": behind}
