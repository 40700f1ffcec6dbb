"""A self-contained checkpoint: one trained student and all that it takes to run it on other images.

    checkpoint.json        everything below in words and numbers; written last, so its presence means complete
    student.safetensors    the student's weights
    text.safetensors       the interaction texts in CLIP's joint space
    models/                detector and CLIP, where they are small files of one's own; larger ones are named
    MODEL_CARD.md          what it was trained on, what it scores, what it is not for

JSON and safetensors only. Detector and CLIP are told by hashes of their weights, so it does not matter where they lie,
and others than those that it was made with are refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from safetensors.torch import load as load_tensors

from hoi.config import PipelineConfig, parse_config
from hoi.config.yaml import parse_yaml
from hoi.errors import UserError
from hoi.evaluation.audit import detector_training_data, teacher_training_data
from hoi.files import LOCAL_DIR
from hoi.records import TextBank, VisualHead
from hoi.students.registry import Student, build_student
from hoi.vocabulary import Vocabulary

MEANS = {"full": "mAP", "rare": "rare", "non_rare": "non-rare"}
SHOWN_INTERACTIONS = 12


def model_card(record: dict[str, Any], config: PipelineConfig, vocabulary: Vocabulary) -> str:
    """A checkpoint's record and the config that it was trained with to its card, Markdown.

    Args:
        record: What goes into checkpoint.json.
        config: With places as they were at training.
        vocabulary: Of the student.
    """
    name, trained = record["name"], record["trained"]
    settings = config.students[name]
    by_labels = settings.supervision == "labels"
    labels = (
        f"HOI labels of the split `{config.train.split}` trained it, and those of `{config.evaluation.tune_split}` "
        "chose its epoch."
        if by_labels
        else "None. It learned from frozen CLIP's scores of the training images."
    )
    detector, teacher = detector_training_data(config), teacher_training_data(config)
    listed = ", ".join(vocabulary.names[:SHOWN_INTERACTIONS]).replace("_", " ")
    more = len(vocabulary) - SHOWN_INTERACTIONS
    parts = [
        f"# {config.name}: {name}, seed {record['seed']}",
        f"A human-object interaction detector: ⟨human, verb, object⟩ with both boxes, method `{settings.method}`. "
        f"Run it with `python -m hoi.prediction.run --checkpoint DIR --images PATH --out OUT`, or "
        "`Predictor.from_checkpoint(DIR)` of `hoi.prediction`.",
        "## What it was made from",
        f"- Images: {trained['num_images']} of the split `{config.train.split}` of the data set "
        f"`{config.dataset.name}`, with {trained['num_pairs']} pairs.\n"
        f"- HOI labels: {labels}\n"
        f"- Detector: {_model(record, 'detector', detector)}\n"
        f"- CLIP: {_model(record, 'teacher', teacher)}\n"
        f"- Vocabulary: {len(vocabulary)} interactions of {len(vocabulary.objects)} objects and "
        f"{len(vocabulary.verbs)} verbs: {listed}{f', and {more} more' if more > 0 else ''}.",
        "## Figures",
        _figures(record["figures"], config),
        "## Limits",
        "- It knows the interactions of its vocabulary and no other, and of each pair it scores those alone that the "
        "detected object admits. What the detector misses, it cannot find.\n"
        "- Scores order the findings of one interaction. They are no probabilities, and those of two interactions "
        "cannot be compared with confidence.\n"
        "- What CLIP takes for likely in a picture, the student has learned, CLIP's mistakes and prejudices among it. "
        "Nobody has checked it on groups of people, and it must not decide anything about anybody.\n"
        "- Figures hold for images like those that they were measured on.",
        "## Provenance",
        f"Cache fingerprint `{trained['fingerprint']}`, commit `{trained['commit']}`, "
        + ", ".join(f"{package} {version}" for package, version in sorted(trained["versions"].items()))
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _model(record: dict[str, Any], part: str, known: dict[str, str]) -> str:
    own = [place for key, place in record["places"].items() if key.startswith(f"{part}.")]
    where = "in `models/`" if own and all(place["copy"] for place in own) else "not in this folder"
    sha256 = record["models"][part].get("weights_sha256")
    hashed = f", weights sha256 `{sha256[:16]}…`" if sha256 else ""
    return f"`{known['name']}`{hashed}, {where}. Trained on: {known['trained_on']}."


def _figures(figures: dict[str, Any] | None, config: PipelineConfig) -> str:
    if figures is None:
        return "It has not been graded (`python -m hoi.evaluation.evaluate`, with annotations)."
    means = ", ".join(
        f"{word} {figures['means'][mean]:.2f}" for mean, word in MEANS.items() if mean in figures["means"]
    )
    return (
        f"Split `{figures['split']}` of `{config.dataset.name}`, {figures['num_images']} images, by HICO-DET's "
        f"official rule, in percent, this seed: {means}."
    )


FORMAT, VERSION = "hoi-distill checkpoint", 1
RECORD_NAME, STUDENT_NAME, TEXT_NAME = "checkpoint.json", "student.safetensors", "text.safetensors"
CARD_NAME = "MODEL_CARD.md"
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
"""What may differ from what the checkpoint was made with: thresholds, speed, and texts, whose table it brings along."""
OVERRIDABLE = ("detector.", "pairs.", "teacher.", "dataset.max_image_pixels")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, read and checked but for its models.

    Args:
        folder: Where it lies.
        record: `checkpoint.json`.
        config: Its pipeline file with one student, places of models as they are here.
        vocabulary, bank: Interactions and their texts.
    """

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
        """Size of every letter of the signals."""
        return self.record["axes"]

    @property
    def sha256(self) -> str:
        """Of the record, which names the hash of every other file."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | Path, overrides: Sequence[str] = ()) -> Checkpoint:
        """A folder to its checkpoint.

        Args:
            folder: Written by `hoi.prediction.export`.
            overrides: `section.key=value` of detector, pairs and teacher, such as where a large model lies here.

        Raises:
            UserError: no checkpoint, another version, a missing or damaged file, or an override that is none.
        """
        folder = Path(folder)
        record = _read_record(folder)
        for name, sha256 in record["files"].items():
            _check_file(folder / name, sha256)
        plain = _with_places(record, folder)
        for override in overrides:
            _apply(plain, override)
        text = load((folder / TEXT_NAME).read_bytes())
        about = record["text"]
        bank = TextBank(
            text["text_embedding"],
            about["logit_scale"],
            about["logit_bias"],
            tuple(tuple(texts) for texts in about["prompts"]),
            _visual_head(text),
        )
        config = parse_config(plain, str(folder / RECORD_NAME))
        return cls(folder, record, config, Vocabulary.from_dict(record["vocabulary"]), bank)

    def student(self) -> Student:
        """The trained student, in evaluation mode on the CPU.

        Raises:
            UserError: the weights do not fit the settings.
        """
        student = build_student(self.config.students[self.name], self.bank, self.vocabulary, self.axes)
        path = self.folder / STUDENT_NAME
        try:
            student.load_state_dict(load_tensors(path.read_bytes()))
        except (SafetensorError, RuntimeError) as error:
            raise UserError(
                "the student's weights do not fit its settings", where=path, got=str(error).splitlines()[0][:200]
            ) from None
        return student.eval().requires_grad_(False)

    def check_models(self, provenance: Mapping[str, Any]) -> None:
        """Nothing, if detector and CLIP are those that the checkpoint was made with.

        Args:
            provenance: `Extractor.provenance()` of what was loaded.

        Raises:
            UserError: another detector or CLIP; names it, and what differs.
        """
        for part, word in MODELS.items():
            made, here = (
                {key: value for key, value in plain[part].items() if key not in FREE[part]}
                for plain in (self.record["models"], json.loads(json.dumps(provenance)))
            )
            differing = sorted(key for key in made.keys() | here.keys() if made.get(key) != here.get(key))
            if differing:
                raise UserError(
                    f"this is not the {word} that the checkpoint was made with",
                    where=f"{self.folder}, {part} {self.record['places'].get(part, '')}".rstrip(),
                    expected=", ".join(f"{key} {_short(made.get(key))}" for key in differing),
                    got=", ".join(f"{key} {_short(here.get(key))}" for key in differing),
                    fix=f"name the right one: {part}.{'model' if part == 'teacher' else 'weights'}=...",
                )


def text_file(bank: TextBank) -> bytes:
    """The texts, and what belongs to them, as a safetensors file."""
    tables = {"text_embedding": bank.text_embedding}
    if bank.visual is not None:
        parts = {name: getattr(bank.visual, name) for name in ("projection", "value", "norm")}
        tables |= {f"visual.{name}": value for name, value in parts.items() if value is not None}
    return save({name: np.ascontiguousarray(value, np.float32) for name, value in tables.items()})


def _visual_head(tables: Mapping[str, np.ndarray]) -> VisualHead | None:
    if "visual.projection" not in tables:
        return None
    return VisualHead(tables["visual.projection"], tables.get("visual.value"), tables.get("visual.norm"))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_NAME
    make = "make checkpoint (python -m hoi.prediction.export)"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = (record.get("format"), record.get("version"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("this is no checkpoint", where=folder, expected=RECORD_NAME, got="none", fix=make) from None
    except (ValueError, AttributeError):
        raise UserError("the record of a checkpoint is damaged", where=path, fix=make) from None
    if found != (FORMAT, VERSION):
        raise UserError(
            "this checkpoint is of another format",
            where=path,
            expected=f"{FORMAT}, version {VERSION}",
            got=f"{found[0]}, version {found[1]}",
            fix=make,
        )
    missing = sorted(KEYS - record.keys()) or sorted({STUDENT_NAME, TEXT_NAME} - record["files"].keys())
    if missing:
        raise UserError(
            "the record of a checkpoint is damaged", where=path, expected=", ".join(missing), got="none", fix=make
        )
    return record


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError("a file of the checkpoint is missing", where=path, got=error.strerror) from None
    if found != sha256:
        raise UserError(
            "a file of the checkpoint is not the one that was written",
            where=path,
            expected=f"sha256 {sha256[:16]}",
            got=found[:16],
            fix="copy or make the checkpoint again",
        )


def _with_places(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config with models where they are: copies in the folder, others where they lay when it was written."""
    plain = json.loads(json.dumps(record["config"]))
    for key, place in record["places"].items():
        section, name = key.split(".")
        own = place["copy"]
        prefix = LOCAL_DIR if str(plain[section][name]).startswith(LOCAL_DIR) else ""
        plain[section][name] = place["was"] if own is None else prefix + str((folder / own).resolve())
    return plain


def _apply(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.startswith(OVERRIDABLE):
        raise UserError(
            "a checkpoint does not take this override",
            got=override,
            expected=f"{', '.join(f'{section}*' if section.endswith('.') else section for section in OVERRIDABLE)}"
            " as section.key=value",
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


def student_file(student: Student) -> bytes:
    """The student's weights as a safetensors file."""
    from safetensors.torch import save as save_tensors

    return save_tensors({name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()})
