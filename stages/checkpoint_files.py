"""A trained student and what it was trained with, to the files of its checkpoint; docs/predict.md describes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cache.atomic import remove_file, write_atomically
from hoi.config import PipelineConfig
from hoi.errors import UserError
from hoi.prediction.card import model_card
from hoi.prediction.checkpoint import (
    CARD_NAME,
    FORMAT,
    LOCAL_DIR,
    MODELS,
    RECORD_NAME,
    STUDENT_NAME,
    TEXT_NAME,
    VERSION,
    student_file,
    text_file,
)
from hoi.records import TextBank
from hoi.students import Student
from hoi.vocabulary import Vocabulary

MAX_COPIED_BYTES = 64 << 20
"""A detector or CLIP of one's own up to this size is copied into the folder; `--models` decides otherwise."""
Models = Literal["auto", "copy", "refer"]


@dataclass(frozen=True)
class Making:
    """What a checkpoint is made of.

    Args:
        config: The pipeline that the student was trained in.
        name, seed: Of the student in it.
        student: Its weights.
        bank, vocabulary, axes: Of the signals that it reads.
        models: What detector and CLIP say of themselves (`Extractor.provenance`).
        trained: On what, and with what, for the card.
        figures: What stage three found of it, or None.
    """

    config: PipelineConfig
    name: str
    seed: int
    student: Student
    bank: TextBank
    vocabulary: Vocabulary
    axes: Mapping[str, int]
    models: Mapping[str, Any]
    trained: dict[str, Any]
    figures: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckpointReport:
    """A written checkpoint.

    Args:
        folder: Where it lies.
        name, seed: Of the student.
        notes: What its user should know.
    """

    folder: Path
    name: str
    seed: int
    notes: list[str]

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return "\n".join([f"{self.name} seed {self.seed} · {self.folder} · {size / 1e6:.1f} MB", *self.notes])


def save_checkpoint(making: Making, folder: Path, models: Models = "auto") -> CheckpointReport:
    """Writes a checkpoint's files, the record last; equal parts give equal bytes.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    _refuse_other_folder(folder)
    copies = {} if models == "refer" else dict(_copies(making.config, None if models == "copy" else MAX_COPIED_BYTES))
    files = {STUDENT_NAME: student_file(making.student), TEXT_NAME: text_file(making.bank)}
    for copied in copies.values():
        files |= {name: path.read_bytes() for name, path in copied.files.items()}
    record = _record(making, copies)
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    path = folder / RECORD_NAME
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        remove_file(path)
        for each, data in files.items():
            write_atomically(folder / each, data)
        write_atomically(folder / CARD_NAME, model_card(record, making.config, making.vocabulary).encode())
        write_atomically(path, text.encode())
    away = sorted({key.split(".")[0] for key, place in record["places"].items() if place["copy"] is None})
    notes = [f"{MODELS[part]} is not in the folder, but named with its hash" for part in away]
    return CheckpointReport(folder, making.name, making.seed, notes)


def _refuse_other_folder(folder: Path) -> None:
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not (folder / RECORD_NAME).is_file()
        and not (folder / STUDENT_NAME).is_file()
    ):
        raise UserError(
            "this folder holds something else",
            where=folder,
            expected="an empty folder, or a checkpoint",
            fix="--out DIR",
        )


@dataclass(frozen=True)
class _Copied:
    """A file or folder that a config names.

    Args:
        place: In the checkpoint.
        files: Names in the checkpoint to where the files lie now.
    """

    place: str
    files: dict[str, Path]


def _places(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    """Keys of detector and teacher that name a file or folder of this machine, and what they say."""
    for part in MODELS:
        for key, value in getattr(config, part).model_dump(mode="json").items():
            if (
                isinstance(value, str)
                and Path(value.removeprefix(LOCAL_DIR)).exists()
                and ("/" in value or "." in value)
            ):
                yield f"{part}.{key}", value


def _copies(config: PipelineConfig, max_bytes: int | None) -> Iterator[tuple[str, _Copied]]:
    for key, value in _places(config):
        source = Path(value.removeprefix(LOCAL_DIR))
        # A detectron2 config may name others, and boxes that were looked up belong to images that are elsewhere.
        is_looked_up = config.detector.name == "precomputed" and key.startswith("detector.")
        if source.suffix in (".yaml", ".yml") or is_looked_up:
            continue
        paths = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        if max_bytes is not None and sum(path.stat().st_size for path in paths) > max_bytes:
            continue
        place = f"models/{key.split('.')[0]}/{source.name}"
        if source.is_dir():
            yield key, _Copied(place, {f"{place}/{path.relative_to(source).as_posix()}": path for path in paths})
        else:
            yield key, _Copied(place, {place: source})


def _record(making: Making, copies: Mapping[str, _Copied]) -> dict[str, Any]:
    config, bank = making.config.model_dump(mode="json"), making.bank
    config["students"] = {making.name: config["students"][making.name]}
    # `auto` was decided when the cache was built, and its vectors are what the student knows.
    config["teacher"]["precision"] = making.models["teacher"]["precision"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": making.name,
        "seed": making.seed,
        "config": config,
        "vocabulary": making.vocabulary.to_dict(),
        "axes": dict(making.axes),
        "text": {
            "logit_scale": bank.logit_scale,
            "logit_bias": bank.logit_bias,
            "prompts": [list(texts) for texts in bank.prompts],
        },
        "models": {part: making.models[part] for part in MODELS},
        "places": {
            key: {"copy": copies[key].place if key in copies else None, "was": _absolute(value)}
            for key, value in _places(making.config)
        },
        "trained": making.trained,
        "figures": making.figures,
    }


def _absolute(value: str) -> str:
    prefix = LOCAL_DIR if value.startswith(LOCAL_DIR) else ""
    return prefix + str(Path(value.removeprefix(LOCAL_DIR)).resolve())
