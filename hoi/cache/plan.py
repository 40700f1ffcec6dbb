"""What a config asks for of a split, and how much of it is there. Nothing is computed or written here."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.manifest import (
    BankReceipt,
    Manifest,
    Receipt,
    has_all_files,
    read_bank_receipt,
    read_manifest,
    read_receipt,
)
from hoi.cache.schema import BASE, SCHEMA_VERSION, UNREADABLE, Pass
from hoi.cache.shard import BrokenFile, Header, inspect_shard, read_text
from hoi.config import PipelineConfig
from hoi.datasets import dataset_of, load_vocabulary, open_images
from hoi.errors import UserError, command
from hoi.files import HF_HUB, LOCAL_DIR, file_sha256, find_local, json_sha256
from hoi.provenance import differing_keys

DATASET_PLACES = {"root", "images", "image_list", "image_lists", "annotations", "instances", "vocabulary", "splits"}
"""Dataset keys that say where things are or which images there are; ids, vocabulary and files stand for themselves."""


def files_as_hashes(section: dict[str, Any]) -> dict[str, Any]:
    """Return a plain section of a config with hashes in place of files and folders of weights."""
    return {key: _hash_of(value) if _is_here(value) else value for key, value in section.items()}


def _is_here(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    path = find_local(value)
    return path.is_dir() if value.startswith(LOCAL_DIR) else path.is_file()


def _hash_of(value: str) -> str:
    if not value.startswith(LOCAL_DIR):
        hashes = [file_sha256(path) for path in _with_bases(find_local(value))]
        return f"sha256:{json_sha256(hashes) if len(hashes) > 1 else hashes[0]}"
    folder = find_local(value)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return LOCAL_DIR + json_sha256([[p.relative_to(folder).as_posix(), file_sha256(p)] for p in files])


def _with_bases(path: Path) -> list[Path]:
    # A detectron2 config stands for those that it is based on, too.
    files = [path.resolve()]
    while files[-1].suffix in (".yaml", ".yml"):
        text = files[-1].read_text(encoding="utf-8", errors="replace")
        named = re.search(r"^_BASE_:\s*[\"']?([^\"'\s#]+)", text, re.MULTILINE)
        base = None if named is None else (files[-1].parent / Path(named.group(1)).expanduser()).resolve()
        if base is None or not base.is_file() or base in files:
            break
        files.append(base)
    return files


def refuse_replaced_files(folder: Path, request: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise a UserError if a weight file that a config names is here and is not the one that a cache was made with.

    Training needs none of them, so one that is elsewhere is not asked for; one that is here may have been replaced.
    """
    here = {
        name: {key: _hash_of(value) for key, value in config[name].items() if _is_here(value)}
        for name in ("detector", "teacher")
    }
    parts = {name: part if isinstance(part := request.get(name), dict) else {} for name in here}
    cached = {name: {key: parts[name].get(key) for key in values} for name, values in here.items()}
    refuse_other_settings(folder, cached, here)


def settings_parts(config: dict[str, Any], split: str) -> dict[str, Any]:
    """Return the keys of a plain config that decide what a split holds, comparable with no file at hand."""
    dataset = {k: v for k, v in config["dataset"].items() if k not in DATASET_PLACES}
    parts = {
        "dataset": {**dataset, "splits": {split: config["dataset"]["splits"].get(split)}},
        **{name: config[name] for name in ("detector", "pairs", "teacher")},
        "cache": {"threads": config["cache"]["threads"]},
    }
    return {name: without_local_places(section) for name, section in parts.items()}


def without_local_places(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section without the strings that name a local place: the same weights may lie elsewhere."""

    def is_local_place(value: Any) -> bool:
        return isinstance(value, str) and ("/" in value or "\\" in value) and not value.startswith(HF_HUB)

    return {key: value for key, value in section.items() if not is_local_place(value)}


def refuse_other_settings(folder: Path, cached: dict[str, Any], wanted: dict[str, Any], of: Pass = BASE) -> None:
    """Raise a UserError that names every differing key, and what to run, if the settings differ."""
    differences = differing_keys(cached, wanted)
    if not differences:
        return
    got = "; ".join(differences[:8]) + (f"; and {len(differences) - 8} more" if len(differences) > 8 else "")
    content, whole = of.content, of.clearing(folder if folder.is_dir() else folder.parent)
    raise UserError(
        f"{content.subject} was made with other settings",
        where=folder,
        got=got,
        fix=f"{content.another}, or delete {whole} and run {command('teacher-cache')} to build it anew",
    )


def refuse_other_config(folder: Path, manifest: Manifest, config: PipelineConfig) -> None:
    """Raise a UserError that names every differing key if a pass was made with another config than this one."""
    settings = manifest.of.content.settings
    try:
        made_with = settings(manifest.made_with["config"], manifest.split)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        path, fix = folder / manifest.of.manifest_name, f"{command('teacher-cache')} after deleting it"
        raise UserError("the config in this manifest is damaged", where=path, got=repr(error), fix=fix) from None
    refuse_other_settings(folder, made_with, settings(config.model_dump(mode="json"), manifest.split), manifest.of)


def fingerprint_parts(config: PipelineConfig, vocabulary_digest: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return all that changes what a shard holds: the data set, and what the model says of itself, versions apart."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": _dataset_part(config),
        "vocabulary": vocabulary_digest,
        **{key: value for key, value in provenance.items() if key != "versions"},
    }


def request_parts(config: PipelineConfig) -> dict[str, Any]:
    """Return what a config asks of the base pass, without loading a model: its sections, files as hashes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": _dataset_part(config),
        "vocabulary": load_vocabulary(config.dataset).digest(),
        "detector": files_as_hashes(config.detector.model_dump(mode="json")),
        "pairs": config.pairs.model_dump(mode="json"),
        "teacher": files_as_hashes(config.teacher.model_dump(mode="json")),
        "num_threads": config.cache.threads,
    }


def _dataset_part(config: PipelineConfig) -> dict[str, Any]:
    settings = config.dataset.model_dump(mode="json")
    return {**{k: v for k, v in settings.items() if k not in DATASET_PLACES}, **dataset_of(config.dataset).identity()}


IDS_AT_ONCE = 1 << 16
"""Image ids that are hashed in one go."""


@dataclass(frozen=True)
class ShardPlan:
    """Rows [start, stop) of a split, as one file; see `Receipt` for `base_sha256`."""

    split: str
    index: int
    start: int
    stop: int
    image_ids_sha256: str
    of: Pass = BASE
    base_sha256: str | None = None

    @property
    def name(self) -> str:
        return self.of.shard_name(self.index)

    @property
    def num_images(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class SplitPlan:
    """All shards of a split; `base_fingerprint` is, of an extra pass, what the base pass was made with."""

    split: str
    folder: Path
    images_per_shard: int
    image_ids_sha256: str
    shards: tuple[ShardPlan, ...]
    of: Pass = BASE
    base_fingerprint: str | None = None

    @property
    def num_images(self) -> int:
        return self.shards[-1].stop


def hash_of_ids(image_ids: Sequence[str]) -> str:
    """Return the SHA-256 of image ids, in order; each ends with a NUL, which no id holds."""
    digest = hashlib.sha256()
    for start in range(0, len(image_ids), IDS_AT_ONCE):
        digest.update("".join([image_id + "\0" for image_id in image_ids[start : start + IDS_AT_ONCE]]).encode())
    return digest.hexdigest()


def doubled_id(image_ids: Sequence[str]) -> str | None:
    """Return the image id that stands most often, if one stands more than once.

    Eight bytes per id, where a set would take a hundred: only ids whose hashes are equal are compared.
    """
    hashes = np.fromiter(map(hash, image_ids), np.int64, len(image_ids))
    ordered = np.sort(hashes)
    doubled = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(doubled):
        return None
    rows = np.flatnonzero(np.isin(hashes, doubled)).tolist()
    [(image_id, count)] = Counter(image_ids[row] for row in rows).most_common(1)
    return image_id if count > 1 else None


def plan_shards(image_ids: Sequence[str], split: str, folder: Path, images_per_shard: int) -> SplitPlan:
    """Plan the shards of a split from its image ids, at least one, in order; a UserError if an id stands twice."""
    doubled = doubled_id(image_ids)
    if doubled is not None:
        raise UserError("an image id stands twice", where=f"split '{split}'", got=doubled)
    shards = tuple(
        ShardPlan(split, index, start, stop, hash_of_ids(image_ids[start:stop]))
        for index, start in enumerate(range(0, len(image_ids), images_per_shard))
        for stop in [min(start + images_per_shard, len(image_ids))]
    )
    return SplitPlan(split, folder, images_per_shard, hash_of_ids(image_ids), shards)


def plan_over(manifest: Manifest, folder: Path, of: Pass = BASE) -> SplitPlan:
    """Plan a complete split's shards again, without a look at the images: elsewhere, or as those of an extra pass."""
    bank, split = manifest.bank, manifest.split
    bounds = pairwise(accumulate((receipt.num_images for receipt in manifest.shards), initial=0))
    shards = tuple(
        ShardPlan(split, index, *rows, receipt.image_ids_sha256, of, receipt.sha256 if of.name else None)
        for index, (rows, receipt) in enumerate(zip(bounds, manifest.shards, strict=True))
    )
    base = bank.fingerprint if of.name else None
    return SplitPlan(split, folder, bank.images_per_shard, bank.image_ids_sha256, shards, of, base)


def is_over(plan: SplitPlan, manifest: Manifest) -> bool:
    """Return whether a pass was made over the base shards that there are now."""
    if plan.base_fingerprint is None:
        return True
    return [shard.base_sha256 for shard in plan.shards] == [receipt.base_sha256 for receipt in manifest.shards]


def splits_of(config: PipelineConfig) -> list[str]:
    """Return the splits that are to hold images: a share of 0 asks for none."""
    return [split for split, amount in config.dataset.splits.items() if amount > 0]


def plan_split(config: PipelineConfig, split: str) -> SplitPlan:
    """Plan the shards of a split; a UserError if it is unknown or has no image, or an image id stands twice."""
    image_ids = open_images(config.dataset, split).image_ids
    return plan_shards(image_ids, split, Path(config.cache.folder) / split, config.cache.images_per_shard)


def is_complete(plan: SplitPlan, request: dict[str, Any]) -> bool:
    """Return whether a pass is sealed with what is asked for now, and all its shards are there in full size.

    A complete cache stays complete when only the shard size of the config changes. An extra pass is not complete where
    one of its base shards is another one by now. Raises a UserError if it was made with other settings.
    """
    if (manifest := read_manifest(plan.folder, plan.of)) is None:
        return False
    refuse_other_request(plan, manifest.bank, request)
    return has_all_files(plan.folder, manifest) and is_over(plan, manifest)


def begun_with(plan: SplitPlan, request: dict[str, Any]) -> BankReceipt | None:
    """Return what an unfinished pass was begun with, or None; a UserError for other settings or shard sizes."""
    bank = read_bank_receipt(plan.folder, plan.of)
    if bank is not None:
        refuse_other_request(plan, bank, request)
        if bank.images_per_shard != plan.images_per_shard:
            raise UserError(
                "this cache was begun with another shard size",
                where=plan.folder,
                expected=f"cache.images_per_shard={bank.images_per_shard}",
                got=plan.images_per_shard,
                fix=f"set it back, or delete {plan.of.clearing(plan.folder)} to build it anew",
            )
    return bank


def refuse_other_request(plan: SplitPlan, bank: BankReceipt, request: dict[str, Any]) -> None:
    """Raise a UserError that names the keys in which settings, images or base pass are not those asked for now."""

    def described(images: int, ids: str, wanted: dict[str, Any], base: str | None) -> dict[str, Any]:
        over = {} if plan.base_fingerprint is None else {"base_fingerprint": base}
        return {**wanted, **over, "images": {"number": images, "ids_sha256": ids}}

    cached = described(bank.num_images, bank.image_ids_sha256, bank.request, bank.parts.get("base"))
    wanted = described(plan.num_images, plan.image_ids_sha256, request, plan.base_fingerprint)
    refuse_other_settings(plan.folder, cached, wanted, plan.of)


def finished_receipt(folder: Path, shard: ShardPlan, fingerprint: str, parts: dict[str, Any]) -> Receipt | None:
    """Return the receipt of a shard that is there, whole and the planned one; None where it has to be built.

    The file is opened; its bytes are hashed only where the receipt beside it is missing. Raises a UserError for a whole
    shard of other settings, images or base shard.
    """
    path = folder / shard.name
    try:
        header = inspect_shard(path, shard.of.content.fields)
    except (FileNotFoundError, NotADirectoryError, BrokenFile):
        return None
    attributes = header.attributes
    if attributes["fingerprint"] != fingerprint:
        refuse_other_settings(path, attributes["fingerprint_parts"], parts, shard.of)
    if attributes["image_ids_sha256"] != shard.image_ids_sha256 or attributes["split"] != shard.split:
        raise UserError(
            "this shard holds other images than planned",
            where=path,
            expected=f"{shard.num_images} images of split '{shard.split}' from row {shard.start}",
            got=f"{attributes['num_images']} images of split '{attributes['split']}' from row {attributes['start']}",
            fix=f"delete {path}, then run the same command again",
        )
    if attributes.get("base_sha256") != shard.base_sha256:
        raise UserError(
            f"this shard of {shard.of.title} was made over another base shard",
            where=path,
            expected=f"SHA-256 {str(shard.base_sha256)[:12]}",
            got=str(attributes.get("base_sha256"))[:12],
            fix=f"{command('cache repair')} makes it again, and all others like it",
        )
    return read_receipt(path) or receipt_from_file(header)


def receipt_from_file(shard: Header) -> Receipt:
    tables = {name: shard.table(name, mapped=True) for name in shard.locations}
    return receipt_of(shard.path.name, shard.attributes, tables, shard.path.stat().st_size, file_sha256(shard.path))


def receipt_of(
    name: str, attributes: Mapping[str, Any], tables: Mapping[str, np.ndarray], num_bytes: int, sha256: str
) -> Receipt:
    """Return the receipt of a shard with these attributes and tables, in a file of this name, size and hash."""
    failed = np.flatnonzero(tables["status"] == UNREADABLE)
    ids, reasons = (read_text(tables[column][failed]) for column in ("image_id", "status_reason"))
    return Receipt(
        name=name,
        fingerprint=attributes["fingerprint"],
        image_ids_sha256=attributes["image_ids_sha256"],
        num_images=len(tables["image_id"]),
        num_detections=len(tables.get("scores", ())),
        num_pairs=int(tables["pair_offsets"][-1]),
        num_bytes=num_bytes,
        sha256=sha256,
        failed=tuple(zip(ids, reasons, strict=True)),
        base_sha256=attributes.get("base_sha256"),
    )
