"""The receipts of a split's files, and the manifest that seals a pass.

A manifest is a JSON file, written last, that lists every shard with its hash: so the pass is complete.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta, Struct, field

from hoi.cache.schema import BASE, SCHEMA_VERSION, Axes, Pass
from hoi.errors import UserError, command
from hoi.files import Count, convert, parse_json, read_bytes, read_json, remove_leftovers, sole_writer, write_json

FORMAT_NAME = "hoi-distill teacher cache"

ShardName = Annotated[str, Meta(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9_.-]{0,80}-)?shard-[0-9]{5,9}\.h5\Z")]
SplitName = Annotated[str, Meta(pattern=r"^[^/\\\0]+\Z", max_length=200)]
PassName = Annotated[str, Meta(pattern=r"^(?:[A-Za-z0-9][A-Za-z0-9_.-]{0,80})?\Z")]


@dataclass(frozen=True)
class Receipt:
    """What is known of a finished shard without opening it; lies beside it as `shard-00000.json`.

    Args:
        failed: (image id, reason) of every unreadable image.
        base_sha256: Of an extra pass: hash of the base shard that it was made over. None of the base pass.
    """

    name: ShardName
    fingerprint: str
    image_ids_sha256: str
    num_images: Count
    num_detections: Count
    num_pairs: Count
    num_bytes: Count
    sha256: str
    failed: tuple[tuple[str, str], ...]
    base_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        plain = {**asdict(self), "failed": [list(pair) for pair in self.failed]}
        return {name: value for name, value in plain.items() if value is not None}


class _Teacher(TypedDict, total=False):
    precision: str
    weights_sha256: str | None
    levels: list[str]
    crop_margins: list[float]


class _Parts(TypedDict, total=False):
    # What is read again of a pass's parts; the others are only compared.
    teacher: _Teacher
    base: str


class _Rescored(TypedDict):
    fingerprint: str


class _MadeWith(TypedDict, total=False):
    versions: dict[str, str]
    device: str
    rescored_from: _Rescored


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
    images_per_shard: Annotated[int, Meta(ge=1, le=1 << 40)]
    image_ids_sha256: str
    num_images: Count
    axes: Axes
    sha256: str
    num_bytes: Count
    made_with: dict[str, Any]

    def __post_init__(self) -> None:
        convert(self.parts, _Parts)
        convert(self.made_with, _MadeWith)

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.images_per_shard)


@dataclass(frozen=True)
class IndexReceipt:
    sha256: str
    num_bytes: Count


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


class _Version(Struct):
    format: str
    schema_version: Any


class _Plain(Struct):
    # A manifest as it is written; the sums in it are for people.
    split: SplitName
    bank: BankReceipt
    index: IndexReceipt
    shards: tuple[Receipt, ...]
    made_with: dict[str, Any]
    name: PassName = field(default="", name="pass")


def read_manifest(folder: Path, of: Pass = BASE) -> Manifest | None:
    """Return a pass's manifest, None where it is not complete; a UserError for a damaged one or another schema."""
    path = folder / of.manifest_name
    if not path.exists():
        return None
    fix = f"delete {of.clearing(folder)} and run {command('teacher-cache')}, or use the release that made it"
    try:
        manifest = parse_manifest(read_bytes(path, "a manifest"), path, fix)
        if manifest.of != of:
            raise ValueError(f"it is the manifest of the {manifest.of.title}")
        return manifest
    except ValueError as error:
        fix = f"delete {path} and run {command('teacher-cache')}: finished shards are kept"
        raise UserError("this manifest is damaged", where=path, got=error, fix=fix) from None


def parse_manifest(data: bytes, where: object, fix: str) -> Manifest:
    """Return the manifest that `write_manifest` wrote; a UserError for another schema version.

    Raises a ValueError where it is damaged.
    """
    version: _Version = parse_json(data, _Version)
    if version.format != FORMAT_NAME or version.schema_version != SCHEMA_VERSION:
        what = "this cache has another schema version"
        raise UserError(what, where=where, expected=SCHEMA_VERSION, got=version.schema_version, fix=fix)
    plain: _Plain = parse_json(data, _Plain)
    return Manifest(plain.split, plain.bank, plain.shards, plain.made_with, plain.index, Pass(plain.name))


def read_bank_receipt(folder: Path, of: Pass = BASE) -> BankReceipt | None:
    """Return what a pass was begun with, or None where nothing whole is there."""
    try:
        receipt: BankReceipt | None = read_json(folder / of.bank_receipt_name, BankReceipt)
    except UserError:
        return None
    return receipt if receipt is not None and has_size(folder / of.bank_name, receipt.num_bytes) else None


def read_receipt(shard: Path) -> Receipt | None:
    """Return the receipt beside a shard, or None where there is none that fits the file's name and size."""
    try:
        receipt: Receipt | None = read_json(shard.with_suffix(".json"), Receipt)
    except UserError:
        return None
    fits = receipt is not None and receipt.name == shard.name and has_size(shard, receipt.num_bytes)
    return receipt if fits else None


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
    with sole_writer(folder, "another process is building this cache", fix):
        _clear(folder)
        yield
        # Of workers that died while others went on. After a mistake some may still be writing, so not then.
        _clear(folder)


def _clear(folder: Path) -> None:
    remove_leftovers(folder, "*/")
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
