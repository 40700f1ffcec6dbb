"""The embedded world: drawn scenes of people and objects with exact annotation and captions. See WORLD.md."""

from __future__ import annotations

from hoi.world.captions import caption, caption_crop
from hoi.world.layout import sample_scene
from hoi.world.scene import Scene, SceneAnnotation, annotate, draw, render
from hoi.world.vocabulary import INTERACTIONS, OBJECTS, SIZE_PX, SPLITS, VERBS, WORLD_VERSION

__all__ = [
    "INTERACTIONS",
    "OBJECTS",
    "SIZE_PX",
    "SPLITS",
    "VERBS",
    "WORLD_VERSION",
    "Scene",
    "SceneAnnotation",
    "annotate",
    "caption",
    "caption_crop",
    "draw",
    "render",
    "sample_scene",
]
