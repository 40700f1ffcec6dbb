"""What a worker does: one task, one shard. Names and numbers go in, a small receipt comes out."""

from __future__ import annotations

import json
import platform
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.build.models import (
    AskerFactory,
    Asks,
    ExtractorFactory,
    Extracts,
    Held,
    device_name,
    hold,
    load_extractor,
)
from hoi.cache.build.tasks import give_up_slot
from hoi.cache.build.writing import write_bank, write_phrases, write_shard
from hoi.cache.fingerprint import differing_keys
from hoi.cache.manifest import BankReceipt, Pass, read_bank_receipt, shard_name
from hoi.cache.plan import hash_of_ids
from hoi.cache.schema import fields_of
from hoi.cache.shard import Header, inspect_shard
from hoi.cache.tables import check_finite, clip, pack_answers, pack_tables, unpack_tables
from hoi.datasets import ImageSource, UnreadableImage, open_images
from hoi.errors import UserError
from hoi.files import file_sha256, json_sha256
from hoi.machine import may_have_side_threads
from hoi.provenance import library_versions
from hoi.records import ImageSignals
from hoi.vlm import ImageAnswers

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "h5py", "numpy", "pillow", "dask", "distributed")
SHOWN = 5
"""Differing keys that a message lists."""
READERS = 2
READ_AHEAD = 16
"""Images decoded before they are needed, and threads that do it while the models run."""


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
        request_json: What the config asks for (`hoi.cache.fingerprint.request_parts`).
        folder: The split's folder.
        images_per_shard, num_images, image_ids_sha256: The split's plan.
        factory: Config, vocabulary and device to the models.

    Returns:
        The fields of a `BankReceipt`.
    """
    held = hold(as_begun(config_json, Path(folder)), factory)
    begun = begun_with_models(
        held, held.parts, json.loads(request_json), images_per_shard, num_images, image_ids_sha256
    )
    return asdict(write_bank(Path(folder), held.model.text_bank, held.vocabulary, begun))


def begun_with_models(
    held: Held[Any],
    parts: dict[str, Any],
    request: dict[str, Any],
    images_per_shard: int,
    num_images: int,
    image_ids_sha256: str,
) -> BankReceipt:
    """What a pass is begun with, but for its bank's size and hash.

    Args:
        held: Its models.
        parts: What the fingerprint is over.
        request, images_per_shard, num_images, image_ids_sha256: As for `build_bank`.
    """
    return BankReceipt(
        fingerprint=json_sha256(parts),
        parts=parts,
        request=request,
        images_per_shard=images_per_shard,
        image_ids_sha256=image_ids_sha256,
        num_images=num_images,
        axes=dict(held.model.axes),
        sha256="",
        num_bytes=0,
        made_with={
            "versions": {**library_versions(LIBRARIES), **held.model.provenance().get("versions", {})},
            "device": device_name(held.device),
        },
    )


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
        ValueError: the models gave NaN or infinity.
    """
    held = hold(as_begun(config_json, Path(folder)), factory)
    if fingerprint not in ("", held.fingerprint):
        raise other_models(read_bank_receipt(Path(folder)), Path(folder), held.parts)
    source, image_ids = planned_images(held, split, start, stop, image_ids_sha256)
    outcomes = _outcomes(held, source, range(start, stop))
    give_up_slot()
    for outcome in outcomes:
        if isinstance(outcome, ImageSignals):
            check_finite(outcome)
    tables = pack_tables(image_ids, outcomes, held.model.axes)
    receipt = write_shard(
        Path(folder),
        tables,
        index=index,
        start=start,
        image_ids_sha256=image_ids_sha256,
        parts=held.parts,
        fingerprint=held.fingerprint,
        axes=held.model.axes,
    )
    return receipt.to_dict()


def planned_images(
    held: Held[Any], split: str, start: int, stop: int, image_ids_sha256: str
) -> tuple[ImageSource, list[str]]:
    """Rows of a split to (where its images are read from, their ids).

    Raises:
        UserError: this worker sees other images than were planned.
    """
    if split not in held.sources:
        held.sources[split] = open_images(held.config.dataset, split)
    source = held.sources[split]
    image_ids = list(source.image_ids[start:stop])
    if hash_of_ids(image_ids) != image_ids_sha256:
        raise UserError(
            "the images changed while the cache was being built",
            where=f"split '{split}', rows {start} to {stop}",
            fix="leave the folder as it is and run the same command again",
        )
    return source, image_ids


def other_models(begun: BankReceipt | None, folder: Path, parts: dict[str, Any]) -> UserError:
    """The mistake of a worker whose models say other `parts` of themselves than what a pass was begun with."""
    # The driver has compared the settings, and the files that they name, before any task began.
    return UserError(
        "this worker has other models or another device than the split was begun with",
        where=f"{platform.node()}, {folder}",
        got="; ".join(differing_keys(begun.parts, parts)[:SHOWN]) if begun is not None else None,
        fix="give all workers the same weights and device, then run the same command again: finished shards are kept",
    )


def as_begun(config_json: str, folder: Path) -> str:
    """A resolved config, with `teacher.precision: auto` as what its split, or else another one, was begun with.

    That choice is made by the clock, so it is made once; other settings are left for the fingerprint to judge.

    Args:
        config_json: The resolved config.
        folder: The split's folder, beside which those of the config's other splits lie.
    """
    config = json.loads(config_json)
    if config["teacher"]["precision"] != "auto":
        return config_json
    splits = dict.fromkeys([folder.name, *config["dataset"]["splits"]])
    begun = (read_bank_receipt(folder.with_name(split)) for split in splits)
    bank = next((bank for bank in begun if bank is not None), None)
    if bank is None:
        return config_json
    config["teacher"]["precision"] = bank.parts["teacher"]["precision"]
    return json.dumps(config)


def _outcomes(held: Held[Extracts], source: ImageSource, rows: Sequence[int]) -> list[ImageSignals | str]:
    """Rows of a split to their signals, or the reason why an image could not be read."""
    outcomes: dict[int, ImageSignals | str] = {}
    readable: list[int] = []

    def decoded() -> Iterator[tuple[str, np.ndarray]]:
        for row, image in read_ahead(source, rows, held.device):
            if isinstance(image, str):
                outcomes[row] = image
            else:
                readable.append(row)
                yield source.image_ids[row], image

    signals = held.model.extract_stream(decoded())
    outcomes.update(zip(readable, signals, strict=True))
    return [outcomes[row] for row in rows]


def read_ahead(source: ImageSource, rows: Sequence[int], device: str) -> Iterator[tuple[int, np.ndarray | str]]:
    """Rows to (row, image or reason), in order; a few images are decoded ahead of the one that is asked for.

    Not so on a CPU worker that keeps to its own threads; a GPU's cores have nothing else to do.
    """

    def read(row: int) -> np.ndarray | str:
        try:
            return source.read(row)
        except UnreadableImage as error:
            return str(error)

    if device == "cpu" and not may_have_side_threads():
        yield from ((row, read(row)) for row in rows)
        return
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
    if fingerprint not in ("", json_sha256(parts)):
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
        fingerprint=json_sha256(parts),
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
