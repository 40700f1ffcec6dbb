"""Images and settings for measuring stage one with models of full size and random weights.

Random weights take the time of trained ones. Detections are looked up, so that there are as many pairs as usual; where
the detector itself is measured, its random head is biased towards two classes, so that it finds pairs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from hoi.config import PairsConfig, PipelineConfig, parse_config
from hoi.config.loading import read_yaml
from hoi.datasets.world import scene_of, world_image_id
from hoi.weights import RANDOM, RANDOM_SEED
from hoi.world import OBJECTS, annotate, render

PHOTOGRAPHS = "HOI_CHECK_DATA"
"""Environment variable that names a folder with `photos/images`, `instances.json` and `detections_yolox_nano.json`."""
PHOTOGRAPHS_VOCABULARY = Path("examples/photographs_vocabulary.yaml")
SIDE_PX = 640
"""Side of drawn scenes: the usual size of photographs."""
BATCH_SIZE = 16
"""Small, because a batch of 128 would be mostly padding on both sides of the ratio."""
DETECTOR = "fasterrcnn_resnet50_fpn_v2"
CATEGORIES = {1: "person", 37: "sports ball"}
BIASES = {1: 4.0, 37: 3.0}
"""By torchvision's slots of COCO classes."""


def full_size_pipeline(folder: Path, clip: str, num_images: int, device: str, detector: str) -> PipelineConfig:
    """Return a pipeline of one split `test` on a few images of full size, all in one shard.

    Args:
        folder: For images, weights and shards.
        clip: open_clip's name of the teacher.
        num_images: Photographs if `HOI_CHECK_DATA` is set, else drawn scenes.
        detector: `precomputed` or `torchvision`.
    """
    root = os.environ.get(PHOTOGRAPHS)
    looked_up = _link_photographs(Path(root) / "photos", folder, num_images) if root else _draw(folder, num_images)
    pairs: dict[str, Any] = {}
    if detector == "torchvision":
        weights = folder / "detector.safetensors"
        _save_biased_detector(weights)
        looked_up = {"name": "torchvision", "model": DETECTOR, "weights": str(weights), "max_detections": 20}
        pairs = {"max_humans": 3, "max_objects": 3}
    vocabulary = PHOTOGRAPHS_VOCABULARY.read_text() if root else "[{verb: hold, object: sports_ball}]"
    (folder / "vocabulary.yaml").write_text(vocabulary)
    plain = {
        "name": "full size",
        "output": str(folder),
        "dataset": {
            "name": "folder",
            "images": str(folder / "images"),
            "vocabulary": str(folder / "vocabulary.yaml"),
            "splits": {"test": 1.0},
        },
        "detector": looked_up,
        "pairs": pairs,
        "teacher": {"model": clip, "pretrained": RANDOM, "batch_size": BATCH_SIZE},
        "cache": {"folder": str(folder / "cache"), "images_per_shard": num_images, "device": device},
        "students": {},
    }
    return parse_config(plain, "benchmark")


def image_kind() -> str:
    """Return what the images are, for a title."""
    return "photographs" if PHOTOGRAPHS in os.environ else f"scenes at {SIDE_PX} px"


def _link_photographs(root: Path, folder: Path, num_images: int) -> dict[str, Any]:
    """Link photographs that show a person and an object of the vocabulary."""
    instances = json.loads((root / "instances.json").read_text())
    objects = {entry["object"].replace("_", " ") for entry in read_yaml(PHOTOGRAPHS_VOCABULARY)}
    names = {category["id"]: category["name"] for category in instances["categories"]}
    detected: dict[Any, set[str]] = {}
    for detection in json.loads((root / "detections_yolox_nano.json").read_text()):
        if detection["score"] >= PairsConfig().min_score:
            detected.setdefault(detection["image_id"], set()).add(names[detection["category_id"]])
    paired = [
        image["file_name"]
        for image in instances["images"]
        if "person" in (seen := detected.get(image["id"], set())) and seen & (objects - {"person"})
    ]
    (folder / "images").mkdir()
    for name in paired[:: max(1, len(paired) // num_images)][:num_images]:
        (folder / "images" / name).symlink_to((root / "images" / name).absolute())
    return _looked_up(root / "detections_yolox_nano.json", root / "instances.json")


def _draw(folder: Path, num_images: int) -> dict[str, Any]:
    """Draw enlarged scenes of the embedded world; their annotated boxes are the detections."""
    (folder / "images").mkdir()
    listed, results = [], []
    for index in range(num_images):
        scene = scene_of(world_image_id(0, "train", index))
        small = Image.fromarray(render(scene))
        small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(folder / "images" / f"{index:04d}.jpg")
        listed.append({"id": index, "file_name": f"{index:04d}.jpg"})
        annotation = annotate(scene)
        for box, label in zip(annotation.boxes_xyxy * (SIDE_PX / small.width), annotation.labels, strict=True):
            x0, y0, x1, y1 = box.tolist()
            category = 1 if OBJECTS[label] == "person" else 37
            results.append(
                {"image_id": index, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9}
            )
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    (folder / "instances.json").write_text(json.dumps({"images": listed, "categories": categories}))
    (folder / "results.json").write_text(json.dumps(results))
    return _looked_up(folder / "results.json", folder / "instances.json")


def _looked_up(results: Path, instances: Path) -> dict[str, Any]:
    return {"name": "precomputed", "results": str(results), "instances": str(instances)}


def _save_biased_detector(path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = torchvision.models.get_model(DETECTOR, weights=None, weights_backbone=None)
    bias = model.roi_heads.box_predictor.cls_score.bias.data
    for row, value in BIASES.items():
        bias[row] = value
    save_file(model.state_dict(), path)
