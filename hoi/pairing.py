"""Detections → pairs: every kept human with every other kept detection.

Letters: P pairs.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from hoi.config import PairsConfig
from hoi.records import Detections


def pair_detections(
    detections: Detections, person_idx: int, config: PairsConfig, *, with_itself: bool = False
) -> Int[np.ndarray, "P 2"]:
    """Detections to candidate pairs, human first.

    The best `max_humans` persons and the best `max_objects` other detections of at least `min_score` take part;
    a person may be the object of another person, and of itself where that is asked for.

    Args:
        detections: By falling score.
        person_idx: Label of the human class.
        with_itself: Whether each human makes one more pair with itself, for what a person does without an object.

    Returns:
        int32 rows (human, object) of `detections`, by human, then by object; [0, 2] where nobody was found.
    """
    candidates = detections.scores >= config.min_score
    is_person = detections.labels == person_idx
    humans = np.flatnonzero(candidates & is_person)[: config.max_humans]
    things = np.flatnonzero(candidates & ~is_person)[: config.max_objects]
    partners = np.sort(np.concatenate([humans, things]))
    pairs = [(human, partner) for human in humans for partner in partners if with_itself or partner != human]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)
