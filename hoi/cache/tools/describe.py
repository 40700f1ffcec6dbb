"""What a teacher cache would take, and what one is: the verbs `plan` and `info`. Neither writes anything."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hoi.cache.build.pool import default_workers, visible_devices
from hoi.cache.fingerprint import flatten, pass_request, request_parts
from hoi.cache.manifest import (
    BASE,
    Pass,
    of_file,
    passes_in,
    read_bank_receipt,
    read_manifest,
    read_receipt,
)
from hoi.cache.plan import SplitPlan, is_complete, plan_over, plan_split, splits_of
from hoi.cache.tools.estimate import (
    Density,
    SplitEstimate,
    assumed_density,
    axes_of,
    axes_of_pass,
    estimate_split,
    finished_shards,
    free_bytes,
    journal_seconds,
    lacks_spatial_map,
    measured_density,
    sampled_density,
)
from hoi.cache.tools.upkeep import QUARANTINE_NAME
from hoi.cache.tools.verify import cached_splits
from hoi.config import PipelineConfig
from hoi.errors import UserError

SHOWN = 20
"""Unreadable images that `info` lists per split before it says how many more there are."""


@dataclass(frozen=True)
class PlanReport:
    """What stage one would do.

    Args:
        splits: In the config's order, then those of every further pass.
        density: What an image comes to in the base pass.
        axes: Size of every letter.
        num_workers: Of the config; None on a cluster.
        free: Bytes of the disk.
        lacks_map: Whether spatial maps are asked for and not counted.
    """

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
            name = s.split if s.of.is_base else f"{s.split}, {s.of.title}"
            have = f"{name}: {s.num_images} images, {s.num_shards} shards: {s.num_finished} finished"
            have += f" ({_size(s.bytes_finished)})" if s.num_finished else ""
            lack = f", {s.num_shards - s.num_finished} missing: about {_size(s.bytes_missing)}"
            lack += f" (with every image at the limits {_size(s.bytes_at_caps)})"
            lines.append(have + (lack if s.num_missing_images else ", nothing missing"))
        d, letters = self.density, ", ".join(f"{name} = {size}" for name, size in self.axes.items())
        lines.append(f"per image: {d.detections:.1f} detections, {d.pairs:.1f} pairs; {d.source}; {letters}")
        if self.lacks_map:
            lines.append("spatial maps are not counted: their size is known once the model is loaded (--sample 8)")
        total = sum(s.bytes_missing for s in self.splits)
        room = f"free on this disk: {_size(self.free)}" + ("" if self.fits else ", NOT ENOUGH")
        needed = f"to build: about {_size(total)}" if total else "to build: nothing"
        return "\n".join([*lines, f"{needed}; {room}; time: {self._time()}"])

    def _time(self) -> str:
        if not any(s.num_missing_images for s in self.splits):
            return "none"
        untimed = [s.of for s in self.splits if s.num_missing_images and s.worker_seconds is None]
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
    """Config to what a build would take.

    Args:
        config: The pipeline file.
        sample: Images that are run through the real models to measure pairs and seconds; None for none.

    Raises:
        UserError: the folder holds a cache of other settings, or the data set or the teacher is unknown.
    """
    request, folder = request_parts(config), Path(config.cache.folder)
    plans = [plan_split(config, split) for split in splits_of(config)]
    finished = {p.split: finished_shards(p, request) for p in plans}
    banks = [bank for p in plans if (bank := read_bank_receipt(p.folder)) is not None]
    density = measured_density([p.folder for p in plans], [r for receipts in finished.values() for r in receipts])
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
    for name in config.vlms:
        estimates += _estimate_pass(config, name, plans, request, density, axes["D"])
    lacks_map = lacks_spatial_map(config, axes)
    return PlanReport(tuple(estimates), density, axes, _num_workers(config), free_bytes(folder), lacks_map)


def _estimate_pass(
    config: PipelineConfig, name: str, plans: list[SplitPlan], base: dict[str, Any], density: Density, width: int
) -> list[SplitEstimate]:
    """A further pass over splits, whether their base pass is complete yet or not.

    Args:
        config: The pipeline file.
        name: Of the pass.
        plans: Of the base pass.
        base: What the config asks of the base pass.
        density: Of the base pass: images have these many pairs.
        width: D of the teacher.
    """
    of, request = Pass(name), pass_request(config, name, base)
    own, finished = [], {}
    for plan in plans:
        manifest = read_manifest(plan.folder) if is_complete(plan, base) else None
        own.append(replace(plan, of=of) if manifest is None else plan_over(manifest, plan.folder, of))
        finished[plan.split] = [] if manifest is None else finished_shards(own[-1], request)
    measured = measured_density([p.folder for p in own], [r for receipts in finished.values() for r in receipts], of)
    ours = measured or replace(density, num_bytes=None, seconds=None)
    axes = axes_of_pass(config, name, width)
    return [estimate_split(plan, finished[plan.split], ours, config, axes) for plan in own]


def _num_workers(config: PipelineConfig) -> int | None:
    cache = config.cache
    if cache.scheduler == "synchronous":
        return 1
    if cache.scheduler != "local":
        return None
    return cache.workers or len(visible_devices(cache.device)) or default_workers(cache.threads)


def info(folder: Path) -> str:
    """A cache's folder to what it is, for people; unfinished splits included.

    Raises:
        UserError: there is no cache, or it is of another schema version.
    """
    splits = cached_splits(folder)
    if not splits:
        raise UserError("there is no teacher cache", where=folder, fix="make teacher-cache, or set cache.folder")
    lines: list[str] = []
    shown: set[str] = set()
    for split in splits:
        for of in (BASE, *passes_in(folder / split)):
            lines += _describe(folder / split, shown, of)
    return "\n".join(lines)


def _describe(folder: Path, shown: set[str], of: Pass = BASE) -> list[str]:
    manifest = read_manifest(folder, of)
    bank = manifest.bank if manifest is not None else read_bank_receipt(folder, of)
    name = folder.name if of.is_base else f"{folder.name}, {of.title}"
    if bank is None:
        return [f"{name}: begun, but what it was begun with is lost; the next make teacher-cache makes it again"]
    num_shards = len(manifest.shards) if manifest is not None else -(-bank.num_images // bank.images_per_shard)
    found = (read_receipt(folder / of.shard_name(index)) for index in range(num_shards))
    receipts = manifest.shards if manifest is not None else [receipt for receipt in found if receipt is not None]
    failed = [pair for receipt in receipts for pair in receipt.failed]
    state = "complete" if manifest is not None else f"not complete: {len(receipts)} of {num_shards} shards"
    lines = [
        f"{name}: {state} · {folder}",
        f"  {sum(r.num_images for r in receipts)} of {bank.num_images} images ({len(failed)} unreadable), "
        + (f"{sum(r.num_detections for r in receipts)} detections, " if of.is_base else "")
        + f"{sum(r.num_pairs for r in receipts)} pairs, "
        f"{_size(sum(r.num_bytes for r in receipts))} in shards of {bank.images_per_shard} images",
    ]
    lines += [f"  unreadable: {image_id}: {reason}" for image_id, reason in failed[:SHOWN]]
    lines += [f"  and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
    lines += _history(folder, of)
    if manifest is not None:
        lines.append(f"  made by commit {manifest.made_with.get('commit')}")
    versions = bank.made_with.get("versions", {})
    lines.append(
        f"  on {bank.made_with.get('device')} with {', '.join(f'{name} {versions[name]}' for name in sorted(versions))}"
    )
    if "rescored_from" in bank.made_with:
        lines.append(f"  rescored from fingerprint {bank.made_with['rescored_from']['fingerprint'][:12]}")
    lines.append(f"  fingerprint {bank.fingerprint}" + (" (as above)" if bank.fingerprint in shown else ""))
    if bank.fingerprint not in shown:
        parts = {**bank.parts, "axes": bank.axes}
        lines += [f"    {key}: {_plain(value)}" for key, value in sorted(flatten(parts).items())]
    shown.add(bank.fingerprint)
    return lines


def _history(folder: Path, of: Pass) -> list[str]:
    """What the journal tells: worker time, and what is in quarantine."""
    lines = []
    if (folder / of.journal_name).is_file():
        seconds = journal_seconds([folder], of)
        if seconds is not None:
            lines.append(f"  {seconds:.3f} worker seconds per image")
    kept = {path.name: path.name.rpartition(".")[0] for path in (folder / QUARANTINE_NAME).glob("*.[0-9]*")}
    quarantined = sorted(name for name, original in kept.items() if of_file(original) == of)
    if quarantined:
        lines.append(f"  in quarantine: {', '.join(quarantined)}")
    return lines


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _size(num_bytes: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"
