"""What a worker does: one task, one shard. Names and numbers go in, a small receipt comes out."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hoi.cache.build.pool import give_up_slot
from hoi.cache.manifest import BankReceipt, Receipt, read_bank_receipt
from hoi.cache.plan import ShardPlan, fingerprint_parts, hash_of_ids, receipt_of
from hoi.cache.schema import BASE, SCHEMA_VERSION, Pass
from hoi.cache.shard import encode_file
from hoi.config import PipelineConfig
from hoi.datasets import ImageSource, UnreadableImage, load_vocabulary, open_images
from hoi.detectors import take_cut
from hoi.errors import UserError
from hoi.files import json_sha256, remove_file, write_atomically, write_json
from hoi.machine import choose_device, may_have_side_threads
from hoi.provenance import differing_keys, library_versions
from hoi.vocabulary import Vocabulary

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "h5py", "numpy", "pillow", "dask", "distributed")
SHOWN = 5
"""Differing keys that a message lists."""
READERS = 2
READ_AHEAD = 16
"""Images decoded before they are needed, and threads that do it while the models run."""

ModelFactory = Callable[[PipelineConfig, Vocabulary, str], Any]
"""Makes the model of a pass from config, vocabulary and device. Equal ones give equal models."""


@dataclass(frozen=True)
class OwnModel:
    """The product's own model of a pass: detector, pairs and teacher, or a vision language model."""

    of: Pass = BASE

    def __call__(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> Any:
        return self.of.content.load_model(config, vocabulary, device)


@dataclass(frozen=True)
class Held:
    """What a worker keeps between its tasks; `parts` are all that decides what its model gives."""

    key: tuple[str, ModelFactory]
    config: PipelineConfig
    vocabulary: Vocabulary
    device: str
    model: Any
    parts: dict[str, Any]
    sources: dict[str, ImageSource]


_held: list[Held] = []


def release() -> None:
    """Forget the models, so that a process that goes on has its memory back."""
    _held.clear()


def hold(config_json: str, factory: ModelFactory) -> Held:
    """Return the model of a config, made at the first call in this process; set the threads of the calling thread."""
    config = PipelineConfig.model_validate_json(config_json)
    # OpenMP keeps its thread count per thread, and a task may run in any of them.
    torch.set_num_threads(config.cache.threads)
    # numpy's products are summed in another order with more threads.
    threadpool_limits(config.cache.threads, user_api="blas")
    if _held and _held[0].key == (config_json, factory):
        return _held[0]
    release()
    device = choose_device(config.cache.device, "cache.device").type
    vocabulary = load_vocabulary(config.dataset)
    model = factory(config, vocabulary, device)
    parts = json.loads(json.dumps(fingerprint_parts(config, vocabulary.digest(), model.provenance()), sort_keys=True))
    _held.append(Held((config_json, factory), config, vocabulary, device, model, parts, sources={}))
    return _held[0]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


def begin_pass(
    of: Pass,
    config_json: str,
    request_json: str,
    folder: str,
    images_per_shard: int,
    num_images: int,
    image_ids_sha256: str,
    factory: ModelFactory,
) -> dict[str, Any]:
    """Begin a pass: write its bank, and beside it what its model says of itself; return the fields of its receipt."""
    place, content = Path(folder), of.content
    held = hold(content.as_begun(config_json, place), factory)
    parts = content.parts(held.parts, place)
    begun = BankReceipt(
        fingerprint=json_sha256(parts),
        parts=parts,
        request=json.loads(request_json),
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
    return asdict(write_bank(place, *content.bank(held.model, held.vocabulary), begun, of))


def build_shard(
    plan: ShardPlan, config_json: str, folder: str, fingerprint: str, factory: ModelFactory
) -> dict[str, Any]:
    """Run the model over the images of one shard, write it, and return the fields of its `Receipt`.

    And `cut`, the ids of the images of which not all boxes were looked at.

    Args:
        fingerprint: What the model here must say of itself; empty for a pass that is just being begun.

    Raises:
        UserError: this worker has other images, another base shard or model than the pass was begun with.
        ValueError: the model gave NaN or infinity.
    """
    place, content = Path(folder), plan.of.content
    held = hold(content.as_begun(config_json, place), factory)
    parts = content.parts(held.parts, place)
    if fingerprint not in ("", json_sha256(parts)):
        # The driver has compared the settings, and the files that they name, before any task began.
        begun = read_bank_receipt(place, plan.of)
        raise UserError(
            "this worker has other models or another device than the split was begun with",
            where=f"{platform.node()}, {place}",
            got="; ".join(differing_keys(begun.parts, parts)[:SHOWN]) if begun is not None else None,
            fix="give all workers the same weights and device, then run the same command again: finished shards stay",
        )
    source = _planned_images(held, plan)
    image_ids = list(source.image_ids[plan.start : plan.stop])
    over = content.base_shard(place, plan)
    inputs, outcomes = content.inputs(image_ids, over)
    readable: list[int] = []

    def decoded() -> Iterator[tuple[Any, np.ndarray]]:
        for row, image in read_ahead(source, [plan.start + row for row in inputs], held.device):
            if isinstance(image, str):
                outcomes[row - plan.start] = image
            else:
                readable.append(row - plan.start)
                yield inputs[row - plan.start], image

    records = content.process(held.model, over)(decoded())
    cut = take_cut()
    give_up_slot()
    done = {**outcomes, **dict(zip(readable, records, strict=True))}
    tables = content.pack(image_ids, [done[row] for row in range(plan.num_images)], held.model.axes, over)
    return {**write_shard(place, tables, plan, parts, held.model.axes).to_dict(), "cut": cut}


def _planned_images(held: Held, plan: ShardPlan) -> ImageSource:
    if plan.split not in held.sources:
        held.sources[plan.split] = open_images(held.config.dataset, plan.split)
    source = held.sources[plan.split]
    if hash_of_ids(source.image_ids[plan.start : plan.stop]) != plan.image_ids_sha256:
        raise UserError(
            "the images changed while the cache was being built",
            where=f"split '{plan.split}', rows {plan.start} to {plan.stop}",
            fix="leave the folder as it is and run the same command again",
        )
    return source


def read_ahead(source: ImageSource, rows: Sequence[int], device: str) -> Iterator[tuple[int, np.ndarray | str]]:
    """Yield each row with its image, or why it cannot be read, in order; a few images are decoded ahead.

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
        ahead = deque((row, pool.submit(read, row)) for row in islice(remaining, READ_AHEAD))
        while ahead:
            row, future = ahead.popleft()
            ahead.extend((following, pool.submit(read, following)) for following in islice(remaining, 1))
            yield row, future.result()


def write_bank(
    folder: Path, tables: dict[str, np.ndarray], attributes: dict[str, Any], begun: BankReceipt, of: Pass = BASE
) -> BankReceipt:
    """Write the bank of a pass, and beside it what it is begun with: `begun`, and the file's own size and hash."""
    common = {"schema_version": SCHEMA_VERSION, "fingerprint": begun.fingerprint}
    data = encode_file(tables, {**common, **attributes})
    receipt = replace(begun, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    _write_with_receipt(folder / of.bank_name, data, asdict(receipt))
    return receipt


def write_shard(
    folder: Path, tables: Mapping[str, np.ndarray], plan: ShardPlan, parts: Mapping[str, Any], axes: Mapping[str, int]
) -> Receipt:
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": json_sha256(parts),
        "fingerprint_parts": parts,
        "split": folder.name,
        "index": plan.index,
        "start": plan.start,
        "num_images": len(tables["image_id"]),
        "image_ids_sha256": plan.image_ids_sha256,
        "axes": dict(axes),
        **({} if plan.base_sha256 is None else {"pass": plan.of.name, "base_sha256": plan.base_sha256}),
    }
    data = encode_file(tables, attributes)
    receipt = receipt_of(plan.name, attributes, tables, len(data), hashlib.sha256(data).hexdigest())
    _write_with_receipt(folder / receipt.name, data, receipt.to_dict())
    return receipt


def _write_with_receipt(path: Path, data: bytes | memoryview, receipt: dict[str, Any]) -> None:
    # In this order a kill leaves a file without a receipt, never a receipt of another file.
    remove_file(path.with_suffix(".json"))
    write_atomically(path, data)
    write_json(path.with_suffix(".json"), receipt)
