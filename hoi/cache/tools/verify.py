"""Verify a cache: sizes, hashes and tables against manifest and schema; on request a few images against the models.

One shard's tables are loaded at a time, and nothing is written.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from hoi.cache.base_pass import compare_images, unpack_image
from hoi.cache.index import encode_index
from hoi.cache.manifest import (
    BankReceipt,
    IndexReceipt,
    Manifest,
    Receipt,
    cached_splits,
    complete_manifest,
    read_manifest,
    read_receipt,
)
from hoi.cache.plan import hash_of_ids, is_complete, plan_split, refuse_other_settings, splits_of
from hoi.cache.read.opened import Bank
from hoi.cache.schema import BASE, Pass, check_finite, fields_of, passes_in
from hoi.cache.shard import BrokenFile, Header, inspect_shard, read_text
from hoi.config import PipelineConfig
from hoi.datasets import UnreadableImage, open_images
from hoi.errors import UserError, command
from hoi.files import TEMPORARY_SUFFIX, file_sha256, json_sha256, read_json
from hoi.provenance import differing_keys
from hoi.records import ImageSignals

if TYPE_CHECKING:
    from hoi.cache.build.worker import Held, ModelFactory

Kind = Literal["missing", "truncated", "changed", "foreign", "stray", "damaged", "incomplete", "failed"]
Wrong = tuple[Kind, str]
Found = tuple[str, Kind, str]
"""A file's name, and what is wrong with it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        kind: `missing`; `truncated`, another size than recorded; `changed`, other bytes; `foreign`, of another cache,
            split or place; `stray`, left by a killed build; `damaged`, against the schema; `incomplete`, not sealed;
            `failed`, an unreadable image that can be read by now (`repair` alone looks for these).
    """

    split: str
    name: str
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.split}/{self.name}: {self.kind}: {self.text}"


def verify_split(folder: Path) -> list[Problem]:
    """Return all problems of a split and its extra passes; none where everything is complete and whole."""
    if not folder.is_dir():
        return [Problem(folder.name, BASE.manifest_name, "missing", "there is no such split in this cache")]
    return [problem for of in (BASE, *passes_in(folder)) for problem in verify_pass(folder, of)]


def verify_pass(folder: Path, of: Pass = BASE) -> list[Problem]:
    """Return all problems of one pass over a split; a UserError for another schema version.

    A pass that is not sealed is one problem, and what is there is judged by its own receipts.
    """
    manifest, found = _manifest(folder, of)
    bank, of_bank = _bank(folder, of, manifest)
    found += of_bank
    if manifest is not None:
        receipts: list[Receipt | None] = list(manifest.shards)
        found += [(of.index_name, *wrong) for wrong in _judge_bytes(folder / of.index_name, manifest.index)]
    else:
        planned = bank.num_shards if bank is not None else 0
        receipts = [read_receipt(folder / of.shard_name(index)) for index in range(planned)]
        if not found:
            done = sum((folder / of.shard_name(index)).exists() for index in range(planned))
            text = f"the {of.title if of.name else 'split'} is not sealed: {done} of {planned} shards are there"
            found.append((of.manifest_name, "incomplete", text))
    judge = _ShardJudge(folder, of, bank)
    start = 0
    for index, receipt in enumerate(receipts):
        path = folder / of.shard_name(index)
        if manifest is not None or path.exists():
            found += [(path.name, *wrong) for wrong in judge.problems(path, index, start, receipt)]
        if (
            manifest is not None
            and path.exists()
            and not _is_receipt(path.with_suffix(".json"), manifest.shards[index])
        ):
            text = "this receipt differs from what the manifest says of the shard"
            found.append((path.with_suffix(".json").name, "changed", text))
        start += receipt.num_images if receipt is not None else bank.images_per_shard if bank is not None else 0
    if manifest is not None and bank is not None and not found:
        data = encode_index(folder, manifest.split, bank.fingerprint, manifest.shards, of)
        if hashlib.sha256(data).hexdigest() != manifest.index.sha256:
            found.append((of.index_name, "damaged", "it is not the index of these shards"))
    found += _strays(folder, of, len(receipts))
    return [Problem(folder.name, *each) for each in found]


def _manifest(folder: Path, of: Pass) -> tuple[Manifest | None, list[Found]]:
    try:
        manifest = read_manifest(folder, of)
    except UserError as error:
        if error.expected is not None:
            raise
        return None, [(of.manifest_name, "damaged", str(error.got))]
    if manifest is None:
        return None, []
    texts = []
    names = [shard.name for shard in manifest.shards]
    if names != [of.shard_name(index) for index in range(len(names))]:
        texts.append("its shards are not numbered from 0 on, in order")
    if manifest.split != folder.name:
        texts.append(f"it is the manifest of split '{manifest.split}'")
    if manifest.num_images != manifest.bank.num_images:
        texts.append(f"its shards hold {manifest.num_images} images, the split has {manifest.bank.num_images}")
    return None if texts else manifest, [(of.manifest_name, "damaged", text) for text in texts]


def _bank(folder: Path, of: Pass, manifest: Manifest | None) -> tuple[BankReceipt | None, list[Found]]:
    found: list[Found] = []
    bank = manifest.bank if manifest is not None else None
    try:
        beside = read_json(folder / of.bank_receipt_name, BankReceipt)
    except UserError as error:
        found.append((of.bank_receipt_name, "damaged", str(error.got)))
    else:
        bank = bank or beside
        if beside is None:
            found.append((of.bank_receipt_name, "missing", "what the split was begun with"))
        elif beside != bank:
            found.append((of.bank_receipt_name, "changed", "it differs from what the manifest says of it"))
    if bank is not None:
        found += [(of.bank_name, *wrong) for wrong in _judge_bank(folder / of.bank_name, of, bank)]
    return bank, found


def _judge_bank(path: Path, of: Pass, bank: BankReceipt) -> Iterator[Wrong]:
    if wrong := _judge_bytes(path, bank):
        yield from wrong
        return
    if json_sha256(bank.parts) != bank.fingerprint:
        yield "damaged", "the fingerprint is not the hash of its parts"
    try:
        Bank.open(path.parent, bank, of)
    except UserError as error:
        yield "damaged", str(error.got)


def _judge_bytes(path: Path, receipt: BankReceipt | Receipt | IndexReceipt) -> list[Wrong]:
    if not path.is_file():
        return [("missing", "there is no such file")]
    if path.stat().st_size != receipt.num_bytes:
        return [("truncated", f"{path.stat().st_size} bytes, expected {receipt.num_bytes}")]
    if file_sha256(path) != receipt.sha256:
        text = f"its bytes are not those that were written (SHA-256, expected {receipt.sha256[:12]})"
        return [("changed", text)]
    return []


class _ShardJudge:
    """Judges the shards of a pass, by what it was begun with as far as that is known."""

    def __init__(self, folder: Path, of: Pass, bank: BankReceipt | None) -> None:
        self._of, self._bank = of, bank
        base = _manifest(folder, BASE)[0] if of.name else None
        self._base_sha256 = [receipt.sha256 for receipt in base.shards] if base is not None else []
        self._num_objects = None
        with suppress(UserError):
            begun = read_json(folder / BASE.bank_receipt_name, BankReceipt)
            if begun is not None:
                self._num_objects = len(Bank.open(folder, begun).vocabulary.objects)

    def problems(self, path: Path, index: int, start: int, receipt: Receipt | None) -> list[Wrong]:
        """Return what is wrong with a shard, at its place in the split, by its receipt if that is known."""
        if not path.is_file():
            return [("missing", "there is no such file")]
        wrong = _judge_bytes(path, receipt) if receipt is not None else []
        try:
            header = inspect_shard(path, self._of.content.fields)
        except (BrokenFile, ValueError) as error:
            return wrong or [("truncated", f"it is cut short, or no shard ({error})")]
        except UserError:
            # Of another schema version, unless these are not the bytes that were written.
            if not wrong:
                raise
            return wrong
        if foreign := self._foreign(header, index, start, receipt):
            return [("foreign", "; ".join(foreign))]
        return wrong or self._damage(header)

    def _foreign(self, header: Header, index: int, start: int, receipt: Receipt | None) -> list[str]:
        attributes, bank = header.attributes, self._bank
        wanted = {"split": header.path.parent.name, "index": index, "start": start}
        if receipt is not None:
            wanted["image_ids_sha256"] = receipt.image_ids_sha256
        if index < len(self._base_sha256):
            wanted["base_sha256"] = self._base_sha256[index]
        if bank is not None and attributes["fingerprint"] != bank.fingerprint:
            return differing_keys(bank.parts, attributes["fingerprint_parts"]) or ["another fingerprint"]
        return [
            f"{name} is {attributes.get(name)}, expected {value}"
            for name, value in wanted.items()
            if attributes.get(name) != value
        ]

    def _damage(self, header: Header) -> list[Wrong]:
        axes, content = header.attributes["axes"], self._of.content
        try:
            tables = header.tables(fields_of(axes, content.fields))
            content.check(tables, axes, self._num_objects)
            check_finite(tables)
        except (ValueError, KeyError, OSError) as error:
            return [("damaged", str(error))]
        if hash_of_ids(read_text(tables["image_id"])) != header.attributes["image_ids_sha256"]:
            return [("damaged", "its image ids are not those of its attribute image_ids_sha256")]
        return []


def _is_receipt(path: Path, receipt: Receipt) -> bool:
    # One that is missing is no problem: `repair` writes it from the manifest.
    try:
        return not path.exists() or read_json(path) == receipt.to_dict()
    except UserError:
        return False


def _strays(folder: Path, of: Pass, num_shards: int) -> Iterator[Found]:
    # Temporary files are said once for all passes.
    known = {of.shard_name(index) for index in range(num_shards)}
    for path in sorted(folder.iterdir()):
        if of == BASE and path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX):
            yield path.name, "stray", "a temporary file: of a build that runs now, or that was killed"
        elif path.match(of.shard_pattern) and path.name not in known:
            yield path.name, "foreign", "the split has no such shard"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found, by split; `num_shards` counts those of every pass by its title."""

    problems: tuple[Problem, ...]
    recomputed: dict[str, Recomputed]
    num_shards: dict[str, dict[str, int]]
    seconds: float

    @property
    def is_good(self) -> bool:
        return not self.problems and not any(found.problems for found in self.recomputed.values())

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems]
        for split, found in self.recomputed.items():
            lines += [f"{split}: {text}" for text in found.problems]
            largest = ", ".join(f"{name} {value:.2g}" for name, value in found.differences.items())
            lines.append(f"{split}: {len(found.image_ids)} images recomputed, largest absolute difference: {largest}")
        bad = {problem.split for problem in self.problems}
        for split, numbers in self.num_shards.items():
            counts = ", ".join(f"{number} shards of the {title}" for title, number in numbers.items())
            lines += [f"{split}: {counts}, as they were written"] if split not in bad else []
        verdict = "nothing is wrong" if self.is_good else f"next: {command('cache repair')}, or see what changed"
        return "\n".join([*lines, f"verified in {self.seconds:.1f} s: {verdict}"])


def verify(
    config: PipelineConfig, recompute: int | None = None, seed: int = 0, factory: ModelFactory | None = None
) -> VerifyReport:
    """Check every file of a cache against manifest and schema, and `recompute` random images per split by the models.

    Raises a UserError where there is no cache, it is of another schema version, or the models are others.
    """
    start, folder = time.monotonic(), Path(config.cache.folder)
    splits = list(dict.fromkeys([*splits_of(config), *cached_splits(folder)]))
    problems: list[Problem] = []
    num_shards: dict[str, dict[str, int]] = {}
    for split in tqdm(splits, unit="split", desc="verify", leave=False):
        problems += verify_split(folder / split)
        passes = (BASE, *passes_in(folder / split))
        manifests = {of.title: None if problems else read_manifest(folder / split, of) for of in passes}
        num_shards[split] = {title: len(m.shards) for title, m in manifests.items() if m is not None}
    recomputed = _recompute(config, recompute, seed, factory) if recompute is not None and not problems else {}
    return VerifyReport(tuple(problems), recomputed, num_shards, time.monotonic() - start)


def _recompute(config: PipelineConfig, number: int, seed: int, factory: ModelFactory | None) -> dict[str, Recomputed]:
    from hoi.cache.build.worker import OwnModel, hold, release

    request, folder, config_json = BASE.content.request(config), Path(config.cache.folder), config.model_dump_json()
    manifests = {split: complete_manifest(folder / split) for split in splits_of(config)}
    for split in manifests:
        is_complete(plan_split(config, split), request)
    recomputed = {}
    try:
        for split, manifest in tqdm(manifests.items(), unit="split", desc="recompute", leave=False):
            held = hold(BASE.content.as_begun(config_json, folder / split), factory or OwnModel())
            recomputed[split] = _recompute_split(folder / split, manifest, held, number, seed)
    finally:
        release()
    return recomputed


@dataclass(frozen=True)
class Recomputed:
    image_ids: tuple[str, ...]
    differences: dict[str, float]
    problems: tuple[str, ...]


def _recompute_split(folder: Path, manifest: Manifest, held: Held, num_images: int, seed: int) -> Recomputed:
    # Weights that were replaced under the same path are found here, too.
    refuse_other_settings(folder, manifest.bank.parts, held.parts)
    failed = {image_id for image_id, _ in manifest.failed}
    fields = BASE.content.fields
    readable = [
        (folder / receipt.name, row, image_id)
        for receipt in manifest.shards
        for row, image_id in enumerate(read_text(inspect_shard(folder / receipt.name, fields).table("image_id")))
        if image_id not in failed
    ]
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(readable), min(num_images, len(readable)), replace=False).tolist())
    source, axes = open_images(held.config.dataset, manifest.split), manifest.bank.axes
    row_of = {image_id: row for row, image_id in enumerate(source.image_ids)}
    differences: dict[str, float] = {}
    problems: list[str] = []
    for path, row, image_id in (readable[number] for number in chosen):
        stored = unpack_image(inspect_shard(path, fields).tables(fields_of(axes, fields)), row, axes)
        assert isinstance(stored, ImageSignals)
        try:
            [now] = held.model.extract([image_id], [source.read(row_of[image_id])])
        except UnreadableImage as error:
            problems.append(f"{image_id}: cannot be read any more: {error}")
            continue
        largest, wrong = compare_images(stored, now, axes)
        for name, value in largest.items():
            differences[name] = max(differences.get(name, 0.0), value)
        problems += [f"{image_id}: {text}" for text in wrong]
    return Recomputed(tuple(readable[number][2] for number in chosen), differences, tuple(problems))
