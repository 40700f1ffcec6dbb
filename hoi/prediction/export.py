"""Write one trained student as a self-contained checkpoint. docs/predict.md describes the folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save
from safetensors.torch import save as save_tensors

from hoi.config import PipelineConfig
from hoi.errors import UserError, command
from hoi.evaluation.audit import detector_training_data, teacher_training_data
from hoi.evaluation.written import read_written
from hoi.files import LOCAL_DIR, find_local, remove_file, remove_leftovers, size_text, write_atomically
from hoi.prediction.checkpoint import FORMAT, MODELS, RECORD_NAME, STUDENT_NAME, TEXT_NAME, VERSION
from hoi.prediction.onnx import export_student
from hoi.records import TextBank
from hoi.students.base import Student
from hoi.training.train import choose_student, open_training_split, run_folder
from hoi.vocabulary import Vocabulary

CARD_NAME, ONNX_NAME = "MODEL_CARD.md", "student.onnx"
MAX_COPIED_BYTES = 64 << 20
"""A detector or CLIP of one's own up to this size is copied into the folder, unless `models` says otherwise."""
CARD_INTERACTIONS = 12  # interactions that the card lists by name
MEANS = {"full": "mAP", "rare": "rare", "non_rare": "non-rare"}
Models = Literal["auto", "copy", "refer"]


@dataclass(frozen=True)
class CheckpointParts:
    """What a checkpoint is made of."""

    config: PipelineConfig
    name: str
    seed: int
    student: Student
    bank: TextBank
    vocabulary: Vocabulary
    axes: Mapping[str, int]
    models: Mapping[str, Any]  # provenance of detector and CLIP, as `Extractor.provenance` gives it
    trained: dict[str, Any]  # images, pairs, versions and commit of the training, for the card
    figures: dict[str, Any] | None = None  # metrics from stage three


@dataclass(frozen=True)
class CheckpointReport:
    folder: Path
    name: str
    seed: int
    notes: list[str]

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return "\n".join([f"{self.name} seed {self.seed} · {self.folder} · {size_text(size)}", *self.notes])


def make_checkpoint(
    config: PipelineConfig,
    student: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    models: Models = "auto",
    onnx: bool = False,
) -> CheckpointReport:
    """Write a finished training run as a checkpoint; an equal one that is there already is left alone.

    It is the student of `choose_student` with the first of `train.seeds`, in `OUTPUT/checkpoints/STUDENT`, if no others
    are named. `models="auto"` copies detector and CLIP where they are files of one's own up to `MAX_COPIED_BYTES`.

    Raises UserError: no cache, no such run, a folder that holds something else, or a student without an ONNX form.
    """
    name = choose_student(config, student)
    seed = config.train.seeds[0] if seed is None else seed
    split = open_training_split(config)
    run = run_folder(config, name, seed, split.fingerprint)
    record = run.record()
    missing = sorted({"chosen_epoch", "versions", "commit"} - record.keys())
    if missing:
        where, fix = run.path / "run.json", f"rm -r {run.path}, then {command('train')}"
        expected = ", ".join(missing)
        raise UserError("the record of a training run is damaged", where=where, expected=expected, got="none", fix=fix)
    parts = CheckpointParts(
        config,
        name,
        seed,
        run.load_student(split.text_bank, split.vocabulary, split.axes),
        split.text_bank,
        split.vocabulary,
        split.axes,
        split.manifest.bank.parts,
        {
            "num_images": split.num_images,
            "num_pairs": split.num_pairs,
            "fingerprint": split.fingerprint,
            "settings": record["settings"],
            "chosen_epoch": record["chosen_epoch"],
            "versions": record["versions"],
            "commit": record["commit"],
        },
        _figures(config, name, seed),
    )
    report = save_checkpoint(parts, Path(config.output) / "checkpoints" / name if out is None else Path(out), models)
    if onnx:
        data, note = export_student(report.folder)
        write_atomically(report.folder / ONNX_NAME, data)
        report.notes.append(f"{ONNX_NAME}: {note}")
    return report


def save_checkpoint(parts: CheckpointParts, folder: Path, models: Models = "auto") -> CheckpointReport:
    """Write a checkpoint's files, the record last; equal parts give equal bytes."""
    ours = (folder / RECORD_NAME).is_file() or (folder / STUDENT_NAME).is_file()
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        expected = "an empty folder, or a checkpoint"
        raise UserError("this folder holds something else", where=folder, expected=expected, fix="give another --out")
    copies = {} if models == "refer" else _copies(parts.config, None if models == "copy" else MAX_COPIED_BYTES)
    state = {name: value.detach().cpu().contiguous() for name, value in parts.student.state_dict().items()}
    files = {STUDENT_NAME: save_tensors(state), TEXT_NAME: _text_file(parts.bank)}
    for copied in copies.values():
        files |= {name: path.read_bytes() for name, path in copied.items()}
    record = _record(parts, copies)
    record["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    path = folder / RECORD_NAME
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        remove_file(path)
        remove_leftovers(folder, "**/")
        for each, data in files.items():
            write_atomically(folder / each, data)
        write_atomically(folder / CARD_NAME, model_card(record, parts.config, parts.vocabulary).encode())
        write_atomically(path, text.encode())
    away = sorted({key.split(".")[0] for key, place in record["places"].items() if place["copy"] is None})
    notes = [f"{MODELS[part]} is not in the folder, but named with its hash" for part in away]
    return CheckpointReport(folder, parts.name, parts.seed, notes)


def _text_file(bank: TextBank) -> bytes:
    tables = {"text_embedding": bank.text_embedding}
    if bank.visual is not None:
        head = {name: getattr(bank.visual, name) for name in ("projection", "value", "norm")}
        tables |= {f"visual.{name}": value for name, value in head.items() if value is not None}
    return save({name: np.ascontiguousarray(value, np.float32) for name, value in tables.items()})


def _places(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    # Keys of detector and teacher that name a file or folder of this machine, and their values.
    for part in MODELS:
        for key, value in getattr(config, part).model_dump(mode="json").items():
            if isinstance(value, str) and find_local(value).exists() and ("/" in value or "." in value):
                yield f"{part}.{key}", value


def _copies(config: PipelineConfig, max_bytes: int | None) -> dict[str, dict[str, Path]]:
    """Return the files to copy, by their names in the checkpoint, for each key whose model is copied."""
    copies = {}
    for key, value in _places(config):
        source = find_local(value)
        # A detectron2 config may name other files, and boxes that are looked up belong to images that are elsewhere.
        is_looked_up = config.detector.is_looked_up and key.startswith("detector.")
        if source.suffix in (".yaml", ".yml") or is_looked_up:
            continue
        paths = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
        if max_bytes is None or sum(path.stat().st_size for path in paths) <= max_bytes:
            copies[key] = {f"{_place(key, value)}{path.as_posix()[len(source.as_posix()) :]}": path for path in paths}
    return copies


def _place(key: str, value: str) -> str:
    return f"models/{key.split('.')[0]}/{find_local(value).name}"


def _record(parts: CheckpointParts, copies: Mapping[str, object]) -> dict[str, Any]:
    config, bank = parts.config.model_dump(mode="json"), parts.bank
    config["students"] = {parts.name: config["students"][parts.name]}
    # `auto` was decided when the cache was built, and the student knows the vectors of that precision.
    config["teacher"]["precision"] = parts.models["teacher"]["precision"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": parts.name,
        "seed": parts.seed,
        "config": config,
        "vocabulary": parts.vocabulary.to_dict(),
        "axes": dict(parts.axes),
        "text": {
            "logit_scale": bank.logit_scale,
            "logit_bias": bank.logit_bias,
            "prompts": [list(texts) for texts in bank.prompts],
        },
        "models": {part: parts.models[part] for part in MODELS},
        "places": {
            key: {
                "copy": _place(key, value) if key in copies else None,
                "was": (LOCAL_DIR if value.startswith(LOCAL_DIR) else "") + str(find_local(value).resolve()),
            }
            for key, value in _places(parts.config)
        },
        "trained": parts.trained,
        "figures": parts.figures,
    }


def _figures(config: PipelineConfig, name: str, seed: int) -> dict[str, Any] | None:
    # The metrics that stage three found for this very student.
    output = Path(config.output)
    try:
        rows = read_written(output / "results.json", required=False) or []
        summary = read_written(output / "summary.json", required=False) or {}
    except UserError:
        return None
    settings = config.students[name].model_dump(mode="json")
    settings.pop("score_exponent", None)  # Stage three may have tuned it.
    for row in rows:
        if (row["name"], row["seed"]) == (name, seed) and settings == {k: row["knobs"].get(k) for k in settings}:
            means = {mean: row[mean] for mean in MEANS if row[mean] is not None}
            return {"split": summary.get("split"), "num_images": summary.get("num_images"), "means": means}
    return None


def model_card(record: dict[str, Any], config: PipelineConfig, vocabulary: Vocabulary) -> str:
    name, trained = record["name"], record["trained"]
    settings = config.students[name]
    labels = "None. It learned from frozen CLIP's scores of the training images."
    if settings.supervision == "labels":
        labels = (
            f"HOI labels of the split `{config.train.split}` trained it, and those of "
            f"`{config.evaluation.tune_split}` chose its epoch."
        )
    listed = ", ".join(vocabulary.names[:CARD_INTERACTIONS]).replace("_", " ")
    more = len(vocabulary) - CARD_INTERACTIONS
    versions = ", ".join(f"{package} {version}" for package, version in sorted(trained["versions"].items()))
    parts = [
        f"# {config.name}: {name}, seed {record['seed']}",
        f"A human-object interaction detector: ⟨human, verb, object⟩ with both boxes, method `{settings.method}`. "
        "Run it with `hoi predict --checkpoint DIR --images PATH --out OUT`, or `Predictor.from_checkpoint(DIR)` of "
        "`hoi.prediction`.",
        "## What it was made from",
        f"- Images: {trained['num_images']} of the split `{config.train.split}` of the dataset "
        f"`{config.dataset.name}`, with {trained['num_pairs']} pairs.\n"
        f"- HOI labels: {labels}\n"
        f"- Detector: {_model(record, 'detector', detector_training_data(config))}\n"
        f"- CLIP: {_model(record, 'teacher', teacher_training_data(config))}\n"
        f"- Vocabulary: {len(vocabulary)} interactions of {len(vocabulary.objects)} objects and "
        f"{len(vocabulary.verbs)} verbs: {listed}{f', and {more} more' if more > 0 else ''}.",
        "## Metrics",
        _metrics(record["figures"], config),
        "## Limits",
        "- It knows the interactions of its vocabulary and no others, and scores for each pair only those that the "
        "detected object admits. It cannot find what the detector misses.\n"
        "- Scores rank the predictions of one interaction. They are not probabilities, and scores of different "
        "interactions are not comparable.\n"
        "- It has learned what CLIP finds likely in a picture, with CLIP's mistakes and biases. Nobody has tested it "
        "on groups of people, and it must not decide anything about anybody.\n"
        "- The metrics hold for images like those that they were measured on.",
        "## Provenance",
        f"Cache fingerprint `{trained['fingerprint']}`, commit `{trained['commit']}`, {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def _model(record: dict[str, Any], part: str, known: dict[str, str]) -> str:
    places = [place for key, place in record["places"].items() if key.startswith(f"{part}.")]
    where = "in `models/`" if places and all(place["copy"] for place in places) else "not in this folder"
    sha256 = record["models"][part].get("weights_sha256")
    hashed = f", weights sha256 `{sha256[:16]}…`" if sha256 else ""
    return f"`{known['name']}`{hashed}, {where}. Trained on: {known['trained_on']}."


def _metrics(figures: dict[str, Any] | None, config: PipelineConfig) -> str:
    if figures is None:
        return "It has not been evaluated (`hoi eval`, with annotations)."
    means = ", ".join(f"{word} {figures['means'][key]:.2f}" for key, word in MEANS.items() if key in figures["means"])
    return (
        f"Split `{figures['split']}` of `{config.dataset.name}`, {figures['num_images']} images, by HICO-DET's "
        f"official rule, in percent, this seed: {means}."
    )
