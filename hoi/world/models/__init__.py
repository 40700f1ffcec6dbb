"""The embedded world's CLIP, detector and captioner: train them again, or check the committed ones.

Training takes one core, no GPU, and about half an hour each; the check three minutes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

WEIGHTS = Path(__file__).parents[1] / "weights"
"""The committed weights: `clip/`, `coca/` and `detector.safetensors`."""
PARTS = ("clip", "detector", "captioner")
MIN_TOP1, MIN_AP50, MIN_CLASS_AP50, MIN_CAPTIONER_TOP1 = 0.75, 0.80, 0.50, 0.75
"""What the committed weights must reach on the test split."""


def train_world(part: str = "all", seed: int = 0, out: Path = WEIGHTS) -> None:
    """Train a part (one of PARTS, or `all`) and write its weights below `out`; the captioner needs `out/clip`.

    Args:
        seed: Of the scenes, the initial weights, the order and the augmentation.
    """
    import torch

    from hoi.world.models.captioner import CaptionerRecipe, train_captioner
    from hoi.world.models.clip import ClipRecipe, train_clip
    from hoi.world.models.detector import DetectorRecipe, train_detector

    # The recipes are for one core.
    torch.set_num_threads(1)
    for name in PARTS if part == "all" else (part,):
        report = _reporter(name)
        if name == "clip":
            train_clip(ClipRecipe(), seed, out / "clip", report)
        elif name == "detector":
            train_detector(DetectorRecipe(), seed, out / "detector.safetensors", report)
        else:
            train_captioner(CaptionerRecipe(), seed, out / "clip", out / "coca", report)
        report(f"wrote it below {out}")


def _reporter(name: str) -> Callable[[str], None]:
    """Return a function that prints a line with the wall and the CPU time since now."""
    wall, cpu = time.monotonic(), time.process_time()

    def report(line: str) -> None:
        times = f"{time.monotonic() - wall:.0f} s ({time.process_time() - cpu:.0f} s CPU)"
        print(f"{name}: {line} · {times}", file=sys.stderr, flush=True)

    return report


def check_world(folder: Path = WEIGHTS, split: str = "test") -> tuple[str, bool]:
    """Measure weights on a split of the world with seed 0; return a table, and whether every minimum is reached."""
    import torch

    from hoi.config import TeacherConfig, VlmConfig, WorldDetectorConfig
    from hoi.datasets.world import world_vocabulary
    from hoi.detectors.world import WorldDetector
    from hoi.teachers import build_teacher
    from hoi.vlm.coca import CocaModel
    from hoi.world import SPLITS, draw, sample_scene
    from hoi.world.models.measure import measure_captioner, measure_clip, measure_detector

    torch.set_num_threads(1)
    teacher = TeacherConfig(model=f"local-dir:{folder / 'clip'}")
    vocabulary, margin = world_vocabulary(), teacher.crop.margins[0]
    scenes = [sample_scene(0, split, index) for index in range(SPLITS[split])]
    drawn = [draw(scene) for scene in scenes]
    clip = measure_clip(build_teacher(teacher, "cpu"), vocabulary, margin, drawn)
    detector = WorldDetectorConfig(name="world", weights=str(folder / "detector.safetensors"))
    ap50 = measure_detector(WorldDetector(detector, vocabulary, "cpu"), vocabulary, drawn)
    vlm = CocaModel(VlmConfig(backend="coca", model=f"local-dir:{folder / 'coca'}", batch_size=64), "cpu")
    captioner = measure_captioner(vlm, vocabulary, margin, scenes, drawn)
    rows = [
        ("CLIP, top-1 on ground-truth union crops", clip.top1, MIN_TOP1),
        (f"  pairs of one interaction ({clip.num_single} of {clip.num_pairs})", clip.top1_single, None),
        ("  among the interactions of the pair's object", clip.top1_within_object, None),
        ("  whole images, mean AP over interactions", clip.image_map, None),
        ("detector, AP50", sum(ap50.values()) / len(ap50), MIN_AP50),
        ("  its worst class", min(ap50.values()), MIN_CLASS_AP50),
        *((f"  {name}", value, None) for name, value in ap50.items()),
        ("captioner, top-1 within the object", captioner.top1_within_object["likelihood"], MIN_CAPTIONER_TOP1),
        *((f"  the same by {way}", value, None) for way, value in captioner.top1_within_object.items()),
        *((f"  whole images, mean AP over verbs, by {way}", value, None) for way, value in captioner.image_map.items()),
        ("  whole images, mean AP if only the objects are known", captioner.chance_map, None),
        ("  perplexity per token of whole images' captions", captioner.perplexity, None),
    ]
    lines = [f"{folder}, {len(vocabulary)} interactions, {len(scenes)} scenes of split {split}"]
    for name, value, minimum in rows:
        verdict = "" if minimum is None else f"  ≥ {minimum:.2f}: {'met' if value >= minimum else 'MISSED'}"
        lines.append(f"{name:<52} {value:.3f}{verdict}")
    return "\n".join(lines), all(minimum is None or value >= minimum for _, value, minimum in rows)
