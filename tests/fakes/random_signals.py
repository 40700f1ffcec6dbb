"""An extractor without models, for tests of the cache: signals that follow from the image id and the pixels alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hoi.config import PipelineConfig, parse_config
from hoi.records import Detections, ImageSignals, TextBank
from hoi.vocabulary import Vocabulary

AXES = {"K": 3, "D": 4, "M": 2, "L": 2}
MAP_AXES = {"C": 2, "H": 3, "W": 1}


def random_signals(
    image_id: str, num_detections: int, num_pairs: int, seed: int = 0, with_map: bool = False
) -> ImageSignals:
    """A record with the given numbers of rows."""
    rng = np.random.default_rng([seed, int(hashlib.sha256(image_id.encode()).hexdigest()[:8], 16)])
    k, d, m, levels = (AXES[axis] for axis in "KDML")

    def features(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float16)

    corners = rng.uniform(0, 50, (num_detections, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (num_detections, 2))], axis=1)
    return ImageSignals(
        image_id=image_id,
        size_hw=np.array([100, 120], np.int32),
        detections=Detections(
            boxes.astype(np.float32),
            np.sort(rng.uniform(size=num_detections))[::-1].astype(np.float32),
            rng.integers(0, 2, num_detections),
        ),
        pairs_ho=rng.integers(0, max(1, num_detections), (num_pairs, 2)).astype(np.int32),
        image_embedding=features(d),
        image_similarity=features(k),
        union_embedding=features(num_pairs, m, d),
        union_similarity=features(num_pairs, m, k),
        detection_feature=features(num_detections, levels, d),
        union_feature=features(num_pairs, levels, d),
        spatial_map=features(*MAP_AXES.values()) if with_map else None,
    )


class RandomSignals:
    """In the place of `hoi.extraction.Extractor`. An image's first pixel says how many pairs it has."""

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> None:
        self.with_map = config.teacher.spatial_map
        self.axes = {**AXES, **(MAP_AXES if self.with_map else {})}
        texts = np.random.default_rng(1).normal(size=(AXES["K"], AXES["D"])).astype(np.float32)
        self.text_bank = TextBank(texts, 50.0, None, tuple((name,) for name in vocabulary.names))
        self.teacher = config.teacher.model_dump(mode="json", include={"prompts", "precision"})

    def provenance(self) -> dict[str, Any]:
        return {"teacher": self.teacher, "versions": {"random": "1"}}

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        records = []
        for image_id, image in zip(image_ids, images, strict=True):
            num_pairs = int(image[0, 0, 0])
            seed = int(hashlib.sha256(image.tobytes()).hexdigest()[:8], 16)
            records.append(random_signals(image_id, num_pairs and num_pairs + 1, num_pairs, seed, self.with_map))
        return records

    def extract_stream(self, images: Iterable[tuple[str, np.ndarray]]) -> list[ImageSignals]:
        pairs = list(images)
        return self.extract([image_id for image_id, _ in pairs], [image for _, image in pairs])


class FailingSignals(RandomSignals):
    """Breaks on the image whose first pixel is 13."""

    def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
        if any(image[0, 0, 0] == 13 for image in images):
            raise RuntimeError("thirteen")
        return super().extract(image_ids, images)


class FirstIsFaster(RandomSignals):
    """Finds bf16 faster in the first process that looks, and fp32 in every other one, as clocks do that are near."""

    def __init__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> None:
        super().__init__(config, vocabulary, device)
        if self.teacher["precision"] == "auto":
            try:
                Path(config.output).mkdir()
                self.teacher["precision"] = "bf16"
            except FileExistsError:
                self.teacher["precision"] = "fp32"


def photo_pipeline(folder: Path, num_pairs: Sequence[int] = (2, 0, 1, 5, 3), **sections: Any) -> PipelineConfig:
    """A folder of tiny photographs with the given numbers of pairs, and a pipeline of one split `test` on it.

    Args:
        folder: Where everything is to lie.
        num_pairs: One per photograph; they are named 00.png, 01.png, ...
        sections: Keys of the pipeline file that are put over, section by section.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for row, pairs in enumerate(num_pairs):
        Image.fromarray(np.full((8, 9, 3), [pairs, row, 0], np.uint8)).save(images / f"{row:02d}.png")
    (folder / "vocabulary.yaml").write_text(
        "[{verb: ride, object: bicycle}, {verb: push, object: bicycle}, {verb: pet, object: dog}]"
    )
    plain: dict[str, Any] = {
        "name": "photos",
        "output": str(folder / "outputs"),
        "dataset": {
            "name": "folder",
            "images": str(images),
            "vocabulary": str(folder / "vocabulary.yaml"),
            "splits": {"test": 1.0},
        },
        "detector": {"name": "torchvision", "weights": "random"},
        "teacher": {"model": "RN50-quickgelu", "pretrained": "random"},
        "cache": {
            "folder": str(folder / "cache"),
            "scheduler": "synchronous",
            "device": "cpu",
            "images_per_shard": 2,
            "max_failed_share": 0.25,
        },
        "students": {"student": {}},
    }
    for name, section in sections.items():
        plain[name] = {**plain.get(name, {}), **section}
    return parse_config(plain, "photo pipeline")
