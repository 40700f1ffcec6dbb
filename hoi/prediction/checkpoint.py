"""A self-contained checkpoint: one trained student and everything needed to run it on other images; docs/predict.md.

JSON and safetensors only; the record is written last, so its presence means complete. Detector and CLIP are known by
the hashes of their weights: they may lie anywhere, and others than those that the checkpoint was made with are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load
from safetensors.torch import load as load_tensors

from hoi.config import PipelineConfig, parse_config
from hoi.config.loading import parse_yaml
from hoi.errors import UserError, command
from hoi.files import LOCAL_DIR, file_sha256
from hoi.records import TextBank, VisualHead
from hoi.students.base import Student, build_student
from hoi.vocabulary import Vocabulary

FORMAT, VERSION = "hoi-distill checkpoint", 1
RECORD_NAME, STUDENT_NAME, TEXT_NAME = "checkpoint.json", "student.safetensors", "text.safetensors"
KEYS = frozenset(
    {"format", "version", "name", "seed", "config", "vocabulary", "axes", "text", "models", "places", "trained"}
    | {"figures", "files"}
)
"""Of the record."""
MODELS = {"detector": "detector", "teacher": "CLIP"}
FREE = {
    "detector": {"min_score", "max_detections", "nms_iou"},
    "teacher": {"batch_size", "precision", "tokens_sha256", "prompts", "no_interaction_prompts"},
}
"""Settings that may differ from the checkpoint's: thresholds, speed, and texts, whose embeddings it brings along."""
OVERRIDABLE = ("detector.", "pairs.", "teacher.", "dataset.max_image_pixels")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, read and checked except for its models, which `config` names where they lie here."""

    folder: Path
    record: dict[str, Any]
    config: PipelineConfig
    vocabulary: Vocabulary
    bank: TextBank

    @property
    def name(self) -> str:
        """Of the student, in the pipeline file that it was trained with."""
        return self.record["name"]

    @property
    def axes(self) -> dict[str, int]:
        """Sizes of the signals' axes, by letter."""
        return self.record["axes"]

    @property
    def sha256(self) -> str:
        """Of the record, which holds the hash of every other file."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | Path, overrides: Sequence[str] = ()) -> Checkpoint:
        """Read a checkpoint's folder; an override is a `section.key=value` of detector, pairs or teacher.

        Raises UserError: no checkpoint, another version, a missing or damaged file, or a wrong override.
        """
        folder = Path(folder)
        record = _read_record(folder)
        for name, sha256 in record["files"].items():
            path = folder / name
            if not path.is_file():
                raise UserError("a file of the checkpoint is missing", where=path)
            if (actual := file_sha256(path)) != sha256:
                raise UserError(
                    "a file of the checkpoint is not the one that was written",
                    where=path,
                    expected=f"sha256 {sha256[:16]}",
                    got=actual[:16],
                    fix=f"copy it again, or {command('checkpoint')}",
                )
        plain = _with_places(record, folder)
        for override in overrides:
            _apply(plain, override)
        tables, about = load((folder / TEXT_NAME).read_bytes()), record["text"]
        head = {name.removeprefix("visual."): value for name, value in tables.items() if name.startswith("visual.")}
        bank = TextBank(
            tables["text_embedding"],
            about["logit_scale"],
            about["logit_bias"],
            tuple(tuple(texts) for texts in about["prompts"]),
            VisualHead(**head) if head else None,
        )
        config = parse_config(plain, str(folder / RECORD_NAME))
        return cls(folder, record, config, Vocabulary.from_dict(record["vocabulary"]), bank)

    def student(self) -> Student:
        """Load the trained student, in evaluation mode on the CPU."""
        student = build_student(self.config.students[self.name], self.bank, self.vocabulary, self.axes)
        path = self.folder / STUDENT_NAME
        try:
            student.load_state_dict(load_tensors(path.read_bytes()))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError("the student's weights do not fit its settings", where=path, got=reason) from None
        return student.eval().requires_grad_(False)

    def check_models(self, provenance: Mapping[str, Any]) -> None:
        """Raise if `Extractor.provenance()` of detector or CLIP is not that of the checkpoint's."""
        for part, word in MODELS.items():
            expected, actual = (
                {key: value for key, value in plain[part].items() if key not in FREE[part]}
                for plain in (self.record["models"], json.loads(json.dumps(provenance)))
            )
            differing = sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key))
            if differing:
                raise UserError(
                    f"this is not the {word} that the checkpoint was made with",
                    where=f"{self.folder}, {part} {self.record['places'].get(part, '')}".rstrip(),
                    expected=", ".join(f"{key} {_short(expected.get(key))}" for key in differing),
                    got=", ".join(f"{key} {_short(actual.get(key))}" for key in differing),
                    fix=f"name the right one: {part}.{'model' if part == 'teacher' else 'weights'}=...",
                )


def _read_record(folder: Path) -> dict[str, Any]:
    path, make = folder / RECORD_NAME, command("checkpoint")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kind = (record.get("format"), record.get("version"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("this is no checkpoint", where=folder, expected=RECORD_NAME, got="none", fix=make) from None
    except (ValueError, AttributeError):
        raise UserError("the record of a checkpoint is damaged", where=path, fix=make) from None
    if kind != (FORMAT, VERSION):
        expected, got = (f"{name}, version {version}" for name, version in ((FORMAT, VERSION), kind))
        raise UserError("this checkpoint is of another format", where=path, expected=expected, got=got, fix=make)
    missing = sorted(KEYS - record.keys()) or sorted({STUDENT_NAME, TEXT_NAME} - record["files"].keys())
    if missing:
        expected = ", ".join(missing)
        raise UserError("the record of a checkpoint is damaged", where=path, expected=expected, got="none", fix=make)
    return record


def _with_places(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config with models where they lie: copies in the folder, others where they lay when it was written."""
    plain = json.loads(json.dumps(record["config"]))
    for key, place in record["places"].items():
        section, name = key.split(".")
        copy = place["copy"]
        prefix = LOCAL_DIR if str(plain[section][name]).startswith(LOCAL_DIR) else ""
        plain[section][name] = place["was"] if copy is None else prefix + str((folder / copy).resolve())
    return plain


def _apply(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.startswith(OVERRIDABLE):
        keys = ", ".join(f"{section}*" if section.endswith(".") else section for section in OVERRIDABLE)
        raise UserError(
            "a checkpoint does not take this override", expected=f"{keys} as section.key=value", got=override
        )
    here = plain
    *parents, last = key.split(".")
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise UserError("this override goes below a key that holds a value", got=override, expected=f"{parent}=...")
    here[last] = parse_yaml(text, f"override {override}")


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 20 else text[:16] + "..."
