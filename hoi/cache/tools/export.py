"""One image's records as plain data with names, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.manifest import BANK_NAME, Manifest, Pass, passes_in, read_manifest
from hoi.cache.schema import UNREADABLE, fields_of
from hoi.cache.shard import (
    Header,
    inspect_shard,
    read_header,
    read_text,
)
from hoi.cache.tables import unpack_answers, unpack_image
from hoi.cache.tools.verify import cached_splits
from hoi.errors import UserError, nearest
from hoi.records import ImageSignals
from hoi.vlm.base import ImageAnswers
from hoi.vocabulary import Vocabulary


def find_image(folder: Path, image_id: str, split: str | None) -> tuple[Manifest, Header, int]:
    """An image of a complete split to its shard and the row in it.

    Args:
        folder: The cache's folder.
        image_id: Stable key of the image.
        split: Where it is, or None to look in all complete splits.

    Raises:
        UserError: no complete split has this image.
    """
    known: list[str] = []
    for name in [split] if split is not None else cached_splits(folder):
        manifest = read_manifest(folder / name)
        for receipt in manifest.shards if manifest is not None else ():
            header = inspect_shard(folder / name / receipt.name)
            ids = read_text(header.table("image_id"))
            if image_id in ids:
                assert manifest is not None
                return manifest, header, ids.index(image_id)
            known += ids
    if not known:
        raise UserError(
            "there is no complete teacher cache",
            where=folder if split is None else folder / split,
            fix="make teacher-cache (CONFIG=your pipeline file)",
        )
    raise UserError("the cache has no such image", where=folder, expected=nearest(image_id, known), got=image_id)


def export_image(folder: Path, image_id: str, top: int, split: str | None = None) -> dict[str, Any]:
    """An image of the cache to plain data: what was detected, what was paired, and what the teacher says of it.

    Scores are the teacher's own: softmax over all interactions of `logit_scale * cosine`, or the sigmoid where it was
    trained with one.

    Args:
        folder: The cache's folder.
        image_id: Stable key of the image.
        top: Number of interactions listed per image and pair; those of a pair are of its object.
        split: Where it is, or None to look in all complete splits.

    Raises:
        UserError: no complete split has this image.
    """
    manifest, header, row = find_image(folder, image_id, split)
    axes = header.attributes["axes"]
    tables = {field.name: header.table(field.name, mapped=True) for field in fields_of(axes)}
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
        return {**plain, "reason": record}
    bank = read_header(header.path.parent / BANK_NAME)
    vocabulary = Vocabulary.from_dict(bank.json("vocabulary"))
    scale, bias = bank.attributes["logit_scale"], bank.attributes.get("logit_bias")
    names = [vocabulary.objects[label] for label in record.detections.labels]
    every = np.arange(len(vocabulary))

    def best(cosines: np.ndarray, admitted: np.ndarray) -> list[dict[str, Any]]:
        cosines = cosines.astype(np.float64)
        scores = _scores(cosines, scale, bias)
        rows = sorted(admitted.tolist(), key=lambda k: -scores[k])[:top]
        return [
            {"interaction": vocabulary.names[k], "cosine": round(cosines[k], 4), "score": round(scores[k], 6)}
            for k in rows
        ]

    boxes = record.detections.boxes_xyxy.astype(np.float64).round(2).tolist()
    return {
        **plain,
        "size_hw": record.size_hw.tolist(),
        "score_form": "softmax" if bias is None else "sigmoid",
        "crop_margin": manifest.bank.parts.get("teacher", {}).get("crop_margins", [None])[0],
        "interactions": best(record.image_similarity, every),
        "detections": [
            {"object": name, "score": round(float(score), 4), "box_xyxy": box}
            for name, score, box in zip(names, record.detections.scores, boxes, strict=True)
        ],
        "pairs": [
            {
                "human": int(human),
                "object": int(thing),
                "object_name": names[thing],
                "interactions": best(cosines[0], _admitted(vocabulary, record, int(human), int(thing))),
            }
            for (human, thing), cosines in zip(record.pairs_ho, record.union_similarity, strict=True)
        ],
        **_passes(header, row, vocabulary, top),
    }


def _passes(base: Header, row: int, vocabulary: Vocabulary, top: int) -> dict[str, Any]:
    """What complete further passes say of the image, by name; nothing where there is none."""
    folder, number = base.path.parent, base.attributes["index"]
    said = {}
    for of in passes_in(folder):
        if read_manifest(folder, of) is not None:
            said[of.name] = _answers(inspect_shard(folder / of.shard_name(number), of.fields), of, row, vocabulary, top)
    return {"passes": said} if said else {}


def _answers(header: Header, of: Pass, row: int, vocabulary: Vocabulary, top: int) -> dict[str, Any]:
    axes = header.attributes["axes"]
    tables = {field.name: header.table(field.name, mapped=True) for field in fields_of(axes, of.fields)}
    record = unpack_answers(tables, row, axes)
    if not isinstance(record, ImageAnswers):
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


def _admitted(vocabulary: Vocabulary, record: ImageSignals, human: int, thing: int) -> np.ndarray:
    """Interactions that a pair may have: those of its object, or, for a human with itself, those without object."""
    label = vocabulary.no_object_idx if human == thing else record.detections.labels[thing]
    return np.flatnonzero(vocabulary.object_of == label)


def _scores(cosines: np.ndarray, scale: float, bias: float | None) -> np.ndarray:
    """Cosines [K], float64, to the teacher's own scores [K]."""
    logits = scale * cosines + (bias or 0.0)
    if bias is not None:
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()
