"""Plan a build: shards, bytes and minutes per split, before anything runs. Nothing is written.

Shapes as in `hoi.cache.schema`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.build.pool import num_local_workers
from hoi.cache.index import index_fields
from hoi.cache.manifest import Receipt, read_bank_receipt, read_manifest, read_receipt
from hoi.cache.plan import SplitPlan, begun_with, is_complete, plan_over, plan_split, splits_of
from hoi.cache.schema import BASE, Pass, extra_passes, fields_of
from hoi.config import PipelineConfig, TeacherConfig
from hoi.datasets import UnreadableImage, load_vocabulary, open_images
from hoi.errors import UserError
from hoi.files import LOCAL_DIR, size_text
from hoi.registry import load_target

FILE_BYTES = 8 << 10
"""About what HDF5, attributes and the receipt take per shard beside its tables."""
ID_BYTES = 32
"""About what an image id takes."""
ASSUMED_PAIRS, ASSUMED_DETECTIONS = 15.0, 20.0
"""Per image, where nothing of the cache is finished and nothing was sampled: usual for photographs of people."""


@dataclass(frozen=True)
class Density:
    """What an image comes to on average, and how that is known; bytes and worker seconds are None if unknown."""

    detections: float
    pairs: float
    num_bytes: float | None
    seconds: float | None
    source: str


@dataclass(frozen=True)
class SplitEstimate:
    """What a split has and lacks; `bytes_at_caps` is with every image at the limits of detections and pairs."""

    plan: SplitPlan
    num_shards: int
    num_finished: int
    num_missing_images: int
    bytes_finished: int
    bytes_missing: float
    bytes_at_caps: float
    worker_seconds: float | None


def finished_shards(plan: SplitPlan, request: dict[str, Any]) -> list[Receipt]:
    """Return the receipts of the shards of a split that are there; sizes are looked at, files are not opened."""
    if is_complete(plan, request):
        manifest = read_manifest(plan.folder, plan.of)
        assert manifest is not None
        return list(manifest.shards)
    if begun_with(plan, request) is None:
        return []
    found = (read_receipt(plan.folder / shard.name) for shard in plan.shards)
    return [receipt for receipt in found if receipt is not None]


def axes_of(config: PipelineConfig) -> dict[str, int]:
    """Return the size of every letter of the base pass, without loading weights.

    C, H, W are absent where only the loaded model knows them. Raises a UserError if the model is unknown.
    """
    teacher = config.teacher
    sizes: dict[str, int] = load_target(teacher.SIZES)(teacher)
    num_levels = sizes.pop("L") + ("crop" in teacher.regions)
    return {"K": len(load_vocabulary(config.dataset)), "M": len(teacher.crop.margins), "L": num_levels, **sizes}


def open_clip_sizes(teacher: TeacherConfig) -> dict[str, int]:
    """Return D, the number of map levels L and, where the map is cached and no trunk of timm, its C, H and W."""
    architecture = _architecture(teacher)
    vision = architecture.get("vision_cfg", {})
    layers = vision.get("layers", 12)
    is_resnet, is_timm = isinstance(layers, list | tuple), bool(vision.get("timm_model_name"))
    sizes = {"D": int(architecture["embed_dim"]), "L": (2 if is_resnet else 1) if "map" in teacher.regions else 0}
    if teacher.spatial_map and not is_timm:
        side = teacher.image_size_px or vision.get("image_size", 224)
        width = vision.get("width", 64 if is_resnet else 768)
        cells = side // (32 if is_resnet else vision.get("patch_size", 16))
        sizes |= {"C": width * 32 if is_resnet else width, "H": cells, "W": cells}
    return sizes


def _architecture(teacher: TeacherConfig) -> dict[str, Any]:
    from hoi.teachers import read_local_config

    if teacher.model.startswith(LOCAL_DIR):
        return read_local_config(teacher.model)
    # Imported here: open_clip takes seconds, which a model in a local folder does not need.
    from hoi.teachers.loading import read_architecture

    return read_architecture(teacher)


def bytes_per_image(axes: dict[str, int], detections: float, pairs: float, of: Pass = BASE) -> float:
    """Return what an image with so many detections and pairs takes in a shard and in the index, by the schema."""
    content, rows = of.content, {"image": 1.0, "offset": 1.0, "detection": detections, "pair": pairs}
    index = [field for field in index_fields(content.fields) if field.rows in rows]
    texts = {"image_id": ID_BYTES, **content.text_bytes(axes)}
    return sum(
        rows[field.rows]
        * (texts.get(field.name, 1) if field.is_text else np.dtype(field.dtype).itemsize)
        * float(np.prod([axes[axis] if isinstance(axis, str) else axis for axis in field.axes]))
        for field in (*fields_of(axes, content.fields), *index)
    )


def pair_cap(config: PipelineConfig) -> int:
    """Return the most pairs that an image can have."""
    total, with_itself = config.detector.max_detections, load_vocabulary(config.dataset).has_no_object
    most_humans, most_objects = min(config.pairs.max_humans, total), config.pairs.max_objects
    return max(h * (h - 1 + with_itself + min(most_objects, total - h)) for h in range(1, most_humans + 1))


def measured_density(folders: Sequence[Path], receipts: Sequence[Receipt], of: Pass = BASE) -> Density | None:
    """Return what finished shards of a pass and its journals say; None where nothing is finished."""
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
    """Return one worker's seconds per image, the median over the journals' shards; None where they hold none."""
    seconds = []
    for folder in folders:
        bank = read_bank_receipt(folder, of)
        journal = folder / of.journal_name
        if bank is None or not journal.is_file():
            continue
        last = bank.num_shards - 1
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
    """Return what is assumed where nothing is known, within the limits that the config sets."""
    pairs = min(ASSUMED_PAIRS, float(pair_cap(config)))
    detections = min(ASSUMED_DETECTIONS, float(config.detector.max_detections))
    return Density(detections, pairs, None, None, "assumed: nothing of this cache is finished, and nothing was sampled")


def sampled_density(config: PipelineConfig, split: str, num_images: int) -> tuple[Density, dict[str, int]]:
    """Run a few images, spread evenly over a split, through the models; return what they came to and the axes."""
    from hoi.cache.build.worker import OwnModel, hold

    held = hold(config.model_dump_json(), OwnModel())
    source = open_images(config.dataset, split)
    rows = np.unique(np.linspace(0, len(source.image_ids) - 1, min(num_images, len(source.image_ids))).astype(int))
    images = []
    start = time.monotonic()
    for row in rows.tolist():
        with suppress(UnreadableImage):
            images.append((source.image_ids[row], source.read(row)))
    reading = time.monotonic() - start
    if not images:
        raise UserError("none of the sampled images can be read", where=f"split '{split}'", got=f"{len(rows)} images")
    ids, pixels = map(list, zip(*images, strict=True))
    # The first pass pays for what a long build pays for once.
    held.model.extract(ids[:1], pixels[:1])
    start = time.monotonic()
    records = held.model.extract(ids, pixels)
    seconds = (reading + time.monotonic() - start) / len(records)
    detections = sum(len(record.detections) for record in records) / len(records)
    pairs = sum(len(record.pairs_ho) for record in records) / len(records)
    source_text = f"sampled on {len(records)} images of split '{split}'"
    return Density(detections, pairs, None, seconds, source_text), dict(held.model.axes)


def estimate_split(
    plan: SplitPlan, finished: Sequence[Receipt], density: Density, config: PipelineConfig, axes: dict[str, int]
) -> SplitEstimate:
    done_images = sum(receipt.num_images for receipt in finished)
    missing = plan.num_images - done_images
    # A complete split may have been built with another shard size than the config's.
    num_shards = len(plan.shards) if missing else len(finished)
    overhead = FILE_BYTES * (num_shards - len(finished))
    each = bytes_per_image(axes, density.detections, density.pairs, plan.of)
    most = bytes_per_image(axes, config.detector.max_detections, pair_cap(config), plan.of)
    return SplitEstimate(
        plan,
        num_shards,
        len(finished),
        missing,
        sum(receipt.num_bytes for receipt in finished),
        missing * (density.num_bytes or each) + overhead,
        missing * most + overhead,
        None if density.seconds is None else missing * density.seconds,
    )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder lies on, or will lie on."""
    absolute = folder.absolute()
    return shutil.disk_usage(next(place for place in (absolute, *absolute.parents) if place.exists())).free


@dataclass(frozen=True)
class PlanReport:
    """What stage one would do; `num_workers` is None on a cluster."""

    splits: tuple[SplitEstimate, ...]
    density: Density
    axes: dict[str, int]
    num_workers: int | None
    free: int
    lacks_map: bool

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is missing."""
        return sum(split.bytes_missing for split in self.splits) <= self.free

    def __str__(self) -> str:
        lines = []
        for s in self.splits:
            name = s.plan.of.label(s.plan.split)
            have = f"{name}: {s.plan.num_images} images, {s.num_shards} shards: {s.num_finished} finished"
            have += f" ({size_text(s.bytes_finished)})" if s.num_finished else ""
            lack = f", {s.num_shards - s.num_finished} missing: about {size_text(s.bytes_missing)}"
            lack += f" (with every image at the limits {size_text(s.bytes_at_caps)})"
            lines.append(have + (lack if s.num_missing_images else ", nothing missing"))
        d, letters = self.density, ", ".join(f"{name} = {size}" for name, size in self.axes.items())
        lines.append(f"per image: {d.detections:.1f} detections, {d.pairs:.1f} pairs; {d.source}; {letters}")
        if self.lacks_map:
            lines.append("spatial maps are not counted: their size is known once the model is loaded (--sample 8)")
        total = sum(s.bytes_missing for s in self.splits)
        room = f"free on this disk: {size_text(self.free)}" + ("" if self.fits else ", NOT ENOUGH")
        needed = f"to build: about {size_text(total)}" if total else "to build: nothing"
        return "\n".join([*lines, f"{needed}; {room}; time: {self._time()}"])

    def _time(self) -> str:
        if not any(s.num_missing_images for s in self.splits):
            return "none"
        untimed = [s.plan.of for s in self.splits if s.num_missing_images and s.worker_seconds is None]
        if BASE in untimed:
            return "unknown: no shard of this cache was timed (--sample 8 times some images)"
        if untimed:
            return f"unknown: no shard of {untimed[0].title} was timed yet"
        seconds = sum(s.worker_seconds or 0.0 for s in self.splits)
        if self.num_workers is None:
            return f"about {seconds / 60:.1f} worker minutes, shared by the cluster's workers"
        workers = f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
        return f"about {seconds / 60 / self.num_workers:.1f} minutes with {workers}, start-up excluded"


def plan(config: PipelineConfig, sample: int | None = None) -> PlanReport:
    """Return what a build would take; `sample` images go through the real models to measure pairs and seconds.

    Raises UserError: the folder holds a cache of other settings, or the data set or the teacher is unknown.
    """
    request, folder = BASE.content.request(config), Path(config.cache.folder)
    plans = [plan_split(config, split) for split in splits_of(config)]
    finished = {p.split: finished_shards(p, request) for p in plans}
    banks = [bank for p in plans if (bank := read_bank_receipt(p.folder)) is not None]
    density = measured_density([p.folder for p in plans], [*chain(*finished.values())])
    if sample is not None:
        unfinished = [p.split for p in plans if sum(r.num_images for r in finished[p.split]) < p.num_images]
        measured = density
        density, axes = sampled_density(config, (unfinished or [plans[0].split])[0], sample)
        if measured is not None:
            density = replace(measured, seconds=density.seconds, source=f"{measured.source}, time {density.source}")
    else:
        axes = banks[0].axes if banks else axes_of(config)
    density = density or assumed_density(config)
    estimates = [estimate_split(p, finished[p.split], density, config, axes) for p in plans]
    for of in extra_passes(config):
        its_request, over, theirs = of.content.request(config, request), list[SplitPlan](), list[list[Receipt]]()
        for p in plans:
            manifest = read_manifest(p.folder) if is_complete(p, request) else None
            over.append(replace(p, of=of) if manifest is None else plan_over(manifest, p.folder, of))
            theirs.append([] if manifest is None else finished_shards(over[-1], its_request))
        measured = measured_density([p.folder for p in over], [*chain(*theirs)], of)
        expected = measured or replace(density, num_bytes=None, seconds=None)
        its_axes = of.content.axes(config, axes, len(load_vocabulary(config.dataset)))
        estimates += [estimate_split(*each, expected, config, its_axes) for each in zip(over, theirs, strict=True)]
    lacks_map = config.teacher.spatial_map and "C" not in axes
    own = {"synchronous": 1, "local": num_local_workers(config.cache)}
    num_workers = own.get(config.cache.scheduler)
    return PlanReport(tuple(estimates), density, axes, num_workers, free_bytes(folder), lacks_map)
