"""How much of a folder a phrase speaks of, from the scores alone.

Letters: P pairs, K interactions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

THRESHOLDS = (0.01, 0.1, 0.3)
"""Of the final score."""
FEW_IMAGES = 5
MOSTLY = 0.5
"""Share of a phrase's score above which one image is said to hold most of it."""
TOP = 20
"""Best pairs among which that share is looked at."""


@dataclass(frozen=True)
class PhraseCoverage:
    """What a split holds of one interaction.

    Args:
        num_images: Images with a pair of its object.
        num_pairs: Such pairs.
        above: Such pairs with a final score of at least each of `THRESHOLDS`.
        num_images_above: Images of those that pass the first.
        best_score: Of any pair; 0 without one.
        top_image_share: Share of its `TOP` best pairs' score that one image has.
    """

    num_images: int
    num_pairs: int
    above: tuple[int, ...]
    num_images_above: int
    best_score: float
    top_image_share: float

    @property
    def notes(self) -> list[str]:
        """What its owner should know."""
        if not self.num_pairs:
            return ["never seen: no person together with this object"]
        found = []
        if self.num_images < FEW_IMAGES:
            found.append(f"in {self.num_images} image{'s' if self.num_images > 1 else ''} only")
        elif self.top_image_share > MOSTLY:
            found.append(f"one image holds {100 * self.top_image_share:.0f} % of its score")
        if not self.above[0]:
            found.append(f"no pair reaches {THRESHOLDS[0]:g}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        return {**asdict(self), "above": dict(zip(map(str, THRESHOLDS), self.above, strict=True)), "notes": self.notes}


def coverage(
    scores: Float[np.ndarray, "P K"], admitted: Bool[np.ndarray, "P K"], image: Int[np.ndarray, " P"]
) -> list[PhraseCoverage]:
    """Final scores of a split's pairs to the coverage of each of the K interactions.

    Args:
        scores: With the detection prior.
        admitted: Which interactions a pair's object admits.
        image: The image of each pair.
    """
    found = []
    for k in range(scores.shape[1]):
        rows = np.flatnonzero(admitted[:, k])
        of_pairs, of_images = scores[rows, k], image[rows]
        best = np.argsort(-of_pairs, kind="stable")[:TOP]
        mass = np.bincount(of_images[best], of_pairs[best]) if len(best) else np.zeros(1)
        found.append(
            PhraseCoverage(
                num_images=len(np.unique(of_images)),
                num_pairs=len(rows),
                above=tuple(int((of_pairs >= threshold).sum()) for threshold in THRESHOLDS),
                num_images_above=len(np.unique(of_images[of_pairs >= THRESHOLDS[0]])),
                best_score=float(of_pairs.max(initial=0.0)),
                top_image_share=float(mass.max() / mass.sum()) if mass.sum() > 0 else 0.0,
            )
        )
    return found


def largest_object(labels_o: Int[np.ndarray, " P"], num_objects: int) -> tuple[int, float]:
    """Objects of all pairs to the most frequent one and its share of them; (0, 0) without a pair."""
    counts = np.bincount(labels_o, minlength=num_objects)
    return (int(counts.argmax()), float(counts.max() / counts.sum())) if counts.sum() else (0, 0.0)
