"""The base pass: detector, pairs and teacher over every image. What it stores, and how its tables are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hoi.cache.manifest import read_bank_receipt
from hoi.cache.plan import request_parts, settings_parts
from hoi.cache.schema import (
    READABLE,
    UNREADABLE,
    Field,
    Pass,
    PassKind,
    check_finite,
    check_tables,
    clip_reason,
    fields_of,
    shape_of,
    text_table,
)
from hoi.cache.shard import json_table
from hoi.config import PipelineConfig
from hoi.vocabulary import Vocabulary

# A build with nothing to do imports this module; `hoi.records` would bring torch, which takes seconds.
if TYPE_CHECKING:
    from hoi.extraction import Extractor
    from hoi.records import ImageSignals, TextBank
    from hoi.vlm import VlmSignals

MAX_SIDE = 1 << 24
"""Pixels."""
Record = TypeVar("Record", bound="ImageSignals | VlmSignals")

FIELDS = (
    Field("image_id", "utf8", "image", (), "stable key that joins records of one image; unique in a split"),
    Field("size_hw", "<i4", "image", (2,), "height and width of the upright image in pixels; 0 where unreadable"),
    Field("status", "|u1", "image", (), "0: the image was read; 1: unreadable: no detection, no pair, rows of zeros"),
    Field("status_reason", "utf8", "image", (), "why an image is unreadable; empty where it was read"),
    Field("image_embedding", "<f2", "image", ("D",), "teacher embedding of the whole image, unit norm"),
    Field("image_similarity", "<f2", "image", ("K",), "cosine of it to the text of every interaction"),
    Field("detection_offsets", "<i8", "offset", (), "image i has detections [i] up to, not including, [i + 1]"),
    Field("boxes_xyxy", "<f4", "detection", (4,), "pixel edges of the upright image: width is x2 - x1"),
    Field("scores", "<f4", "detection", (), "detector's confidence in [0, 1]; falling within an image"),
    Field("labels", "<i4", "detection", (), "row of the vocabulary's objects"),
    Field(
        "detection_feature",
        "<f2",
        "detection",
        ("L", "D"),
        "region feature of the box per level, unit norm; level `crop` is 0 for a detection in no pair",
    ),
    Field("pair_offsets", "<i8", "offset", (), "image i has pairs [i] up to, not including, [i + 1]"),
    Field("pairs_ho", "<i4", "pair", (2,), "human and object, as rows within the image's own detections"),
    Field("union_embedding", "<f2", "pair", ("M", "D"), "teacher embedding of the union crop per margin, unit norm"),
    Field("union_similarity", "<f2", "pair", ("M", "K"), "cosine of it to the text of every interaction"),
    Field(
        "union_feature",
        "<f2",
        "pair",
        ("L", "D"),
        "region feature of the union box per level, unit norm; level `crop` is union_embedding's first margin",
    ),
    Field("spatial_map", "<f2", "image", ("C", "H", "W"), "the teacher's last spatial map of the whole image", False),
)

TOLERANCE = {"boxes_xyxy": 0.05, "scores": 1e-3}
"""Largest absolute difference that is let pass, in the field's unit; pixels for boxes."""
FEATURE_TOLERANCE = 4e-3
"""The same for float16 fields, times the field's largest value where that is above 1: eight steps of float16 below 1.
Neighbours in a batch move the last bits; another image, weight or setting moves far more."""
COUNTED = {"detection_offsets": "detections", "pair_offsets": "pairs"}


class BasePass(PassKind):
    subject = "this cache"
    another = "run with another cache.folder=FOLDER"
    section = "teacher"
    fields = FIELDS
    bank_key = "text_embedding"

    def __init__(self, of: Pass) -> None:
        self._of = of

    def request(self, config: PipelineConfig, base: dict[str, Any] | None = None) -> dict[str, Any]:
        return base if base is not None else request_parts(config)

    def settings(self, config: dict[str, Any], split: str) -> dict[str, Any]:
        return settings_parts(config, split)

    def begins_alone(self, config: PipelineConfig) -> bool:
        # A precision is found by the clock: two workers that look at once may differ.
        return config.teacher.precision == "auto"

    def load_model(self, config: PipelineConfig, vocabulary: Vocabulary, device: str) -> Extractor:
        from hoi.extraction import Extractor

        return Extractor(config, vocabulary, device)

    def as_begun(self, config_json: str, folder: Path) -> str:
        """Return the config with `teacher.precision: auto` as its split, or else another one, was begun with.

        That choice is made by the clock, so it is made once; other settings are left for the fingerprint to judge.
        """
        config = json.loads(config_json)
        if config["teacher"]["precision"] != "auto":
            return config_json
        for split in dict.fromkeys([folder.name, *config["dataset"]["splits"]]):
            bank = read_bank_receipt(folder.with_name(split))
            if bank is not None:
                config["teacher"]["precision"] = bank.parts["teacher"]["precision"]
                return json.dumps(config)
        return config_json

    def bank(self, model: Extractor, vocabulary: Vocabulary) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return bank_tables(model.text_bank, vocabulary)

    def bank_shape(self, axes: Mapping[str, int], vocabulary: Vocabulary) -> tuple[int, ...]:
        return axes["K"], axes["D"]

    def inputs(self, image_ids: Sequence[str], over: None) -> tuple[dict[int, str], dict[int, str]]:
        return dict(enumerate(image_ids)), {}

    def process(self, model: Extractor, over: None) -> Callable[[Iterable[tuple[str, np.ndarray]]], list[ImageSignals]]:
        return model.extract_stream

    def pack(
        self, image_ids: Sequence[str], outcomes: Sequence[ImageSignals | str], axes: Mapping[str, int], over: None
    ) -> dict[str, np.ndarray]:
        for outcome in outcomes:
            if not isinstance(outcome, str):
                # In fp16 a teacher may overflow.
                check_finite({**vars(outcome.detections), **vars(outcome)}, f" of image {outcome.image_id}")
        return pack_tables(image_ids, outcomes, axes)

    def check(self, tables: Mapping[str, np.ndarray], axes: Mapping[str, int], num_objects: int | None) -> None:
        check_base_tables(tables, axes)
        if num_objects is not None:
            check_detections(tables, num_objects)

    def axes(self, config: PipelineConfig, teacher: Mapping[str, int], num_interactions: int) -> dict[str, int]:
        return dict(teacher)


def bank_tables(bank: TextBank, vocabulary: Vocabulary) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    head = (
        {} if bank.visual is None else {f"visual_{p.name}": getattr(bank.visual, p.name) for p in fields(bank.visual)}
    )
    tables = {
        "text_embedding": np.ascontiguousarray(bank.text_embedding, "<f4"),
        "prompts": json_table([list(texts) for texts in bank.prompts]),
        "vocabulary": json_table(vocabulary.to_dict()),
        **{name: np.ascontiguousarray(table, "<f4") for name, table in head.items() if table is not None},
    }
    bias = {} if bank.logit_bias is None else {"logit_bias": float(bank.logit_bias)}
    return tables, {"logit_scale": float(bank.logit_scale), **bias}


def pack_tables(
    image_ids: Sequence[str], outcomes: Sequence[ImageSignals | str], axes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Pack the signals of images, or why one could not be read, into a shard's tables: rows laid flat, with offsets.

    Raises a ValueError if a signal's shape differs from `axes`, or an id from its record's.
    """
    from hoi.records import Detections

    signals, tables = image_columns(image_ids, outcomes)
    detections = [s.detections if s is not None else Detections.empty() for s in signals]
    tables |= {
        "detection_offsets": _offsets([len(d) for d in detections]),
        "pair_offsets": _offsets([len(s.pairs_ho) if s is not None else 0 for s in signals]),
        "boxes_xyxy": _concatenate([d.boxes_xyxy for d in detections], "<f4", (0, 4)),
        "scores": _concatenate([d.scores for d in detections], "<f4", (0,)),
        "labels": _concatenate([d.labels for d in detections], "<i4", (0,)),
    }
    for field in fields_of(axes, FIELDS):
        if field.name in tables:
            continue
        if field.rows == "image":
            table = np.zeros(shape_of(field, len(signals), axes), field.dtype)
            for row, record in enumerate(signals):
                if record is not None:
                    table[row] = exact(record, field.name, shape_of(field, 0, axes)[1:])
        else:
            parts = [getattr(record, field.name) for record in signals if record is not None]
            table = _concatenate(parts, field.dtype, shape_of(field, 0, axes))
        tables[field.name] = table
    check_base_tables(tables, axes)
    return tables


def image_columns(
    image_ids: Sequence[str], outcomes: Sequence[Record | str]
) -> tuple[list[Record | None], dict[str, np.ndarray]]:
    """Return the records, None where an image is unreadable, and the columns of ids and of what was readable."""
    records = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
    for image_id, record in zip(image_ids, records, strict=True):
        if record is not None and record.image_id != image_id:
            raise ValueError(f"signals of image {record.image_id} came in the place of {image_id}")
    return records, {
        "image_id": text_table(image_ids),
        "status": np.array([UNREADABLE if record is None else READABLE for record in records], np.uint8),
        "status_reason": text_table([clip_reason(o) if isinstance(o, str) else "" for o in outcomes]),
    }


def exact(record: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a record's array if it has this shape: assigned to a table, numpy would broadcast a wrong one."""
    value = getattr(record, name)
    if value is None or value.shape != shape:
        got = None if value is None else value.shape
        raise ValueError(f"{name} of image {record.image_id} has shape {got}, expected {shape}")
    return np.asarray(value)


def _concatenate(parts: list[np.ndarray], dtype: str, empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros(empty, dtype), *(part.astype(dtype, copy=False) for part in parts if len(part))])


def _offsets(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype("<i8")


def unpack_tables(tables: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> list[ImageSignals | str]:
    return [unpack_image(tables, row, axes) for row in range(len(tables["image_id"]))]


def unpack_image(tables: Mapping[str, np.ndarray], row: int, axes: Mapping[str, int]) -> ImageSignals | str:
    """Return the signals of one image of a shard, or the reason why it could not be read.

    Values are views of the tables, but for labels: they are int64, as detectors give them.
    """
    from hoi.records import Detections, ImageSignals

    if tables["status"][row] == UNREADABLE:
        return tables["status_reason"][row].decode()
    of_rows: dict[str, int | slice] = {
        "image": row,
        "detection": slice(*tables["detection_offsets"][row : row + 2]),
        "pair": slice(*tables["pair_offsets"][row : row + 2]),
    }
    values = {
        field.name: tables[field.name][of_rows[field.rows]]
        for field in fields_of(axes, FIELDS)
        if field.rows in of_rows and not field.is_text
    }
    del values["status"]
    boxes, scores, labels = (values.pop(name) for name in ("boxes_xyxy", "scores", "labels"))
    detections = Detections(boxes, scores, labels.astype(np.int64))
    return ImageSignals(image_id=tables["image_id"][row].decode(), detections=detections, **values)


def check_base_tables(tables: Mapping[str, np.ndarray], axes: Mapping[str, int]) -> None:
    """Raise a ValueError if a base shard's tables disagree with the schema, or pairs name another image's boxes."""
    check_tables(tables, axes, FIELDS)
    detections_of_pair = np.repeat(np.diff(tables["detection_offsets"]), np.diff(tables["pair_offsets"]))
    rows = tables["pairs_ho"]
    if (rows < 0).any() or (rows >= detections_of_pair[:, None]).any():
        raise ValueError("pairs_ho names a detection outside its image")
    is_read, sizes = tables["status"] == READABLE, tables["size_hw"]
    if (tables["status"] > UNREADABLE).any() or (sizes[is_read] < 1).any() or (sizes > MAX_SIDE).any():
        raise ValueError(f"status is neither 0 nor 1, or a readable image has no side of 1 to {MAX_SIDE} pixels")


def check_detections(tables: Mapping[str, np.ndarray], num_objects: int) -> None:
    """Raise a ValueError unless scores fall within every image and labels are rows of the vocabulary."""
    scores, offsets = tables["scores"], tables["detection_offsets"]
    rises = np.diff(scores) > 0
    # From the last detection of an image to the first of the next one, scores may rise.
    borders = offsets[1:-1]
    rises[borders[(borders > 0) & (borders < len(scores))] - 1] = False
    if rises.any():
        image = int(np.searchsorted(offsets, np.flatnonzero(rises)[0], side="right")) - 1
        raise ValueError(f"scores rise within image {tables['image_id'][image].decode()}")
    check_labels(tables, num_objects)


def check_labels(tables: Mapping[str, np.ndarray], num_objects: int | None) -> None:
    """Raise a ValueError unless labels are rows of the vocabulary's objects, where their number is known."""
    labels = tables.get("labels", np.zeros(0, np.int32))
    if num_objects is not None and len(labels) and (labels.min() < 0 or labels.max() >= num_objects):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, the vocabulary has {num_objects} objects")


def compare_images(stored: ImageSignals, now: ImageSignals, axes: dict[str, int]) -> tuple[dict[str, float], list[str]]:
    """Return the largest absolute difference of each field of an image's records, and what is out of tolerance."""
    before, after = (pack_tables([s.image_id], [s], axes) for s in (stored, now))
    counts = {name: (before[name].tolist()[-1], after[name].tolist()[-1]) for name in COUNTED}
    wrong = [f"{old} {COUNTED[name]}, now {new}" for name, (old, new) in counts.items() if old != new]
    if wrong:
        return {}, wrong
    differences: dict[str, float] = {}
    for field in fields_of(axes, FIELDS):
        if field.is_text or field.rows == "offset" or not before[field.name].size:
            continue
        old, new = before[field.name].astype(np.float64), after[field.name].astype(np.float64)
        # NaN would pass every comparison with a tolerance.
        difference = float(np.nan_to_num(np.abs(new - old), nan=np.inf).max())
        differences[field.name] = difference
        allowed = TOLERANCE.get(field.name, 0.0)
        if field.dtype == "<f2":
            allowed = FEATURE_TOLERANCE * max(1.0, float(np.abs(old).max()))
        if not difference <= allowed:
            wrong.append(f"{field.name} differs by {difference:.3g}, tolerance {allowed:.3g}")
    return differences, wrong
