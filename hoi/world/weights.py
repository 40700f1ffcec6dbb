"""Trains the embedded world's CLIP, detector and captioner again, or measures the committed ones.

    python -m hoi.world.weights [--part clip|detector|captioner|all] [--seed 0] [--out hoi/world/weights]
    python -m hoi.world.weights --check

Training: one core, no GPU, about half an hour each. The check: three minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hoi.errors import run_program

WEIGHTS = Path("hoi/world/weights")
MIN_TOP1, MIN_AP50, MIN_CLASS_AP50, MIN_CAPTIONER_TOP1 = 0.75, 0.80, 0.50, 0.75
"""What the committed weights must reach on the test split."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line to weight files, or to a printed table of figures."""
    parser = argparse.ArgumentParser(prog="world_weights", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=("clip", "detector", "captioner", "all"), default="all", help="what to train")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn scenes, the initial weights and the order")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights")
    parser.add_argument("--check", action="store_true", help="train nothing; measure the weights in --out")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="scenes of the check")
    options = parser.parse_args(arguments)
    # The recipes are for one core; spinning OpenMP threads would only stall whoever shares it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(1)
    if options.check:
        return check(options.out, options.split)
    if options.part in ("clip", "all"):
        _train_clip(options.seed, options.out / "clip")
    if options.part in ("detector", "all"):
        _train_detector(options.seed, options.out / "detector.safetensors")
    if options.part in ("captioner", "all"):
        _train_captioner(options.seed, options.out / "clip", options.out / "coca")
    return 0


def _train_clip(seed: int, folder: Path) -> None:
    from hoi.world.train_clip import ClipRecipe, captioned_images, train_clip

    recipe, clock = ClipRecipe(), _Clock("clip")
    pairs = captioned_images(seed, recipe.num_scenes, recipe.crops_per_scene, recipe.stored_px)
    train_clip(pairs, recipe, seed, folder, clock.report)
    clock.report(f"wrote {folder}")


def _train_detector(seed: int, path: Path) -> None:
    from hoi.world import OBJECTS
    from hoi.world.train_detector import DetectorRecipe, annotated_images, train_detector

    recipe, clock = DetectorRecipe(), _Clock("detector")
    examples = annotated_images(seed, recipe.num_scenes)
    train_detector(examples, OBJECTS, recipe, seed, path, clock.report)
    clock.report(f"wrote {path}")


def _train_captioner(seed: int, clip_folder: Path, folder: Path) -> None:
    from hoi.world.train_captioner import CaptionerRecipe, train_captioner
    from hoi.world.train_clip import captioned_images

    recipe, clock = CaptionerRecipe(), _Clock("captioner")
    pairs = captioned_images(seed, recipe.num_scenes, recipe.crops_per_scene, recipe.stored_px)
    train_captioner(pairs, recipe, seed, clip_folder, folder, clock.report)
    clock.report(f"wrote {folder}")


def check(folder: Path, split: str) -> int:
    """Weights to a printed table of figures and of the bars they are to clear; 1 if one is missed, else 0.

    Args:
        folder: Holds `clip/`, `coca/` and `detector.safetensors`.
        split: Of the world with seed 0.
    """
    from hoi.config import TeacherConfig, VlmConfig, WorldDetectorConfig
    from hoi.datasets.world import world_vocabulary
    from hoi.detectors.world import WorldDetector
    from hoi.teachers import build_teacher
    from hoi.vlm.coca import CocaModel
    from hoi.world import SPLITS, draw, sample_scene
    from hoi.world.measure import measure_captioner, measure_clip, measure_detector

    config = TeacherConfig(model=f"local-dir:{folder / 'clip'}")
    vocabulary, margin = world_vocabulary(), config.crop.margins[0]
    scenes = [sample_scene(0, split, index) for index in range(SPLITS[split])]
    drawn = [draw(scene) for scene in scenes]
    clip = measure_clip(build_teacher(config, "cpu"), vocabulary, margin, drawn)
    detector = WorldDetector(
        WorldDetectorConfig(name="world", weights=str(folder / "detector.safetensors")), vocabulary, "cpu"
    )
    precision = measure_detector(detector, vocabulary, drawn)
    written = measure_captioner(
        CocaModel(VlmConfig(backend="coca", model=f"local-dir:{folder / 'coca'}", batch_size=64), "cpu"),
        vocabulary,
        margin,
        scenes,
        drawn,
    )
    mean, worst = sum(precision.values()) / len(precision), min(precision.values())
    rows = [
        ("CLIP, top-1 on ground-truth union crops", clip.top1, MIN_TOP1),
        (f"  pairs of one interaction ({clip.num_single} of {clip.num_pairs})", clip.top1_single, None),
        ("  among the interactions of the pair's object", clip.top1_within_object, None),
        ("  whole images, mean AP over interactions", clip.image_map, None),
        ("detector, AP50", mean, MIN_AP50),
        ("  its worst class", worst, MIN_CLASS_AP50),
        *((f"  {name}", value, None) for name, value in precision.items()),
        (
            "captioner, best text of the object's on union crops",
            written.top1_within_object["likelihood"],
            MIN_CAPTIONER_TOP1,
        ),
        *((f"  the same by {way}", value, None) for way, value in written.top1_within_object.items()),
        *((f"  whole images, mean AP over verbs, by {way}", value, None) for way, value in written.image_map.items()),
        ("  whole images, mean AP of knowing the objects alone", written.chance_map, None),
        ("  perplexity of a token of whole images' captions", written.perplexity, None),
    ]
    print(f"{folder}, {len(vocabulary)} interactions, {len(scenes)} scenes of split {split}")
    for name, value, bar in rows:
        verdict = "" if bar is None else f"  ≥ {bar:.2f}: {'met' if value >= bar else 'MISSED'}"
        print(f"{name:<52} {value:.3f}{verdict}")
    return int(any(bar is not None and value < bar for _, value, bar in rows))


class _Clock:
    """Prints lines of progress with the time since the start, on the wall and on the processor."""

    def __init__(self, name: str) -> None:
        self.name, self.wall, self.cpu = name, time.monotonic(), time.process_time()

    def report(self, line: str) -> None:
        """Prints one line."""
        wall, cpu = time.monotonic() - self.wall, time.process_time() - self.cpu
        print(f"{self.name}: {line} · {wall:.0f} s ({cpu:.0f} s CPU)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_program(main)
