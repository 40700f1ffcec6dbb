"""What a worker does: one task, one shard. Names and numbers go in, a receipt of a few hundred bytes comes out.

Everything here also runs without dask.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cache.atomic import remove_file, write_atomically, write_json
from cache.fingerprint import refuse_other_settings
from cache.manifest import BANK_NAME, BankReceipt, Receipt, read_bank_receipt, shard_name
from cache.models import ExtractorFactory, Held, device_name, hold, load_extractor
from cache.plan import hash_of_ids
from cache.schema import SCHEMA_VERSION
from cache.shard import encode_file
from cache.tables import pack_tables
from hoi.datasets import ImageSource, UnreadableImage, open_images
from hoi.errors import UserError
from hoi.provenance import library_versions
from hoi.records import ImageSignals

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "h5py", "numpy", "pillow", "dask", "distributed")
READERS = 2
READ_AHEAD = 8
"""Images decoded before they are needed, and threads that do it."""
MAX_PIXEL_BYTES = 256 << 20
"""Decoded images that are held at once; a shard of photographs goes through the models in parts of this size."""


def build_bank(
    config_json: str,
    request_json: str,
    folder: str,
    images_per_shard: int,
    num_images: int,
    image_ids_sha256: str,
    factory: ExtractorFactory = load_extractor,
) -> dict[str, Any]:
    """Begins a split: writes its text bank and vocabulary, and beside them what the models say of themselves.

    Args:
        config_json: The resolved config.
        request_json: What the config asks for (`cache.request.request_parts`).
        folder: The split's folder.
        images_per_shard, num_images, image_ids_sha256: The split's plan.
        factory: Config, vocabulary and device to the models.

    Returns:
        The fields of a `BankReceipt`.
    """
    held = hold(config_json, factory)
    bank = held.extractor.text_bank
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": held.fingerprint,
        "logit_scale": float(bank.logit_scale),
        **({} if bank.logit_bias is None else {"logit_bias": float(bank.logit_bias)}),
    }
    tables = {
        "text_embedding": np.ascontiguousarray(bank.text_embedding, "<f4"),
        "prompts": _json_text([list(texts) for texts in bank.prompts]),
        "vocabulary": _json_text(held.vocabulary.to_dict()),
    }
    data = encode_file(tables, attributes)
    receipt = BankReceipt(
        fingerprint=held.fingerprint,
        parts=held.parts,
        request=json.loads(request_json),
        images_per_shard=images_per_shard,
        image_ids_sha256=image_ids_sha256,
        num_images=num_images,
        axes=dict(held.extractor.axes),
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        made_with={
            "versions": {**library_versions(LIBRARIES), **held.extractor.provenance().get("versions", {})},
            "device": device_name(held.device),
        },
    )
    path = Path(folder) / BANK_NAME
    remove_file(path.with_suffix(".json"))
    write_atomically(path, data)
    write_json(path.with_suffix(".json"), asdict(receipt))
    return asdict(receipt)


def _json_text(plain: Any) -> np.ndarray:
    return np.array(json.dumps(plain, ensure_ascii=False).encode(), dtype="S")


def build_shard(
    config_json: str,
    folder: str,
    split: str,
    index: int,
    start: int,
    stop: int,
    image_ids_sha256: str,
    fingerprint: str,
    factory: ExtractorFactory = load_extractor,
) -> dict[str, Any]:
    """Rows of a split to one finished shard on disk.

    Args:
        config_json: The resolved config.
        folder: The split's folder.
        split, index, start, stop, image_ids_sha256: The shard's plan.
        fingerprint: What the models here must say of themselves; empty for a split that is just being begun.
        factory: Config, vocabulary and device to the models.

    Returns:
        The fields of the shard's `Receipt`.

    Raises:
        UserError: this worker sees other images or has other models than the split was begun with, or cannot write.
    """
    held = hold(config_json, factory)
    path = Path(folder) / shard_name(index)
    if fingerprint not in ("", held.fingerprint):
        begun = read_bank_receipt(path.parent)
        refuse_other_settings(path.parent, begun.parts if begun is not None else {}, held.parts)
    source = _source(held, split)
    image_ids = list(source.image_ids[start:stop])
    if hash_of_ids(image_ids) != image_ids_sha256:
        raise UserError(
            "the images changed while the cache was being built",
            where=f"split '{split}', rows {start} to {stop}",
            fix="leave the folder as it is and run the same command again",
        )
    tables = pack_tables(image_ids, _outcomes(held, source, range(start, stop)), held.extractor.axes)
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": held.fingerprint,
        "fingerprint_parts": held.parts,
        "split": split,
        "index": index,
        "start": start,
        "num_images": len(image_ids),
        "image_ids_sha256": image_ids_sha256,
        "axes": dict(held.extractor.axes),
    }
    data = encode_file(tables, attributes)
    reasons = tables["status_reason"].tolist()
    receipt = Receipt(
        name=path.name,
        fingerprint=held.fingerprint,
        image_ids_sha256=image_ids_sha256,
        num_images=len(image_ids),
        num_detections=len(tables["scores"]),
        num_pairs=len(tables["pairs_ho"]),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        failed=tuple((image_ids[row], reasons[row].decode()) for row in np.flatnonzero(tables["status"])),
    )
    # In this order a kill leaves a shard without a receipt, never a receipt of another shard.
    remove_file(path.with_suffix(".json"))
    write_atomically(path, data)
    write_json(path.with_suffix(".json"), receipt.to_dict())
    return receipt.to_dict()


def _source(held: Held, split: str) -> ImageSource:
    if split not in held.sources:
        held.sources[split] = open_images(held.config.dataset, split)
    return held.sources[split]


def _outcomes(held: Held, source: ImageSource, rows: Sequence[int]) -> list[ImageSignals | str]:
    """Rows of a split to their signals, or the reason why an image could not be read."""
    image_ids, outcomes = source.image_ids, dict[int, ImageSignals | str]()
    waiting: dict[int, np.ndarray] = {}

    def extract() -> None:
        if waiting:
            signals = held.extractor.extract([image_ids[row] for row in waiting], list(waiting.values()))
            outcomes.update(zip(waiting, signals, strict=True))
            waiting.clear()

    for row, image in _read_ahead(source, rows):
        if isinstance(image, str):
            outcomes[row] = image
            continue
        if sum(i.nbytes for i in waiting.values()) + image.nbytes > MAX_PIXEL_BYTES:
            extract()
        waiting[row] = image
    extract()
    return [outcomes[row] for row in rows]


def _read_ahead(source: ImageSource, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray | str]]:
    """Rows to (row, image or reason), in order; a few images are decoded ahead of the one that is asked for."""

    def read(row: int) -> np.ndarray | str:
        try:
            return source.read(row)
        except UnreadableImage as error:
            return str(error)

    remaining = iter(rows)
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[tuple[int, Future[np.ndarray | str]]] = deque(
            (row, pool.submit(read, row)) for row in islice(remaining, READ_AHEAD)
        )
        while ahead:
            row, future = ahead.popleft()
            for following in islice(remaining, 1):
                ahead.append((following, pool.submit(read, following)))
            yield row, future.result()
