"""Rescore: make a cache with other prompts or another vocabulary from cached embeddings, without reading an image.

Embeddings, boxes and region features are taken over; similarities are computed anew, as the extractor computes them. A
shard at a time is in memory, and an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hoi.cache.base_pass import bank_tables, pack_tables, unpack_tables
from hoi.cache.build.run import SplitBuild
from hoi.cache.build.worker import LIBRARIES, device_name, write_bank, write_shard
from hoi.cache.manifest import BankReceipt, Manifest, Receipt, complete_manifest, sole_builder
from hoi.cache.plan import ShardPlan, plan_over, refuse_other_settings, splits_of
from hoi.cache.read.opened import Bank
from hoi.cache.schema import BASE, fields_of
from hoi.cache.shard import inspect_shard, read_text
from hoi.cache.tools.repair import config_with_cache
from hoi.config import PairsConfig, PipelineConfig
from hoi.datasets import load_vocabulary
from hoi.errors import UserError, command
from hoi.extraction import pair_detections, similarity
from hoi.files import file_sha256, json_sha256
from hoi.machine import choose_device
from hoi.prompts import spaced
from hoi.provenance import differing_keys, library_versions
from hoi.records import ImageSignals, TextBank
from hoi.vocabulary import Vocabulary

NEW_IN_REQUEST = {"vocabulary", "teacher.prompts", "teacher.no_interaction_prompts"}
NEW_IN_TEACHER = {"prompts", "no_interaction_prompts", "tokens_sha256"}
"""What rescoring may change; every other key of request and fingerprint must be the cache's own."""


@dataclass(frozen=True)
class Texts:
    """The new vocabulary's texts, and what the teacher that encoded them on `device` says of itself now."""

    vocabulary: Vocabulary
    bank: TextBank
    provenance: dict[str, Any]
    device: str


@dataclass(frozen=True)
class Rescored:
    """What became of a split.

    Args:
        fewer_pairs: Images of the shards made now for which a fresh build would have more pairs: dropped objects took
            places below `pairs.max_objects`, and what would have moved up was never embedded.
        full: Images of the shards made now at `detector.max_detections`, where a fresh build may have found more boxes.
    """

    split: str
    num_images: int
    num_pairs: int
    num_done: int
    dropped: tuple[str, ...]
    fewer_pairs: int
    full: int

    def __str__(self) -> str:
        lines = [f"{self.split}: {self.num_images} images, {self.num_pairs} pairs, {self.num_done} shards made now"]
        if self.dropped:
            lines.append(f"  left out with their boxes and pairs: {', '.join(self.dropped)}")
        if self.fewer_pairs:
            lines.append(f"  {self.fewer_pairs} images lack pairs that a fresh build would have (pairs.max_objects)")
        if self.full:
            lines.append(f"  {self.full} images may lack boxes that a fresh build would have (detector.max_detections)")
        return "\n".join(lines)


def refuse_other_than_texts(folder: Path, cached: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise a UserError if two requests differ in more than prompts and vocabulary, which only a new build can give."""
    differences = [d for d in differing_keys(cached, wanted) if d.split(" (")[0] not in NEW_IN_REQUEST]
    if differences:
        raise UserError(
            "rescoring changes prompts and vocabulary alone",
            where=folder,
            got="; ".join(differences),
            fix=f"set these keys back, or build a new cache: {command('teacher-cache', 'cache.folder=FOLDER')}",
        )


def object_rows(old: Vocabulary, new: Vocabulary, where: object) -> np.ndarray:
    """Return the row in the new vocabulary of every old object, -1 for one left out; a UserError for a new one."""
    old_names, new_names = ([spaced(name).lower() for name in names] for names in (old.objects, new.objects))
    unknown = [name for name, plain in zip(new.objects, new_names, strict=True) if plain not in old_names]
    if unknown:
        raise UserError(
            f"this cache was made without {len(unknown)} of the vocabulary's objects, so no such box is in it",
            where=where,
            expected=f"objects out of {', '.join(old.objects)}",
            got=", ".join(unknown),
            fix=f"take them out, or build another cache: {command('teacher-cache', 'cache.folder=FOLDER')}",
        )
    row_of = {name: row for row, name in enumerate(new_names)}
    return np.array([row_of.get(name, -1) for name in old_names], np.int64)


def new_parts(folder: Path, cached: dict[str, Any], texts: Texts) -> dict[str, Any]:
    """Return the fingerprint parts of a fresh build; a UserError if another teacher made the embeddings."""
    kept = {k: v for k, v in cached["teacher"].items() if k not in NEW_IN_TEACHER}
    now = {k: v for k, v in texts.provenance.items() if k not in NEW_IN_TEACHER}
    refuse_other_settings(folder, {"teacher": kept}, {"teacher": now})
    parts = {**cached, "vocabulary": texts.vocabulary.digest(), "teacher": texts.provenance}
    # Texts encoded on another kind of device differ in their last bits from those of a fresh build.
    return parts if texts.device == cached.get("device", texts.device) else {**parts, "text_device": texts.device}


def rescore_split(
    source: Path,
    manifest: Manifest,
    texts: Texts,
    config: PipelineConfig,
    request: dict[str, Any],
    progress: Callable[[int], object],
) -> Rescored:
    """Make a complete split with other texts out of a complete one."""
    old_vocabulary = Bank.open(source, manifest.bank).vocabulary
    rows = object_rows(old_vocabulary, texts.vocabulary, source)
    dropped = tuple(name for name, row in zip(old_vocabulary.objects, rows, strict=True) if row < 0)
    folder = Path(config.cache.folder) / manifest.split
    parts = new_parts(source, manifest.bank.parts, texts)
    begun = replace(
        manifest.bank,
        fingerprint=json_sha256(parts),
        parts=parts,
        request=request,
        axes={**manifest.bank.axes, "K": len(texts.vocabulary)},
        made_with={
            "versions": library_versions(LIBRARIES),
            "device": device_name(texts.device),
            "rescored_from": {"fingerprint": manifest.bank.fingerprint, **manifest.bank.made_with},
        },
    )
    plan = plan_over(manifest, folder)
    build = SplitBuild(plan, config, request, reads_images=False)
    if build.bank is None:
        build.bank = write_bank(folder, *bank_tables(texts.bank, texts.vocabulary), begun)
    refuse_other_settings(folder, build.bank.parts, parts)
    build.unseal()
    progress(build.num_images_done)
    rescoring = _Rescoring(texts, rows, config.pairs, manifest.bank, build.bank)
    missing = [shard for shard in plan.shards if shard.index not in build.receipts]
    for shard in missing:
        build.receipts[shard.index] = rescoring.shard(source, manifest.shards[shard.index].sha256, folder, shard)
        progress(shard.num_images)
    build.seal()
    num_pairs = sum(receipt.num_pairs for receipt in build.receipts.values())
    limit = config.detector.max_detections if dropped else None
    full = sum(number == limit for number in rescoring.num_detections)
    return Rescored(manifest.split, plan.num_images, num_pairs, len(missing), dropped, rescoring.fewer_pairs, full)


class _Rescoring:
    # What all shards of a split share, and what is counted over them.

    def __init__(self, texts: Texts, rows: np.ndarray, pairs: PairsConfig, old: BankReceipt, new: BankReceipt) -> None:
        self._texts, self._rows, self._pairs, self._old, self._new = texts, rows, pairs, old, new
        levels = old.parts["teacher"]["levels"]
        self._crop_level = levels.index("crop") if "crop" in levels else None
        self.fewer_pairs = 0
        self.num_detections: list[int] = []

    def shard(self, source: Path, sha256: str, folder: Path, plan: ShardPlan) -> Receipt:
        path = source / plan.name
        if file_sha256(path) != sha256:
            fix = f"{command('cache repair')} with the old settings"
            raise UserError("a file differs from what its manifest says", where=path, fix=fix)
        axes, fields = self._old.axes, BASE.content.fields
        tables = inspect_shard(path, fields).tables(fields_of(axes, fields), mapped=False)
        image_ids = read_text(tables["image_id"])
        outcomes = [o if isinstance(o, str) else self._image(o) for o in unpack_tables(tables, axes)]
        tables = pack_tables(image_ids, outcomes, self._new.axes)
        return write_shard(folder, tables, plan, self._new.parts, self._new.axes)

    def _image(self, record: ImageSignals) -> ImageSignals:
        self.num_detections.append(len(record.detections))
        if (self._rows < 0).any() or not np.array_equal(self._rows, np.arange(len(self._rows))):
            record = self._with_new_labels(record)
        texts = self._texts.bank.text_embedding
        return replace(
            record,
            image_similarity=similarity(record.image_embedding, texts),
            union_similarity=similarity(record.union_embedding, texts),
        )

    def _with_new_labels(self, record: ImageSignals) -> ImageSignals:
        labels = self._rows[record.detections.labels]
        kept = np.flatnonzero(labels >= 0)
        detections = replace(record.detections, labels=labels).select(kept)
        new_row = np.cumsum(labels >= 0) - 1
        vocabulary = self._texts.vocabulary
        is_itself = record.pairs_ho[:, 0] == record.pairs_ho[:, 1]
        pairs = np.flatnonzero((labels[record.pairs_ho] >= 0).all(1) & (vocabulary.has_no_object | ~is_itself))
        pairs_ho = new_row[record.pairs_ho[pairs]].astype(np.int32)
        detection_feature = record.detection_feature[kept]
        if self._crop_level is not None:
            # As in a fresh build: a box's own crop is encoded for boxes of pairs alone.
            is_paired = np.isin(np.arange(len(kept)), pairs_ho)
            detection_feature[~is_paired, self._crop_level] = 0
        policy = pair_detections(detections, vocabulary.person_idx, self._pairs, with_itself=vocabulary.has_no_object)
        self.fewer_pairs += not np.array_equal(policy, pairs_ho)
        return replace(
            record,
            detections=detections,
            pairs_ho=pairs_ho,
            detection_feature=detection_feature,
            union_embedding=record.union_embedding[pairs],
            union_similarity=record.union_similarity[pairs],
            union_feature=record.union_feature[pairs],
        )


@dataclass(frozen=True)
class RescoreReport:
    splits: tuple[Rescored, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.splits))


def rescore(config: PipelineConfig, to: Path) -> RescoreReport:
    """Make another cache with the config's prompts and vocabulary out of a complete one; no image is read.

    Args:
        config: The new prompts or vocabulary; its `cache.folder` is the old cache.
        to: Folder of the new one. A pipeline file with these settings and this `cache.folder` accepts it.

    Raises UserError: the old cache is not complete or not of this teacher, the config differs in more than texts, or
    the vocabulary has objects that the cache was made without.
    """
    import torch

    from hoi.teachers import build_teacher

    source, request = Path(config.cache.folder), BASE.content.request(config)
    if to.resolve() == source.resolve():
        raise UserError("the new cache would overwrite the old one", where=to, fix="choose another --to FOLDER")
    manifests = {split: complete_manifest(source / split) for split in splits_of(config)}
    for split, manifest in manifests.items():
        refuse_other_than_texts(source / split, manifest.bank.request, request)
    torch.set_num_threads(config.cache.threads)
    device = choose_device(config.cache.device, "cache.device").type
    as_begun = BASE.content.as_begun(config.model_dump_json(), source / next(iter(manifests)))
    teacher = build_teacher(PipelineConfig.model_validate_json(as_begun).teacher, device)
    vocabulary = load_vocabulary(config.dataset)
    texts = Texts(vocabulary, teacher.text_bank(vocabulary), dict(teacher.provenance()), device)
    done = []
    total = sum(manifest.num_images for manifest in manifests.values())
    with sole_builder(to), tqdm(total=total, unit="image", desc="rescore") as bar:
        for split, manifest in manifests.items():
            there = config_with_cache(config, folder=str(to), images_per_shard=manifest.bank.images_per_shard)
            done.append(rescore_split(source / split, manifest, texts, there, request, bar.update))
    return RescoreReport(tuple(done))
