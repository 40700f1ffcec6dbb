"""A trained student on images of one's own: detector, teacher and student in memory, no cache.

from hoi.prediction import Predictor

predictor = Predictor.from_checkpoint("outputs/world/checkpoints/best")
result = predictor("photograph.jpg")
"""

from __future__ import annotations

from hoi.prediction.checkpoint import Checkpoint
from hoi.prediction.predictor import HoiTriplet, ImageResult, Picture, Predictor

__all__ = ["Checkpoint", "HoiTriplet", "ImageResult", "Picture", "Predictor"]
