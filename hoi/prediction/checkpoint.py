"""A self-contained checkpoint: one trained student and everything needed to run it on other images; docs/predict.md.

JSON and safetensors only; the record is written last, so its presence means complete. Detector and CLIP are known by
the hashes of their weights: they may lie anywhere, and others than those that the checkpoint was made with are refused.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from msgspec import Struct
from safetensors import SafetensorError
from safetensors.numpy import load

from hoi.cache.schema import Axes
from hoi.config import PipelineConfig, parse_config
from hoi.config.loading import parse_yaml, set_key
from hoi.datasets.names import leaves_folder
from hoi.errors import UserError, command
from hoi.files import LOCAL_DIR, Count, Finite, Sha256, at_home, file_sha256, parse_json, read_bytes
from hoi.records import TextBank, VisualHead
from hoi.students.base import Student
from hoi.training.runs import load_student
from hoi.vocabulary import Vocabulary

MAX_AXIS = 1 << 16
FORMAT, VERSION = "hoi-distill checkpoint", 1
RECORD_NAME, STUDENT_NAME, TEXT_NAME = "checkpoint.json", "student.safetensors", "text.safetensors"
MODELS = {"detector": "detector", "teacher": "CLIP"}
FREE = {
    "detector": {"min_score", "max_detections", "nms_iou"},
    "teacher": {"batch_size", "precision", "tokens_sha256", "prompts", "no_interaction_prompts"},
}
"""Settings that may differ from the checkpoint's: thresholds, speed, and texts, whose embeddings it brings along."""
PERMISSIONS = {"detector": {"trust_pickle": False}}
"""Settings that let a file run code: a user's pipeline file or command line gives them, never a checkpoint's folder."""
OVERRIDABLE = ("detector.", "pairs.", "teacher.", "dataset.max_image_pixels")


class _Place(Struct):
    copy: str | None
    was: str


class _Text(Struct):
    logit_scale: Finite
    logit_bias: Finite | None
    prompts: tuple[tuple[str, ...], ...]


class _Trained(Struct):
    # What the card and the page show.
    num_images: Count
    num_pairs: Count
    fingerprint: str
    settings: dict[str, Any]
    versions: dict[str, str]
    commit: str | None


class _Record(Struct):
    """What is read of checkpoint.json, beside its format and version."""

    name: str
    seed: int
    config: dict[str, Any]
    vocabulary: dict[str, Any]
    axes: Axes
    text: _Text
    models: dict[str, dict[str, Any]]
    places: dict[str, _Place]
    trained: _Trained
    figures: dict[str, Any] | None
    files: dict[str, Sha256]


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
            path = _file_below(folder, name)
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
        config = parse_config(plain, str(folder / RECORD_NAME))
        vocabulary = Vocabulary.from_dict(record["vocabulary"])
        bank = _read_texts(folder / TEXT_NAME, record["text"], len(vocabulary))
        checkpoint = cls(folder, record, config, vocabulary, bank)
        checkpoint._check_sizes()
        return checkpoint

    def student(self) -> Student:
        """Load the trained student, in evaluation mode on the CPU."""
        settings, path = self.config.students[self.name], self.folder / STUDENT_NAME
        student = load_student(path, settings, self.bank, self.vocabulary, self.axes)
        return student.eval().requires_grad_(False)

    def _check_sizes(self) -> None:
        # Models are built at the sizes given here, so they are compared first.
        axes, teacher, where = self.axes, self.config.teacher, self.folder / RECORD_NAME
        known = {
            "K": len(self.vocabulary),
            "D": self.bank.text_embedding.shape[1],
            "M": len(teacher.crop.margins),
        }
        if self.name not in self.config.students:
            expected = "one of its config's students"
            raise UserError("the record of a checkpoint is damaged", where=where, expected=expected, got=self.name)
        if {name: axes.get(name) for name in known} != known or max(axes.values()) > MAX_AXIS:
            expected = f"axes {known}, none beyond {MAX_AXIS}"
            raise UserError("the record of a checkpoint is damaged", where=where, expected=expected, got=axes)

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
    path, make, what = folder / RECORD_NAME, command("checkpoint"), "the record of a checkpoint is damaged"
    if not path.exists():
        raise UserError("this is no checkpoint", where=folder, expected=RECORD_NAME, got="none", fix=make)
    data = read_bytes(_file_below(folder, RECORD_NAME), "a checkpoint's record")
    try:
        record: dict[str, Any] = parse_json(data, dict[str, Any])
        kind = (record.get("format"), record.get("version"))
        if kind != (FORMAT, VERSION):
            expected, got = (f"{name}, version {version}" for name, version in ((FORMAT, VERSION), kind))
            raise UserError("this checkpoint is of another format", where=path, expected=expected, got=got, fix=make)
        checked: _Record = parse_json(data, _Record)
    except ValueError as error:
        raise UserError(what, where=path, got=str(error)[:300], fix=make) from None
    missing = sorted({STUDENT_NAME, TEXT_NAME} - checked.files.keys()) or sorted(MODELS.keys() - checked.models.keys())
    if missing:
        raise UserError(what, where=path, expected=", ".join(missing), got="none", fix=make)
    return record


def _file_below(folder: Path, name: str) -> Path:
    """Return a file of the checkpoint; a UserError unless it is a regular one below the folder, reached by no link."""
    path, expected = folder / name, "a regular file below the checkpoint's folder, and no link"
    parts = PurePosixPath(name).parts
    if not parts or leaves_folder(name) or "\0" in name or "\\" in name:
        raise UserError("a file of the checkpoint is outside its folder", where=folder, expected=expected, got=name)
    try:
        modes = [os.lstat(folder.joinpath(*parts[: number + 1])).st_mode for number in range(len(parts))]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("a file of the checkpoint is missing", where=path) from None
    except OSError as error:
        raise UserError("a file of the checkpoint cannot be read", where=path, got=error.strerror) from None
    if not all(map(stat.S_ISDIR, modes[:-1])) or not stat.S_ISREG(modes[-1]):
        raise UserError("a file of the checkpoint is no regular file", where=path, expected=expected)
    return path


def _read_texts(path: Path, about: dict[str, Any], num_interactions: int) -> TextBank:
    try:
        tables = load(path.read_bytes())
        head = {name.removeprefix("visual."): value for name, value in tables.items() if name.startswith("visual.")}
        bias = about["logit_bias"]
        bank = TextBank(
            tables["text_embedding"],
            float(about["logit_scale"]),
            None if bias is None else float(bias),
            tuple(tuple(texts) for texts in about["prompts"]),
            VisualHead(**head) if head else None,
        )
        bank.check(num_interactions)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError("the texts of the checkpoint are damaged", where=path, got=got) from None
    return bank


def _with_places(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config with models where they lie: copies in the folder, others where they lay when it was written."""
    plain = copy.deepcopy(record["config"])
    for section, permissions in PERMISSIONS.items():
        if isinstance(plain.get(section), dict):
            plain[section] |= {name: value for name, value in permissions.items() if name in plain[section]}
    for key, place in record["places"].items():
        section, _, name = key.partition(".")
        if section not in MODELS or not isinstance(plain.get(section), dict) or name not in plain[section]:
            where, expected = folder / RECORD_NAME, "keys of detector and teacher"
            raise UserError("the record of a checkpoint is damaged", where=where, expected=expected, got=f"place {key}")
        lies_at = place["copy"]
        if lies_at is not None and not any(
            file == lies_at or file.startswith(f"{lies_at}/") for file in record["files"]
        ):
            what = "a model of the checkpoint is not among its files"
            raise UserError(what, where=folder / RECORD_NAME, got=lies_at)
        prefix = LOCAL_DIR if str(plain[section][name]).startswith(LOCAL_DIR) else ""
        plain[section][name] = place["was"] if lies_at is None else prefix + str((folder / lies_at).resolve())
    return plain


def _apply(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.startswith(OVERRIDABLE):
        keys = ", ".join(f"{section}*" if section.endswith(".") else section for section in OVERRIDABLE)
        raise UserError(
            "a checkpoint does not take this override", expected=f"{keys} as section.key=value", got=override
        )
    value = parse_yaml(text, f"override {override}")
    set_key(plain, key, at_home(value) if isinstance(value, str) else value)


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 20 else text[:16] + "..."
