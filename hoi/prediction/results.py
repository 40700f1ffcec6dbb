"""What is found in one image: detections, and scored triplets over them.

Letters: N detections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hoi.records import Detections

BoxXyxy = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class HoiTriplet:
    """One scored ⟨human, verb, object⟩. Boxes are pixel-edge xyxy of the upright image.

    Args:
        human_xyxy, object_xyxy: Equal for what a person does alone.
        human_score, object_score: The detector's confidence.
        verb, object: Names of the vocabulary.
        phrase: The interaction in words.
        interaction_idx: Row of the vocabulary's interactions.
        score: The student's, detection prior included.
        teacher_score: Direct CLIP's of the same pair and interaction, as the row `direct_clip` of stage three.
        human_idx, object_idx: Rows of the image's detections.
    """

    human_xyxy: BoxXyxy
    object_xyxy: BoxXyxy
    human_score: float
    object_score: float
    verb: str
    object: str
    phrase: str
    interaction_idx: int
    score: float
    teacher_score: float
    human_idx: int
    object_idx: int

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "human_xyxy": list(self.human_xyxy), "object_xyxy": list(self.object_xyxy)}


@dataclass(frozen=True)
class ImageResult:
    """One image.

    Args:
        image_id: What it was called.
        size_hw: Pixels of the upright image.
        detections: All that the detector found, by falling score.
        object_names: N names, of each detection's class.
        triplets: By falling score.
    """

    image_id: str
    size_hw: tuple[int, int]
    detections: Detections
    object_names: list[str]
    triplets: list[HoiTriplet]

    def to_dict(self) -> dict[str, Any]:
        """The plain form that goes into JSON."""
        boxes, scores = self.detections.boxes_xyxy.tolist(), self.detections.scores.tolist()
        return {
            "image_id": self.image_id,
            "size_hw": list(self.size_hw),
            "detections": [
                {"xyxy": box, "score": score, "object": name}
                for box, score, name in zip(boxes, scores, self.object_names, strict=True)
            ],
            "triplets": [triplet.to_dict() for triplet in self.triplets],
        }
