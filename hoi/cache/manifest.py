"""The receipts of a split's files, and the manifest that seals a pass.

A manifest is a JSON file, written last, that lists every shard with its hash: so the pass is complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hoi.cache.schema import BASE, SCHEMA_VERSION, Pass
from hoi.errors import UserError, command
from hoi.files import TEMPORARY_SUFFIX, locked, read_json, write_json

FORMAT_NAME = "hoi-distill teacher cache"

_SHARD_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]*-)?shard-\d{5,}\.h5")


@dataclass(frozen=True)
class Receipt:
    """What is known of a finished shard without opening it; lies beside it as `shard-00000.json`.

    Args:
        failed: (image id, reason) of every unreadable image.
        base_sha256: Of an extra pass: hash of the base shard that it was made over. None of the base pass.
    """

    name: str
    fingerprint: str
    image_ids_sha256: str
    num_images: int
    num_detections: int
    num_pairs: int
    num_bytes: int
    sha256: str
    failed: tuple[tuple[str, str], ...]
    base_sha256: str | None = None

    def __post_init__(self) -> None:
        if not _SHARD_NAME.fullmatch(self.name):
            raise ValueError(f"'{self.name}' is no name of a shard")

    def to_dict(self) -> dict[str, Any]:
        plain = {**asdict(self), "failed": [list(pair) for pair in self.failed]}
        return {name: value for name, value in plain.items() if value is not None}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Receipt:
        return cls(**{**plain, "failed": tuple((image_id, reason) for image_id, reason in plain["failed"])})


@dataclass(frozen=True)
class BankReceipt:
    """What the models said of themselves when the split was begun; lies beside the text bank as `bank.json`.

    Args:
        parts: What the fingerprint is over; `made_with`, versions and device, is no part of it.
        request: What the config asked for, as comparable without a model.
    """

    fingerprint: str
    parts: dict[str, Any]
    request: dict[str, Any]
    images_per_shard: int
    image_ids_sha256: str
    num_images: int
    axes: dict[str, int]
    sha256: str
    num_bytes: int
    made_with: dict[str, Any]

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.images_per_shard)


@dataclass(frozen=True)
class IndexReceipt:
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """A complete split; `made_with` is the resolved config, commit, versions and device."""

    split: str
    bank: BankReceipt
    shards: tuple[Receipt, ...]
    made_with: dict[str, Any]
    index: IndexReceipt
    of: Pass = BASE

    @property
    def num_images(self) -> int:
        return sum(shard.num_images for shard in self.shards)

    @property
    def failed(self) -> list[tuple[str, str]]:
        return [pair for shard in self.shards for pair in shard.failed]


def hash_of_shards(receipts: Iterable[Receipt]) -> str:
    """Return the SHA-256 over the hashes of shards, in order, each followed by a line feed."""
    return hashlib.sha256("".join(receipt.sha256 + "\n" for receipt in receipts).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Seal a pass: from now on it is complete."""
    plain = {
        "format": FORMAT_NAME,
        "schema_version": SCHEMA_VERSION,
        "split": manifest.split,
        **({"pass": manifest.of.name} if manifest.of.name else {}),
        "num_images": manifest.num_images,
        "num_failed": len(manifest.failed),
        "num_detections": sum(shard.num_detections for shard in manifest.shards),
        "num_pairs": sum(shard.num_pairs for shard in manifest.shards),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "bank": asdict(manifest.bank),
        "index": asdict(manifest.index),
        "shards": [shard.to_dict() for shard in manifest.shards],
        "made_with": manifest.made_with,
    }
    write_json(folder / manifest.of.manifest_name, plain)


def read_manifest(folder: Path, of: Pass = BASE) -> Manifest | None:
    """Return a pass's manifest, None where it is not complete; a UserError for a damaged one or another schema."""
    path = folder / of.manifest_name
    try:
        plain = read_json(path)
        if plain is None:
            return None
        fix = f"delete {of.clearing(folder)} and run {command('teacher-cache')}, or use the release that made it"
        manifest = parse_manifest(plain, path, fix)
        if manifest.of != of:
            raise ValueError(f"it is the manifest of the {manifest.of.title}")
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = f"delete {path} and run {command('teacher-cache')}: finished shards are kept"
        raise UserError("this manifest is damaged", where=path, got=repr(error), fix=fix) from None


def parse_manifest(plain: Any, where: object, fix: str) -> Manifest:
    """Return the manifest that `write_manifest` made plain; a UserError for another schema version.

    Raises a ValueError, KeyError, TypeError or AttributeError where it is damaged.
    """
    version = plain["schema_version"]
    if plain["format"] != FORMAT_NAME or version != SCHEMA_VERSION:
        what = "this cache has another schema version"
        raise UserError(what, where=where, expected=SCHEMA_VERSION, got=version, fix=fix)
    bank = BankReceipt(**plain["bank"])
    shards, index = tuple(map(Receipt.from_dict, plain["shards"])), IndexReceipt(**plain["index"])
    return Manifest(plain["split"], bank, shards, plain["made_with"], index, Pass(plain.get("pass", "")))


def read_bank_receipt(folder: Path, of: Pass = BASE) -> BankReceipt | None:
    """Return what a pass was begun with, or None where nothing whole is there."""
    try:
        receipt = BankReceipt(**read_json(folder / of.bank_receipt_name))
    except (ValueError, TypeError):
        return None
    return receipt if has_size(folder / of.bank_name, receipt.num_bytes) else None


def read_receipt(shard: Path) -> Receipt | None:
    """Return the receipt beside a shard, or None where there is none that fits the file's name and size."""
    try:
        receipt = Receipt.from_dict(read_json(shard.with_suffix(".json")))
    except (ValueError, TypeError, KeyError):
        return None
    return receipt if receipt.name == shard.name and has_size(shard, receipt.num_bytes) else None


def has_size(path: Path, num_bytes: int) -> bool:
    try:
        return path.stat().st_size == num_bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def has_all_files(folder: Path, manifest: Manifest) -> bool:
    """Return whether every file that a manifest lists is there with its size; hashes are not taken."""
    return (
        read_bank_receipt(folder, manifest.of) == manifest.bank
        and has_size(folder / manifest.of.index_name, manifest.index.num_bytes)
        and all(has_size(folder / shard.name, shard.num_bytes) for shard in manifest.shards)
    )


WORKERS_NAME = ".workers"
"""Folder in the cache folder in which a build and its workers find one another, while it runs."""


@contextmanager
def sole_builder(folder: Path) -> Iterator[None]:
    """Keep other builders out of a cache folder, and clear what killed processes left there.

    Raises UserError: another process builds in this folder now, or its file system has no locks to tell.
    """
    fix = "wait for it, or set another cache.folder"
    with locked(folder / ".lock", "another process is building this cache", fix):
        _clear(folder)
        yield
        # Of workers that died while others went on. After a mistake some may still be writing, so not then.
        _clear(folder)


def _clear(folder: Path) -> None:
    for leftover in folder.glob(f"*/.*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    shutil.rmtree(folder / WORKERS_NAME, ignore_errors=True)


def cached_splits(folder: Path) -> list[str]:
    """Return the names of the splits that a cache's folder holds, finished or not; a UserError where it holds none."""
    begun = ("manifest.json", "bank.json", "bank.h5", "shard-*.h5")
    splits = sorted({path.parent.name for name in begun for path in folder.glob(f"[!.]*/{name}")})
    if not splits:
        fix = f"{command('teacher-cache')}, or set cache.folder"
        raise UserError("there is no teacher cache", where=folder, fix=fix)
    return splits


def complete_manifest(folder: Path, of: Pass = BASE) -> Manifest:
    """Return the manifest of a pass, all of whose files are there; a UserError where it is not complete."""
    manifest = read_manifest(folder, of)
    if manifest is None or not has_all_files(folder, manifest):
        got = f"no {of.manifest_name}" if manifest is None else "a file is missing or has another size"
        raise UserError(f"this {of.title} is not complete", where=folder, got=got, fix=command("teacher-cache"))
    return manifest
