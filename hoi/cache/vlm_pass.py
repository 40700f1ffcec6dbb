"""A pass of a vision language model over the finished base pass: captions and confidences, images by images.

It has what one entry of the pipeline file's `vlms` asks for, under that entry's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi.cache.base_pass import FIELDS as BASE_FIELDS
from hoi.cache.base_pass import exact, image_columns, unpack_tables
from hoi.cache.manifest import BankReceipt, read_bank_receipt
from hoi.cache.plan import ShardPlan, files_as_hashes, request_parts, without_local_places
from hoi.cache.schema import (
    BASE,
    SCHEMA_VERSION,
    UNREADABLE,
    Field,
    Pass,
    PassKind,
    check_finite,
    check_tables,
    fields_of,
    shape_of,
    text_table,
)
from hoi.cache.shard import inspect_shard, json_table
from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.files import LOCAL_DIR, file_sha256, find_local
from hoi.records import ImageSignals
from hoi.vlm import VlmSignals
from hoi.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hoi.vlm.extractor import VlmExtractor

FIELDS = (
    Field("image_id", "utf8", "image", (), "as in the base shard"),
    Field("status", "|u1", "image", (), "0: the image was read, in both passes; 1: unreadable: rows of zeros"),
    Field("status_reason", "utf8", "image", (), "why an image is unreadable; empty where it was read"),
    Field("pair_offsets", "<i8", "offset", (), "as in the base shard: rows of pairs are rows of its pairs"),
    Field("caption", "utf8", "image", (), "the caption that was generated; empty where none was asked for"),
    Field(
        "context_embedding", "<f2", "image", ("S", "D"), "teacher embedding of each of its sentences, unit norm", False
    ),
    Field("context_mask", "|u1", "image", ("S",), "1 where there is such a sentence; other embeddings are 0", False),
    Field("vlm_scores", "<f2", "image", ("K",), "confidence in [0, 1] of every interaction; 0 where not asked", False),
    Field("vlm_asked", "|u1", "image", ("K",), "1 where the interaction was asked: its object is in a pair", False),
    Field(
        "vlm_log_likelihood",
        "<f4",
        "image",
        ("K",),
        "sum of its phrase's token log-probabilities, in nats; 0 where no such was asked for",
        False,
    ),
    Field("vlm_pair_scores", "<f2", "pair", ("Q",), "the same confidence, asked of the pair's union crop", False),
)

CAPTION_BYTES = 300
"""About what the longest caption of a shard takes."""


@dataclass(frozen=True)
class BaseShard:
    """What the base pass knows of the images of one shard."""

    outcomes: list[ImageSignals | str]
    pair_offsets: np.ndarray
    teacher: Mapping[str, Any]


class VlmPass(PassKind):
    another = "give it another name in vlms"
    section = "vlms"
    fields = FIELDS
    bank_key = "num_tokens"

    def __init__(self, of: Pass) -> None:
        self._of = of
        self.subject = of.title

    def request(self, config: PipelineConfig, base: dict[str, Any] | None = None) -> dict[str, Any]:
        section = config.vlms[self._of.name].model_dump(mode="json")
        if not section["model"].startswith(LOCAL_DIR) and find_local(section["model"]).is_dir():
            section["model"] = LOCAL_DIR + section["model"]
        base = request_parts(config) if base is None else base
        return {"schema_version": SCHEMA_VERSION, "vlm": files_as_hashes(section), "base": base}

    def settings(self, config: dict[str, Any], split: str) -> dict[str, Any]:
        return {"vlms": {self._of.name: without_local_places(config["vlms"][self._of.name])}}

    def load_model(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> VlmExtractor:
        from hoi.vlm.extractor import VlmExtractor

        return VlmExtractor(config, self._of.name, vocabulary, device)

    def parts(self, model_parts: dict[str, Any], folder: Path) -> dict[str, Any]:
        # All that changes what the shards hold, but the base shards' own bytes.
        base = _base_receipt(folder)
        asked = (model_parts.get("text") or {}).get("weights_sha256")
        cached = base.parts.get("teacher", {}).get("weights_sha256")
        if asked is not None and asked != cached:
            raise UserError(
                "the teacher's text side is not of the weights that made this cache",
                where=folder,
                expected=f"weights {str(cached)[:12]}",
                got=asked[:12],
                fix="set teacher.model and teacher.pretrained to what made the cache",
            )
        return {**model_parts, "base": base.fingerprint}

    def bank(self, model: VlmExtractor, vocabulary: Vocabulary) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        phrases = model.phrases
        tables = {
            "phrases": json_table(list(phrases.phrases)),
            "vocabulary": json_table(vocabulary.to_dict()),
            "num_tokens": np.ascontiguousarray(phrases.num_tokens, "<i4"),
            "prior_log_likelihood": np.ascontiguousarray(phrases.prior_log_likelihood, "<f4"),
        }
        return tables, {}

    def bank_shape(self, axes: Mapping[str, int], vocabulary: Vocabulary) -> tuple[int, ...]:
        return (len(vocabulary),)

    def base_shard(self, folder: Path, plan: ShardPlan) -> BaseShard:
        path = folder / BASE.shard_name(plan.index)
        sha256 = file_sha256(path) if path.exists() else "no such file"
        if sha256 != plan.base_sha256:
            raise UserError(
                "a base shard differs from what its manifest says",
                where=path,
                expected=f"SHA-256 {str(plan.base_sha256)[:12]}",
                got=sha256[:12],
                fix=command("cache repair"),
            )
        header = inspect_shard(path, BASE_FIELDS)
        axes = header.attributes["axes"]
        tables = header.tables(fields_of(axes, BASE_FIELDS))
        teacher = _base_receipt(folder).parts.get("teacher", {})
        return BaseShard(unpack_tables(tables, axes), tables["pair_offsets"], teacher)

    def inputs(self, image_ids: Sequence[str], over: BaseShard) -> tuple[dict[int, ImageSignals], dict[int, str]]:
        rows = dict(enumerate(over.outcomes))
        readable = {row: outcome for row, outcome in rows.items() if isinstance(outcome, ImageSignals)}
        return readable, {row: outcome for row, outcome in rows.items() if isinstance(outcome, str)}

    def process(
        self, model: VlmExtractor, over: BaseShard
    ) -> Callable[[Iterable[tuple[ImageSignals, np.ndarray]]], list[VlmSignals]]:
        return lambda images: model.extract(images, over.teacher)

    def pack(
        self, image_ids: Sequence[str], outcomes: Sequence[VlmSignals | str], axes: Mapping[str, int], over: BaseShard
    ) -> dict[str, np.ndarray]:
        signals, tables = image_columns(image_ids, outcomes)
        tables["pair_offsets"] = over.pair_offsets.astype("<i8")
        tables["caption"] = text_table([a.caption if a is not None else "" for a in signals])
        for field in fields_of(axes, FIELDS):
            if field.name in tables:
                continue
            num_rows = len(signals) if field.rows == "image" else int(over.pair_offsets[-1])
            table = np.zeros(shape_of(field, num_rows, axes), field.dtype)
            for row, of_image in enumerate(signals):
                if of_image is not None:
                    place = row if field.rows == "image" else slice(*over.pair_offsets[row : row + 2])
                    value = exact(of_image, field.name, table[place].shape)
                    check_finite({field.name: value}, f" of image {of_image.image_id}")
                    table[place] = value
            tables[field.name] = table
        self.check(tables, axes, None)
        return tables

    def check(self, tables: Mapping[str, np.ndarray], axes: Mapping[str, int], num_objects: int | None) -> None:
        check_tables(tables, axes, FIELDS)
        for name in ("vlm_scores", "vlm_pair_scores"):
            scores = tables.get(name)
            if scores is not None and not ((scores >= 0) & (scores <= 1)).all():
                raise ValueError(f"{name} leaves [0, 1]")
        for mask, name in (("vlm_asked", "vlm_scores"), ("context_mask", "context_embedding")):
            if mask not in tables:
                continue
            if (tables[mask] > 1).any():
                raise ValueError(f"{mask} is neither 0 nor 1")
            if tables[name][tables[mask] == 0].any():
                raise ValueError(f"{name} says something where {mask} is 0")

    def axes(self, config: PipelineConfig, teacher: Mapping[str, int], num_interactions: int) -> dict[str, int]:
        settings = config.vlms[self._of.name]
        axes = {"K": num_interactions} if settings.image_scores else {}
        axes |= {"Q": num_interactions} if settings.pair_scores else {}
        return axes | ({"S": settings.max_sentences, "D": teacher["D"]} if settings.caption else {})

    def text_bytes(self, axes: Mapping[str, int]) -> dict[str, int]:
        return {"caption": CAPTION_BYTES} if "S" in axes else {}


def _base_receipt(folder: Path) -> BankReceipt:
    base = read_bank_receipt(folder)
    if base is None:
        raise UserError("what the base pass was begun with is gone", where=folder, fix=command("cache repair"))
    return base


def unpack_signals(tables: Mapping[str, np.ndarray], row: int, axes: Mapping[str, int]) -> VlmSignals | str:
    if tables["status"][row] == UNREADABLE:
        return tables["status_reason"][row].decode()
    pairs = slice(*tables["pair_offsets"][row : row + 2])
    values: dict[str, Any] = {
        field.name: tables[field.name][pairs if field.rows == "pair" else row]
        for field in fields_of(axes, FIELDS)
        if field.rows in ("image", "pair") and not field.is_text and field.name != "status"
    }
    texts = {name: tables[name][row].decode() for name in ("image_id", "caption")}
    return VlmSignals(**texts, **values)
