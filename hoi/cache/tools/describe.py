"""What a cache holds, for people: a summary of its splits, and the records of one image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.base_pass import unpack_image
from hoi.cache.manifest import Manifest, cached_splits, read_bank_receipt, read_manifest, read_receipt
from hoi.cache.read.opened import Bank
from hoi.cache.schema import BASE, UNREADABLE, Pass, fields_of, of_file, passes_in
from hoi.cache.shard import Header, inspect_shard, read_text
from hoi.cache.tools.estimate import journal_seconds
from hoi.cache.tools.repair import QUARANTINE_NAME
from hoi.cache.vlm_pass import unpack_signals
from hoi.config import PipelineConfig
from hoi.errors import UserError, command, nearest
from hoi.files import size_text
from hoi.provenance import flatten
from hoi.records import ImageSignals
from hoi.vlm import VlmSignals
from hoi.vocabulary import Vocabulary

SHOWN = 20
"""Unreadable images that `info` lists per split before it says how many more there are."""


def info(config: PipelineConfig) -> str:
    """Return what the config's cache is, for people: counts, unreadable images, versions; unfinished splits, too."""
    folder = Path(config.cache.folder)
    shown: set[str] = set()
    places = [folder / split for split in cached_splits(folder)]
    lines = [line for place in places for of in (BASE, *passes_in(place)) for line in _describe(place, shown, of)]
    return "\n".join(lines)


def _describe(folder: Path, shown: set[str], of: Pass) -> list[str]:
    manifest = read_manifest(folder, of)
    bank = manifest.bank if manifest is not None else read_bank_receipt(folder, of)
    name = of.label(folder.name)
    if bank is None:
        return [f"{name}: begun, but what it was begun with is lost; {command('teacher-cache')} makes it again"]
    num_shards = len(manifest.shards) if manifest is not None else bank.num_shards
    there = (read_receipt(folder / of.shard_name(index)) for index in range(num_shards))
    receipts = manifest.shards if manifest is not None else [receipt for receipt in there if receipt is not None]
    failed = [pair for receipt in receipts for pair in receipt.failed]
    state = "complete" if manifest is not None else f"not complete: {len(receipts)} of {num_shards} shards"
    lines = [
        f"{name}: {state} · {folder}",
        f"  {sum(r.num_images for r in receipts)} of {bank.num_images} images ({len(failed)} unreadable), "
        + (f"{sum(r.num_detections for r in receipts)} detections, " if of == BASE else "")
        + f"{sum(r.num_pairs for r in receipts)} pairs, "
        f"{size_text(sum(r.num_bytes for r in receipts))} in shards of {bank.images_per_shard} images",
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
        plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flatten(parts).items()}
        lines += [f"    {key}: {value}" for key, value in sorted(plain.items())]
    shown.add(bank.fingerprint)
    return lines


def _history(folder: Path, of: Pass) -> list[str]:
    seconds = journal_seconds([folder], of)
    lines = [] if seconds is None else [f"  {seconds:.3f} worker seconds per image"]
    kept = {path.name: path.name.rpartition(".")[0] for path in (folder / QUARANTINE_NAME).glob("*.[0-9]*")}
    quarantined = sorted(name for name, original in kept.items() if of_file(original) == of)
    if quarantined:
        lines.append(f"  in quarantine: {', '.join(quarantined)}")
    return lines


def find_image(folder: Path, image_id: str, split: str | None) -> tuple[Manifest, Header, int]:
    """Return the manifest, the shard, and the row in it of an image; a UserError where no complete split has it."""
    known: list[str] = []
    for name in [split] if split is not None else cached_splits(folder):
        manifest = read_manifest(folder / name)
        for receipt in manifest.shards if manifest is not None else ():
            header = inspect_shard(folder / name / receipt.name, BASE.content.fields)
            ids = read_text(header.table("image_id"))
            if image_id in ids:
                assert manifest is not None
                return manifest, header, ids.index(image_id)
            known += ids
    if not known:
        where = folder if split is None else folder / split
        raise UserError("there is no complete teacher cache", where=where, fix=command("teacher-cache"))
    raise UserError("the cache has no such image", where=folder, expected=nearest(image_id, known), got=image_id)


@dataclass(frozen=True)
class ImageReport:
    """What the cache holds of one image, as plain data; printed as JSON."""

    plain: dict[str, Any]

    def __str__(self) -> str:
        return json.dumps(self.plain, indent=1, ensure_ascii=False)


def export(config: PipelineConfig, image_id: str, top: int = 5, split: str | None = None) -> ImageReport:
    """Return what was detected and paired in an image of the config's cache, and what the teacher says of it.

    Scores are the teacher's own: softmax over all interactions of `logit_scale * cosine`, or the sigmoid where it was
    trained with one. Per image and pair the `top` interactions are listed; those of a pair are of its object. Raises a
    UserError where no complete split, or not the given one, has the image.
    """
    manifest, header, row = find_image(Path(config.cache.folder), image_id, split)
    axes = header.attributes["axes"]
    tables = header.tables(fields_of(axes, BASE.content.fields))
    record = unpack_image(tables, row, axes)
    plain: dict[str, Any] = {
        "image_id": image_id,
        "split": manifest.split,
        "shard": header.path.name,
        "row": row,
        "fingerprint": manifest.bank.fingerprint,
        "is_readable": bool(tables["status"][row] != UNREADABLE),
    }
    if not isinstance(record, ImageSignals):
        return ImageReport({**plain, "reason": record})
    bank = Bank.open(header.path.parent, manifest.bank)
    vocabulary, scale, bias = bank.vocabulary, bank.texts.logit_scale, bank.texts.logit_bias
    labels = record.detections.labels
    names = [vocabulary.objects[label] for label in labels]

    def best(cosines: np.ndarray, admitted: np.ndarray) -> list[dict[str, Any]]:
        cosines = cosines.astype(np.float64)
        logits = scale * cosines + (bias or 0.0)
        powers = np.exp(logits - logits.max())
        scores = 1 / (1 + np.exp(-logits)) if bias is not None else powers / powers.sum()
        rows = sorted(np.flatnonzero(admitted).tolist(), key=lambda k: -scores[k])[:top]
        return [
            {"interaction": vocabulary.names[k], "cosine": round(cosines[k], 4), "score": round(scores[k], 6)}
            for k in rows
        ]

    def best_of_pair(human: int, obj: int, cosines: np.ndarray) -> list[dict[str, Any]]:
        # The interactions of its object or, for a human with itself, those without object.
        label = vocabulary.no_object_idx if human == obj else labels[obj]
        return best(cosines, vocabulary.object_of == label)

    boxes = record.detections.boxes_xyxy.astype(np.float64).round(2).tolist()
    plain |= {
        "size_hw": record.size_hw.tolist(),
        "score_form": "softmax" if bias is None else "sigmoid",
        "crop_margin": manifest.bank.parts.get("teacher", {}).get("crop_margins", [None])[0],
        "interactions": best(record.image_similarity, np.ones(len(vocabulary), bool)),
        "detections": [
            {"object": name, "score": round(float(score), 4), "box_xyxy": box}
            for name, score, box in zip(names, record.detections.scores, boxes, strict=True)
        ],
        "pairs": [
            {
                "human": human,
                "object": obj,
                "object_name": names[obj],
                "interactions": best_of_pair(human, obj, cosines[0]),
            }
            for (human, obj), cosines in zip(record.pairs_ho.tolist(), record.union_similarity, strict=True)
        ],
    }
    passes = {
        of.name: _answers(header, of, row, vocabulary, top)
        for of in passes_in(header.path.parent)
        if read_manifest(header.path.parent, of) is not None
    }
    return ImageReport({**plain, "passes": passes} if passes else plain)


def _answers(base: Header, of: Pass, row: int, vocabulary: Vocabulary, top: int) -> dict[str, Any]:
    header = inspect_shard(base.path.with_name(of.shard_name(base.attributes["index"])), of.content.fields)
    axes = header.attributes["axes"]
    tables = header.tables(fields_of(axes, of.content.fields))
    record = unpack_signals(tables, row, axes)
    if not isinstance(record, VlmSignals):
        return {"reason": record}

    def best(scores: np.ndarray) -> list[dict[str, Any]]:
        rows = [k for k in np.argsort(-scores.astype(np.float32), kind="stable").tolist() if scores[k] > 0][:top]
        return [{"interaction": vocabulary.names[k], "score": round(float(scores[k]), 6)} for k in rows]

    plain: dict[str, Any] = {"caption": record.caption} if record.caption else {}
    if record.vlm_scores is not None and record.vlm_asked is not None:
        plain |= {"asked": int(record.vlm_asked.sum()), "interactions": best(record.vlm_scores)}
    if record.vlm_pair_scores is not None:
        plain["pairs"] = [best(scores) for scores in record.vlm_pair_scores]
    return plain
