"""What a build would take before anything runs: shards, bytes and minutes per split. Nothing is written.

Letters as in `hoi.cache.schema`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.index import index_fields
from hoi.cache.manifest import (
    BASE,
    Pass,
    Receipt,
    read_bank_receipt,
    read_manifest,
    read_receipt,
)
from hoi.cache.plan import SplitPlan, begun_with, is_complete
from hoi.cache.schema import fields_of
from hoi.config import PipelineConfig, TeacherConfig
from hoi.datasets import load_vocabulary

LOCAL_DIR = "local-dir:"
FILE_BYTES = 8 << 10
"""About what HDF5, attributes and the receipt take per shard beside its tables."""
ID_BYTES, CAPTION_BYTES = 32, 300
"""About what an image id takes, and the longest caption of a shard."""
ASSUMED_PAIRS, ASSUMED_DETECTIONS = 15.0, 20.0
"""Per image, where nothing of the cache is finished and nothing was sampled: usual for photographs of people."""


@dataclass(frozen=True)
class Density:
    """What an image comes to on average, and how that is known.

    Args:
        detections, pairs: Mean number per image.
        num_bytes: Mean bytes of an image in finished shards; None where only the schema says it.
        seconds: Of one worker per image; None where nothing says it.
        source: For people.
    """

    detections: float
    pairs: float
    num_bytes: float | None
    seconds: float | None
    source: str


@dataclass(frozen=True)
class SplitEstimate:
    """What a split has and lacks.

    Args:
        split: Its name.
        of: Which pass over it this is about.
        num_images, num_shards: Of the whole split.
        num_finished: Shards that are there.
        num_missing_images: Images of the others.
        bytes_finished: What the finished ones take.
        bytes_missing: What the others are expected to take.
        bytes_at_caps: What they would take at most, with every image at the limits of detections and pairs.
        worker_seconds: What they are expected to cost one worker; None where nothing says it.
    """

    split: str
    of: Pass
    num_images: int
    num_shards: int
    num_finished: int
    num_missing_images: int
    bytes_finished: int
    bytes_missing: float
    bytes_at_caps: float
    worker_seconds: float | None


def finished_shards(plan: SplitPlan, request: dict[str, Any]) -> list[Receipt]:
    """Receipts of the shards of a split that are there; sizes are looked at, files are not opened.

    Raises:
        UserError: they were made with other settings.
    """
    if is_complete(plan, request):
        manifest = read_manifest(plan.folder, plan.of)
        assert manifest is not None
        return list(manifest.shards)
    if begun_with(plan, request) is None:
        return []
    found = (read_receipt(plan.folder / shard.name) for shard in plan.shards)
    return [receipt for receipt in found if receipt is not None]


def axes_of(config: PipelineConfig) -> dict[str, int]:
    """Size of every letter, without loading weights; C, H, W are absent where only the loaded model knows them.

    Raises:
        UserError: the model is unknown.
    """
    teacher = config.teacher
    architecture = _architecture(teacher)
    vision = architecture.get("vision_cfg", {})
    layers = vision.get("layers", 12)
    is_resnet, is_timm = isinstance(layers, list | tuple), bool(vision.get("timm_model_name"))
    map_levels = (2 if is_resnet else 1) if "map" in teacher.regions else 0
    axes = {
        "K": len(load_vocabulary(config.dataset)),
        "D": int(architecture["embed_dim"]),
        "M": len(teacher.crop.margins),
        "L": map_levels + ("crop" in teacher.regions),
    }
    if teacher.spatial_map and not is_timm:
        side = teacher.image_size_px or vision.get("image_size", 224)
        width = vision.get("width", 64 if is_resnet else 768)
        cells = side // (32 if is_resnet else vision.get("patch_size", 16))
        axes |= {"C": width * 32 if is_resnet else width, "H": cells, "W": cells}
    return axes


def _architecture(teacher: TeacherConfig) -> dict[str, Any]:
    if teacher.model.startswith(LOCAL_DIR):
        path = Path(teacher.model.removeprefix(LOCAL_DIR)) / "open_clip_config.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    # Imported here: open_clip takes seconds, which a model in a local folder does not need.
    from hoi.teachers.loading import read_architecture

    return read_architecture(teacher)


def axes_of_pass(config: PipelineConfig, name: str, width: int) -> dict[str, int]:
    """Size of every letter of a further pass.

    Args:
        config: `vlms` and the vocabulary are read.
        name: Of the pass.
        width: D of the teacher.
    """
    settings, number = config.vlms[name], len(load_vocabulary(config.dataset))
    axes = {"K": number} if settings.image_scores else {}
    axes |= {"Q": number} if settings.pair_scores else {}
    return axes | ({"S": settings.max_sentences, "D": width} if settings.caption else {})


def bytes_per_image(axes: dict[str, int], detections: float, pairs: float, of: Pass = BASE) -> float:
    """What one image with so many detections and pairs takes in a shard and in the index, by the schema."""
    rows = {"image": 1.0, "offset": 1.0, "detection": detections, "pair": pairs}
    index = [field for field in index_fields(of.fields) if field.rows in rows]
    texts = {"image_id": ID_BYTES, "caption": CAPTION_BYTES if "S" in axes and not of.is_base else 1}
    return sum(
        rows[field.rows]
        * (texts.get(field.name, 1) if field.is_text else np.dtype(field.dtype).itemsize)
        * float(np.prod([axes[axis] if isinstance(axis, str) else axis for axis in field.axes]))
        for field in (*fields_of(axes, of.fields), *index)
    )


def pair_cap(config: PipelineConfig) -> int:
    """The most pairs that an image can have."""
    total, with_itself = config.detector.max_detections, load_vocabulary(config.dataset).has_no_object
    most_humans, most_things = min(config.pairs.max_humans, total), config.pairs.max_objects
    return max(h * (h - 1 + with_itself + min(most_things, total - h)) for h in range(1, most_humans + 1))


def measured_density(folders: Sequence[Path], receipts: Sequence[Receipt], of: Pass = BASE) -> Density | None:
    """What finished shards of a pass, and its journals in the splits, say; None where nothing is finished."""
    num_images = sum(receipt.num_images for receipt in receipts)
    if not num_images:
        return None
    return Density(
        sum(receipt.num_detections for receipt in receipts) / num_images,
        sum(receipt.num_pairs for receipt in receipts) / num_images,
        sum(receipt.num_bytes for receipt in receipts) / num_images,
        journal_seconds(folders, of),
        f"measured on {num_images} finished images",
    )


def journal_seconds(folders: Sequence[Path], of: Pass = BASE) -> float | None:
    """Seconds of one worker per image, the median over the journals' shards; None where they hold none."""
    seconds = []
    for folder in folders:
        bank = read_bank_receipt(folder, of)
        journal = folder / of.journal_name
        if bank is None or not journal.is_file():
            continue
        last = -(-bank.num_images // bank.images_per_shard) - 1
        for text in journal.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                index = int(line["task"].rpartition("shard-")[2].removesuffix(".h5"))
            except (ValueError, KeyError):
                # The line of a bank, or one that a kill cut short.
                continue
            if line["seconds"] is not None and index <= last:
                size = bank.images_per_shard if index < last else bank.num_images - last * bank.images_per_shard
                seconds.append(line["seconds"] / size)
    return statistics.median(seconds) if seconds else None


def assumed_density(config: PipelineConfig) -> Density:
    """What is assumed where nothing is known, within the limits that the config sets."""
    pairs = min(ASSUMED_PAIRS, float(pair_cap(config)))
    detections = min(ASSUMED_DETECTIONS, float(config.detector.max_detections))
    return Density(detections, pairs, None, None, "assumed: nothing of this cache is finished, and nothing was sampled")


def sampled_density(config: PipelineConfig, split: str, num_images: int) -> tuple[Density, dict[str, int]]:
    """A few images, spread evenly over a split, through the real models: (what they came to, the exact axes).

    Raises:
        UserError: the models cannot be loaded, or none of the images can be read.
    """
    from hoi.cache.build.models import hold, load_extractor
    from hoi.datasets import UnreadableImage, open_images
    from hoi.errors import UserError

    held = hold(config.model_dump_json(), load_extractor)
    source = open_images(config.dataset, split)
    rows = np.unique(np.linspace(0, len(source.image_ids) - 1, min(num_images, len(source.image_ids))).astype(int))
    images = []
    start = time.monotonic()
    for row in rows.tolist():
        try:
            images.append((source.image_ids[row], source.read(row)))
        except UnreadableImage:
            continue
    reading = time.monotonic() - start
    if not images:
        raise UserError("none of the sampled images can be read", where=f"split '{split}'", got=f"{len(rows)} images")
    ids, pixels = map(list, zip(*images, strict=True))
    # The first pass pays for what a long build pays for once.
    held.model.extract(ids[:1], pixels[:1])
    start = time.monotonic()
    records = held.model.extract(ids, pixels)
    seconds = (reading + time.monotonic() - start) / len(records)
    density = Density(
        sum(len(record.detections) for record in records) / len(records),
        sum(len(record.pairs_ho) for record in records) / len(records),
        None,
        seconds,
        f"sampled on {len(records)} images of split '{split}'",
    )
    return density, dict(held.model.axes)


def estimate_split(
    plan: SplitPlan, finished: Sequence[Receipt], density: Density, config: PipelineConfig, axes: dict[str, int]
) -> SplitEstimate:
    """A split's plan and what is finished of it to what it still takes."""
    done_images = sum(receipt.num_images for receipt in finished)
    missing = plan.num_images - done_images
    # A complete split may have been built with another shard size than the config's.
    num_shards = len(plan.shards) if missing else len(finished)
    overhead = FILE_BYTES * (num_shards - len(finished))
    each = bytes_per_image(axes, density.detections, density.pairs, plan.of)
    most = bytes_per_image(axes, config.detector.max_detections, pair_cap(config), plan.of)
    return SplitEstimate(
        plan.split,
        plan.of,
        plan.num_images,
        num_shards,
        len(finished),
        missing,
        sum(receipt.num_bytes for receipt in finished),
        missing * (density.num_bytes or each) + overhead,
        missing * most + overhead,
        None if density.seconds is None else missing * density.seconds,
    )


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that a folder lies on, or will lie on."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def lacks_spatial_map(config: PipelineConfig, axes: dict[str, int]) -> bool:
    """Whether spatial maps are asked for whose size the axes do not tell."""
    return config.teacher.spatial_map and "C" not in axes
