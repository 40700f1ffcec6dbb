"""A few images of a split once more through the models, beside what the cache holds of them.

Hashes say that a file is the one that was written. This says that images and models still give it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi.cache.build.models import Held
from hoi.cache.fingerprint import refuse_other_settings
from hoi.cache.manifest import Manifest
from hoi.cache.schema import fields_of
from hoi.cache.shard import inspect_shard, read_text
from hoi.cache.tables import pack_tables, unpack_image
from hoi.datasets import UnreadableImage, open_images
from hoi.errors import UserError
from hoi.records import ImageSignals

TOLERANCE = {"boxes_xyxy": 0.05, "scores": 1e-3}
"""Largest absolute difference that is let pass, in the field's unit; pixels for boxes."""
FEATURE_TOLERANCE = 4e-3
"""The same for float16 fields, times the field's largest value where that is above 1: eight steps of float16 below 1.
Neighbours in a batch move the last bits; another image, weight or setting moves far more."""


@dataclass(frozen=True)
class Recomputed:
    """What a second look at some images of a split found.

    Args:
        image_ids: The images.
        differences: Field to the largest absolute difference over them.
        problems: What is out of tolerance, each naming its image.
    """

    image_ids: tuple[str, ...]
    differences: dict[str, float]
    problems: tuple[str, ...]


def recompute(folder: Path, manifest: Manifest, held: Held, num_images: int, seed: int) -> Recomputed:
    """Random images of a split through the models, against the cache.

    Args:
        folder: The split's folder.
        manifest: The split is complete.
        held: Models of the config that is run now.
        num_images: How many images; all readable ones, if there are fewer.
        seed: Says which.

    Raises:
        UserError: the models are not those that made the cache; names the differing keys.
    """
    refuse_other_models(folder, manifest, held)
    failed = {image_id for image_id, _ in manifest.failed}
    readable = [
        (shard, row, image_id)
        for shard, receipt in enumerate(manifest.shards)
        for row, image_id in enumerate(_ids(folder / receipt.name))
        if image_id not in failed
    ]
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(readable), min(num_images, len(readable)), replace=False).tolist())
    source = open_images(held.config.dataset, manifest.split)
    row_of = {image_id: row for row, image_id in enumerate(source.image_ids)}
    differences: dict[str, float] = {}
    problems: list[str] = []
    for shard, row, image_id in (readable[number] for number in chosen):
        stored = _stored(folder / manifest.shards[shard].name, row, manifest.bank.axes)
        try:
            [now] = held.model.extract([image_id], [source.read(row_of[image_id])])
        except UnreadableImage as error:
            problems.append(f"{image_id}: cannot be read any more: {error}")
            continue
        found, wrong = compare(stored, now, manifest.bank.axes)
        for name, value in found.items():
            differences[name] = max(differences.get(name, 0.0), value)
        problems += [f"{image_id}: {text}" for text in wrong]
    return Recomputed(tuple(readable[number][2] for number in chosen), differences, tuple(problems))


def refuse_other_models(folder: Path, manifest: Manifest, held: Held) -> None:
    """Nothing, if these models are those that made the cache.

    Raises:
        UserError: they are not; weights that were replaced under the same path are found here, too.
    """
    refuse_other_settings(folder, manifest.bank.parts, held.parts)
    if held.fingerprint != manifest.bank.fingerprint:
        raise UserError(
            "the fingerprint of this cache is not the hash of its parts",
            where=folder,
            got=manifest.bank.fingerprint[:12],
            fix="run make cache-verify",
        )


def compare(stored: ImageSignals, now: ImageSignals, axes: dict[str, int]) -> tuple[dict[str, float], list[str]]:
    """Two records of one image to the largest absolute difference of each field, and what is out of tolerance."""
    before, after = (pack_tables([s.image_id], [s], axes) for s in (stored, now))
    counts = {name: (before[name].tolist()[-1], after[name].tolist()[-1]) for name in _OFFSETS}
    wrong = [f"{old} {_OFFSETS[name]}, now {new}" for name, (old, new) in counts.items() if old != new]
    if wrong:
        return {}, wrong
    differences: dict[str, float] = {}
    for field in fields_of(axes):
        if field.is_text or field.rows == "offset" or not before[field.name].size:
            continue
        old, new = before[field.name].astype(np.float64), after[field.name].astype(np.float64)
        # NaN would pass every comparison with a tolerance.
        difference = float(np.nan_to_num(np.abs(new - old), nan=np.inf).max())
        differences[field.name] = difference
        allowed = TOLERANCE.get(field.name, 0.0)
        if field.dtype == "<f2":
            allowed = FEATURE_TOLERANCE * max(1.0, float(np.abs(old).max()))
        if not difference <= allowed:
            wrong.append(f"{field.name} differs by {difference:.3g}, tolerance {allowed:.3g}")
    return differences, wrong


_OFFSETS = {"detection_offsets": "detections", "pair_offsets": "pairs"}


def _ids(path: Path) -> list[str]:
    return read_text(inspect_shard(path).table("image_id"))


def _stored(path: Path, row: int, axes: dict[str, int]) -> ImageSignals:
    header = inspect_shard(path)
    tables = {field.name: header.table(field.name, mapped=True) for field in fields_of(axes)}
    record = unpack_image(tables, row, axes)
    assert isinstance(record, ImageSignals)
    return record
