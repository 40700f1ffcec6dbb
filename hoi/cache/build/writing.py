"""Tables to the files of a split, each with its receipt beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from hoi.cache.manifest import BASE, BankReceipt, Pass, Receipt
from hoi.cache.schema import SCHEMA_VERSION
from hoi.cache.shard import encode_file
from hoi.files import remove_file, write_atomically, write_json
from hoi.records import TextBank, VisualHead
from hoi.vlm import PhraseBank
from hoi.vocabulary import Vocabulary


def write_bank(folder: Path, bank: TextBank, vocabulary: Vocabulary, begun: BankReceipt) -> BankReceipt:
    """Begins a split: its text bank and vocabulary, and beside them what it is begun with.

    Args:
        folder: The split's folder.
        bank: Texts of the vocabulary's interactions.
        vocabulary: Names of objects, verbs and interactions.
        begun: All but the file's own size and hash.

    Returns:
        `begun` with both.
    """
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": begun.fingerprint,
        "logit_scale": float(bank.logit_scale),
        **({} if bank.logit_bias is None else {"logit_bias": float(bank.logit_bias)}),
    }
    tables = {
        "text_embedding": np.ascontiguousarray(bank.text_embedding, "<f4"),
        "prompts": _json_text([list(texts) for texts in bank.prompts]),
        "vocabulary": _json_text(vocabulary.to_dict()),
        **_visual_tables(bank.visual),
    }
    return _write_bank(folder, BASE, tables, attributes, begun)


def write_phrases(folder: Path, of: Pass, bank: PhraseBank, vocabulary: Vocabulary, begun: BankReceipt) -> BankReceipt:
    """Begins a further pass: what it asks about every interaction, and beside it what it is begun with.

    Args:
        folder: The split's folder.
        of: Which pass.
        bank: Phrases of the vocabulary's interactions.
        vocabulary: Names of objects, verbs and interactions.
        begun: All but the file's own size and hash.

    Returns:
        `begun` with both.
    """
    attributes = {"schema_version": SCHEMA_VERSION, "fingerprint": begun.fingerprint}
    tables = {
        "phrases": _json_text(list(bank.phrases)),
        "vocabulary": _json_text(vocabulary.to_dict()),
        "num_tokens": np.ascontiguousarray(bank.num_tokens, "<i4"),
        "prior_log_likelihood": np.ascontiguousarray(bank.prior_log_likelihood, "<f4"),
    }
    return _write_bank(folder, of, tables, attributes, begun)


def _write_bank(
    folder: Path, of: Pass, tables: dict[str, np.ndarray], attributes: dict[str, Any], begun: BankReceipt
) -> BankReceipt:
    data = encode_file(tables, attributes)
    receipt = replace(begun, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
    _write_with_receipt(folder / of.bank_name, data, asdict(receipt))
    return receipt


def write_shard(
    folder: Path,
    tables: Mapping[str, np.ndarray],
    *,
    index: int,
    start: int,
    image_ids_sha256: str,
    parts: Mapping[str, Any],
    fingerprint: str,
    axes: Mapping[str, int],
    of: Pass = BASE,
    base_sha256: str | None = None,
) -> Receipt:
    """Tables of a shard to its file.

    Args:
        folder: The split's folder, which has the split's name.
        tables: As `hoi.cache.tables.pack_tables` or `hoi.cache.tables.pack_answers` gives them.
        index, start, image_ids_sha256: The shard's plan.
        parts, fingerprint: What it was made with.
        axes: Size of every letter.
        of: Which pass it is of.
        base_sha256: Of a further pass: hash of the base shard that it was made over.
    """
    image_ids, reasons = tables["image_id"].tolist(), tables["status_reason"].tolist()
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "fingerprint_parts": parts,
        "split": folder.name,
        "index": index,
        "start": start,
        "num_images": len(image_ids),
        "image_ids_sha256": image_ids_sha256,
        "axes": dict(axes),
        **({} if base_sha256 is None else {"pass": of.name, "base_sha256": base_sha256}),
    }
    data = encode_file(tables, attributes)
    receipt = Receipt(
        name=of.shard_name(index),
        fingerprint=fingerprint,
        image_ids_sha256=image_ids_sha256,
        num_images=len(image_ids),
        num_detections=len(tables.get("scores", ())),
        num_pairs=int(tables["pair_offsets"][-1]),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        failed=tuple((image_ids[row].decode(), reasons[row].decode()) for row in np.flatnonzero(tables["status"])),
        base_sha256=base_sha256,
    )
    _write_with_receipt(folder / receipt.name, data, receipt.to_dict())
    return receipt


def _write_with_receipt(path: Path, data: bytes | memoryview, receipt: dict[str, Any]) -> None:
    # In this order a kill leaves a file without a receipt, never a receipt of another file.
    remove_file(path.with_suffix(".json"))
    write_atomically(path, data)
    write_json(path.with_suffix(".json"), receipt)


def _visual_tables(head: VisualHead | None) -> dict[str, np.ndarray]:
    found = {} if head is None else {f"visual_{part.name}": getattr(head, part.name) for part in fields(head)}
    return {name: np.ascontiguousarray(table, "<f4") for name, table in found.items() if table is not None}


def _json_text(plain: Any) -> np.ndarray:
    return np.array(json.dumps(plain, ensure_ascii=False).encode(), dtype="S")
