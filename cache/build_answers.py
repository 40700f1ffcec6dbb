"""What a worker does for a further pass: one task, one shard, over the base shard of the same images.

Names and numbers go in, a receipt of a few hundred bytes comes out, as in `cache.build`. No detector and no image tower
of a teacher is opened: boxes and pairs are the base shard's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cache.answers import pack_answers
from cache.build import begun_with_models, other_models, planned_images, read_ahead
from cache.fingerprint import digest_of, file_sha256
from cache.manifest import BankReceipt, read_bank_receipt, shard_name
from cache.models import AskerFactory, Asks, Held, hold
from cache.passes import Pass
from cache.schema import fields_of
from cache.shard import Header, inspect_shard
from cache.slot import give_up_slot
from cache.tables import clip, unpack_tables
from cache.writing import write_phrases, write_shard
from hoi.errors import UserError
from hoi.records import ImageSignals
from hoi.vllm.answers import ImageAnswers


def build_phrases(
    config_json: str,
    request_json: str,
    folder: str,
    images_per_shard: int,
    num_images: int,
    image_ids_sha256: str,
    factory: AskerFactory,
    name: str,
) -> dict[str, Any]:
    """Begins a further pass: writes the phrases that it asks about, and beside them what its model says of itself.

    Args:
        config_json, request_json, folder, images_per_shard, num_images, image_ids_sha256: As for `build_bank`.
        factory: Config, vocabulary and device to the model.
        name: Of the pass.

    Returns:
        The fields of a `BankReceipt`.

    Raises:
        UserError: the teacher whose text side is asked is not the one that made the base pass.
    """
    held, base = hold(config_json, factory), _base(Path(folder))
    _refuse_other_teacher(Path(folder), held, base)
    layout = (json.loads(request_json), images_per_shard, num_images, image_ids_sha256)
    begun = begun_with_models(held, _parts(held, base), *layout)
    return asdict(write_phrases(Path(folder), Pass(name), held.model.phrases, held.vocabulary, begun))


def build_answers(
    config_json: str,
    folder: str,
    split: str,
    index: int,
    start: int,
    stop: int,
    image_ids_sha256: str,
    fingerprint: str,
    factory: AskerFactory,
    name: str,
    base_sha256: str,
) -> dict[str, Any]:
    """The images of one base shard to a finished shard of a further pass on disk.

    Args:
        config_json, folder, split, index, start, stop, image_ids_sha256, fingerprint: As for `build_shard`.
        factory: Config, vocabulary and device to the model.
        name: Of the pass.
        base_sha256: What the base shard's bytes must be.

    Returns:
        The fields of the shard's `Receipt`.

    Raises:
        UserError: this worker sees other images, another base shard or has another model than the pass was begun with,
            or cannot write.
        ValueError: the model gave NaN or infinity.
    """
    of, place = Pass(name), Path(folder)
    held, base = hold(config_json, factory), _base(place)
    parts = _parts(held, base)
    if fingerprint not in ("", digest_of(parts)):
        raise other_models(read_bank_receipt(place, of), place, parts)
    source, image_ids = planned_images(held, split, start, stop, image_ids_sha256)
    header = _base_shard(place / shard_name(index), base_sha256)
    axes = header.attributes["axes"]
    tables = {field.name: header.table(field.name, mapped=True) for field in fields_of(axes)}
    outcomes: dict[int, ImageAnswers | str] = {}
    stored = dict(zip(range(start, stop), unpack_tables(tables, axes), strict=True))
    outcomes.update((row, found) for row, found in stored.items() if isinstance(found, str))
    asked: list[int] = []

    def decoded() -> Iterator[tuple[ImageSignals, np.ndarray]]:
        readable = {row: found for row, found in stored.items() if isinstance(found, ImageSignals)}
        for row, image in read_ahead(source, list(readable), held.device):
            if isinstance(image, str):
                outcomes[row] = clip(image)
            else:
                asked.append(row)
                yield readable[row], image

    answers = held.model.ask(decoded(), base.parts.get("teacher", {}))
    give_up_slot()
    outcomes.update(zip(asked, answers, strict=True))
    own_tables = pack_answers(
        image_ids, [outcomes[row] for row in range(start, stop)], tables["pair_offsets"], held.model.axes
    )
    receipt = write_shard(
        place,
        own_tables,
        index=index,
        start=start,
        image_ids_sha256=image_ids_sha256,
        parts=parts,
        fingerprint=digest_of(parts),
        axes=held.model.axes,
        of=of,
        base_sha256=base_sha256,
    )
    return receipt.to_dict()


def _base(folder: Path) -> BankReceipt:
    base = read_bank_receipt(folder)
    if base is None:
        raise UserError("what the base pass was begun with is gone", where=folder, fix="make cache-repair")
    return base


def _parts(held: Held[Asks], base: BankReceipt) -> dict[str, Any]:
    """All that changes what a further pass's shards hold, but the base shards' own bytes."""
    return {**held.parts, "base": base.fingerprint}


def _base_shard(path: Path, sha256: str) -> Header:
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        found = "no such file"
    if found != sha256:
        raise UserError(
            "a base shard differs from what its manifest says",
            where=path,
            expected=f"SHA-256 {sha256[:12]}",
            got=found[:12],
            fix="make cache-repair",
        )
    return inspect_shard(path)


def _refuse_other_teacher(folder: Path, held: Held[Asks], base: BankReceipt) -> None:
    text = held.parts.get("text") or {}
    own, cached = text.get("weights_sha256"), base.parts.get("teacher", {}).get("weights_sha256")
    if own is not None and own != cached:
        raise UserError(
            "the teacher's text side is not of the weights that made this cache",
            where=folder,
            expected=f"weights {str(cached)[:12]}",
            got=own[:12],
            fix="set teacher.model and teacher.pretrained to what made the cache",
        )
